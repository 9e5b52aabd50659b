"""Measuring: every family that is installed contributes the metric that it knows about."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyattn_core import diagnostics, resolver
from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import PolyattnError, ShapeError

from .config import ReportConfig
from .metrics import MetricType
from .report import GeometryReport, ReportBuilder

PROVIDERS = {
    MetricType.OT_DISTANCE: "polyattn-transport",
    MetricType.TOPOLOGY_COHERENCE: "polyattn-topology",
    MetricType.IB_KL: "polyattn-info-bottleneck",
    MetricType.DIFFUSION_ENERGY: "polyattn-diffusion",
    MetricType.ATTENTION_ENTROPY: "polyattn-report",
}
"""What to install for a metric."""


def analyze(
    query: Any, key: Any = None, value: Any = None, *, config: ReportConfig | None = None
) -> GeometryReport:
    """The report on some data: every metric that an installed family offers.

    Parameters
    ----------
    query, key, value
        (…, tokens, size); keys default to the queries, values to the keys.
    config
        How much is looked at, and the seed of what is drawn.

    Notes
    -----
    Metrics cost O(n log n) or look at a sample, so a report on 100,000 vectors takes seconds.

    Examples
    --------
    >>> import numpy as np
    >>> report = analyze(np.random.default_rng(0).standard_normal((100, 8)))
    >>> 0 <= report.health_score <= 1
    True
    """
    return ReportBuilder(config).analyze(query, key, value).build()


def measure(
    query: Any, key: Any, value: Any, config: ReportConfig
) -> tuple[dict[MetricType, float], dict[str, str], int]:
    """Values of metrics, reasons for those that are missing, and the number of keys."""
    query = _checked(query, "query")
    key = query if key is None else _checked(key, "key")
    value = key if value is None else _checked(value, "value")
    if key.shape[-1] != query.shape[-1]:
        raise ShapeError("key", key.shape, f"a last axis of {query.shape[-1]}, like the query")
    if value.shape[-2] != key.shape[-2]:
        raise ShapeError("value", value.shape, f"{key.shape[-2]} tokens, like the key")
    values: dict[MetricType, float] = {}
    missing: dict[str, str] = {}
    for metric in MetricType:
        try:
            factory = resolver.current().resolve(metric.value, "metric")
        except PolyattnError:
            missing[metric.value] = f"not installed: pip install {PROVIDERS[metric]}"
            continue
        try:
            found = float(factory(query, key, value))
        except PolyattnError as error:
            missing[metric.value] = str(error)
            continue
        values[metric] = found
        if diagnostics.wanted(diagnostics.MetricMeasured):
            diagnostics.publish(
                diagnostics.MetricMeasured(metric=metric.value, value=found, source="report")
            )
    return values, missing, int(key.shape[-2])


def _checked(array: Any, argument: str) -> Array:
    checked = as_array(array, argument)
    if checked.ndim < 2 or 0 in checked.shape:
        raise ShapeError(argument, checked.shape, "(..., tokens, size), none of them 0")
    return checked


def attention_entropy(
    query: Array, key: Array, value: Array | None = None, *, sample: int = 256, seed: int = 0
) -> float:
    """Mean entropy of softmax(q·kᵀ/√d), in nats.

    Of `sample` queries drawn from all: O(sample · n d). With s for the deviation of the entropy
    between queries, the standard error is s / √sample.
    """
    flat = np.asarray(query, np.float64).reshape(-1, *query.shape[-2:])
    keys = np.asarray(key, np.float64).reshape(-1, *key.shape[-2:])
    rng = np.random.default_rng(seed)
    each = max(1, sample // len(flat))
    total, count = 0.0, 0
    for place, rows in enumerate(flat):
        chosen = rows[rng.permutation(len(rows))[:each]]
        scores = chosen @ keys[place % len(keys)].T / np.sqrt(chosen.shape[-1])
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores)
        denominator = weights.sum(axis=-1)
        entropy = np.log(denominator) - (weights * scores).sum(axis=-1) / denominator
        total, count = total + float(entropy.sum()), count + len(entropy)
    return total / count
