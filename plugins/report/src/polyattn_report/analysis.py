"""Measuring: every family that is installed contributes the metric that it knows about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from polyattn_core import diagnostics, resolver
from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import PolyattnError, ShapeError, UnknownNameError

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


class Measured(NamedTuple):
    """What was found out about some data."""

    values: dict[MetricType, float]
    missing: dict[str, str]
    """Why other metrics are not there."""
    keys: int
    neighbour_recall: float


def measure(query: Any, key: Any, value: Any, config: ReportConfig) -> Measured:
    """Every metric that an installed family offers."""
    query = _checked(query, "query")
    key = query if key is None else _checked(key, "key")
    value = key if value is None else _checked(value, "value")
    if key.shape[-1] != query.shape[-1]:
        raise ShapeError("key", key.shape, f"a last axis of {query.shape[-1]}, like the query")
    if value.shape[-2] != key.shape[-2]:
        raise ShapeError("value", value.shape, f"{key.shape[-2]} tokens, like the key")
    registry = resolver.current()
    values: dict[MetricType, float] = {}
    missing: dict[str, str] = {}
    for metric in MetricType:
        try:
            factory = registry.resolve(metric.value, "metric")
            found = float(factory(query, key, value))
        except UnknownNameError:
            missing[metric.value] = f"not installed: pip install {PROVIDERS[metric]}"
            continue
        except PolyattnError as error:
            missing[metric.value] = str(error)
            continue
        values[metric] = found
        if diagnostics.wanted(diagnostics.MetricMeasured):
            diagnostics.publish(
                diagnostics.MetricMeasured(metric=metric.value, value=found, source="report")
            )
    recall = neighbour_recall(query, key, sample=config.sample, seed=config.seed)
    return Measured(values, missing, int(key.shape[-2]), recall)


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
    total, count = 0.0, 0
    for scores, _ in _samples(query, key, sample, seed):
        scores = scores / np.sqrt(np.shape(query)[-1])
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores)
        denominator = weights.sum(axis=-1)
        entropy = np.log(denominator) - (weights * scores).sum(axis=-1) / denominator
        total, count = total + float(entropy.sum()), count + len(entropy)
    return total / count


NEIGHBOURS = 8


def neighbour_recall(
    query: Array, key: Array, value: Array | None = None, *, sample: int = 256, seed: int = 0
) -> float:
    """Do dot products find the nearest keys? The share of a query's 8 that are among its best 8.

    Best by dot product; with fewer than 32 keys, of a quarter of them. 1 for keys of one length;
    small where long keys win whatever the query. Of `sample` queries drawn from all:
    O(sample · n d), and the standard error is at most 1/(2 √sample).

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((500, 8))
    >>> unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    >>> neighbour_recall(unit, unit), neighbour_recall(x, x) < 0.6
    (1.0, True)
    """
    total, count = 0.0, 0
    for scores, keys in _samples(query, key, sample, seed):
        nearest = min(NEIGHBOURS, max(1, len(keys) // 4))
        # ‖q − k‖² but for ‖q‖², which does not change the order.
        nearness = scores - np.einsum("nd,nd->n", keys, keys) / 2
        chosen = np.argpartition(-nearness, nearest - 1, axis=-1)[:, :nearest]
        least = -np.partition(-scores, nearest - 1, axis=-1)[:, nearest - 1]
        hits = np.take_along_axis(scores, chosen, axis=-1) >= _a_little_less(least)[:, None]
        total, count = total + float(hits.mean(axis=-1).sum()), count + len(hits)
    return total / count


def _a_little_less(scores: Array) -> Array:
    """So that equal keys are equally good, however their products were rounded."""
    return np.asarray(scores - 1e-9 * np.abs(scores))


_BLOCK = 32


def _samples(query: Array, key: Array, sample: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Dot products of sampled queries with all keys, and these keys: blocks of each head."""
    flat = np.asarray(query, np.float64).reshape(-1, *np.shape(query)[-2:])
    keys = np.asarray(key, np.float64).reshape(-1, *np.shape(key)[-2:])
    rng = np.random.default_rng(seed)
    each = max(1, sample // len(flat))
    shared = max(1, len(flat) // len(keys))
    for place, rows in enumerate(flat):
        head = keys[place // shared]
        chosen = rows[rng.permutation(len(rows))[:each]]
        for start in range(0, len(chosen), _BLOCK):
            yield chosen[start : start + _BLOCK] @ head.T, head
