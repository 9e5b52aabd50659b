"""The report and its builder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError

from .config import ReportConfig
from .metrics import THRESHOLDS, Metric, MetricType, Thresholds, thresholds_for
from .recommendation import Action, AttentionRecommendation, advise, misses_neighbours


@dataclass(frozen=True, slots=True)
class GeometryReport:
    """Metrics with their status, health, and what to do.

    Examples
    --------
    >>> report = ReportBuilder().with_topology_coherence(0.05).build()
    >>> report.health_score, report.recommendation, report.action
    (0.0, <AttentionRecommendation.STANDARD: 'standard'>, <Action.FREEZE: 'freeze'>)
    >>> report.reasons
    ('topology-coherence is 0.05, below 0.1: neighbouring keys hang together little',)
    """

    metrics: tuple[Metric, ...]
    health_score: float
    """Mean over the metrics: OK 1, WATCH ¾, WARNING ½, CRITICAL 0."""
    recommendation: AttentionRecommendation
    action: Action
    reasons: tuple[str, ...]
    """Plain words, the worst first; one line where all is well."""
    missing: Mapping[str, str]
    """Metrics that could not be measured, and why."""
    neighbour_recall: float | None = None
    """Share of the keys nearest to a query that have the greatest dot products with it; None where
    only metrics were given. It counts for the recommendation, not for health."""

    def __getitem__(self, metric: str) -> Metric:
        for found in self.metrics:
            if found.metric_type == metric:
                return found
        raise KeyError(metric)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "health_score": self.health_score,
            "recommendation": self.recommendation.value,
            "action": self.action.value,
            "reasons": list(self.reasons),
            "neighbour_recall": self.neighbour_recall,
            "metrics": [
                {
                    "name": metric.metric_type.value,
                    "value": metric.value,
                    "status": metric.status().value,
                    "healthy": [metric.thresholds.low, metric.thresholds.high],
                    "warning": metric.thresholds.warning,
                    "critical": metric.thresholds.critical,
                    "bad_when_low": metric.thresholds.bad_when_low,
                }
                for metric in self.metrics
            ],
            "missing": dict(self.missing),
        }

    def __str__(self) -> str:
        advice = f"recommendation {self.recommendation.value}, action {self.action.value}"
        lines = [f"health {self.health_score:.2f}, {advice}"]
        lines += [
            f"  {m.metric_type.value:<20}{m.value:>10.4g}  {m.status().value}" for m in self.metrics
        ]
        return "\n".join([*lines, *self.reasons])


class ReportBuilder:
    """Collects metrics, given or measured, into a report.

    Parameters
    ----------
    config
        How data are analysed.
    thresholds
        Thresholds of some metrics, in place of the usual ones.

    Examples
    --------
    >>> import numpy as np
    >>> keys = np.random.default_rng(0).standard_normal((200, 16))
    >>> report = ReportBuilder().analyze_keys(keys).build()
    >>> report["attention-entropy"].status().value
    'WATCH'
    """

    def __init__(
        self,
        config: ReportConfig | None = None,
        thresholds: Mapping[MetricType, Thresholds] | None = None,
    ) -> None:
        self.config = config or ReportConfig()
        self._given = {MetricType(name): limits for name, limits in (thresholds or {}).items()}
        self._values: dict[MetricType, float] = {}
        self._missing: dict[str, str] = {}
        self._keys: int | None = None
        self._recall: float | None = None

    def with_metric(self, metric: MetricType | str, value: float) -> Self:
        """Give the value of a metric."""
        try:
            kind = MetricType(metric)
        except ValueError:
            known = ", ".join(MetricType)
            raise ArgumentError("metric", metric, f"one of {known}") from None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ArgumentError(kind.value, value, "a number") from None
        if number < 0:
            raise ArgumentError(kind.value, value, "a number that is not negative")
        self._values[kind] = number
        self._missing.pop(kind.value, None)
        return self

    def with_ot_distance(self, value: float) -> Self:
        """Give the normalised transport distance between queries and keys."""
        return self.with_metric(MetricType.OT_DISTANCE, value)

    def with_topology_coherence(self, value: float) -> Self:
        """Give the coherence of the keys, 0 to 1."""
        return self.with_metric(MetricType.TOPOLOGY_COHERENCE, value)

    def with_ib_kl(self, value: float) -> Self:
        """Give the divergence that compression would save, nats a coordinate."""
        return self.with_metric(MetricType.IB_KL, value)

    def with_diffusion_energy(self, value: float) -> Self:
        """Give the normalised Dirichlet energy."""
        return self.with_metric(MetricType.DIFFUSION_ENERGY, value)

    def with_attention_entropy(self, value: float) -> Self:
        """Give the mean entropy of the weights, in nats."""
        return self.with_metric(MetricType.ATTENTION_ENTROPY, value)

    def with_keys(self, count: int) -> Self:
        """Say how many keys there are, on which the healthy range of the entropy depends."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ArgumentError("count", count, "a whole number of at least 1")
        self._keys = count
        return self

    def with_neighbour_recall(self, value: float) -> Self:
        """Give the share of nearest keys that dot products find, 0 to 1."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if not 0 <= number <= 1:
            raise ArgumentError("neighbour_recall", value, "a number from 0 to 1")
        self._recall = number
        return self

    def analyze_keys(self, keys: Array) -> Self:
        """Measure what can be told from keys alone: they are queries and values too."""
        return self.analyze(keys)

    def analyze(self, query: Any, key: Any = None, value: Any = None) -> Self:
        """Measure every metric that an installed family offers; those given stay.

        Parameters
        ----------
        query, key, value
            (…, tokens, size); keys default to the queries, values to the keys.
        """
        from .analysis import measure

        found = measure(query, key, value, self.config)
        self._keys = found.keys
        if self._recall is None:
            self._recall = found.neighbour_recall
        for name, number in found.values.items():
            if name not in self._values:
                self._values[name] = number
        self._missing.update(
            {
                name: why
                for name, why in found.missing.items()
                if MetricType(name) not in self._values
            }
        )
        return self

    def build(self) -> GeometryReport:
        """The report.

        Raises
        ------
        ArgumentError
            Where no metric was given or could be measured.
        """
        if not self._values:
            why = "; ".join(f"{name}: {reason}" for name, reason in self._missing.items())
            raise ArgumentError("metrics", f"none{f' ({why})' if why else ''}", "at least one")
        metrics = tuple(
            Metric(name, self._values[name], thresholds_for(name, self._keys, self._given))
            for name in THRESHOLDS
            if name in self._values
        )
        health = sum(metric.status().score for metric in metrics) / len(metrics)
        recommendation, action = advise(metrics, self._recall)
        worst_first = sorted(metrics, key=lambda metric: -metric.status().severity)
        reasons = tuple(metric.reason for metric in worst_first if metric.reason)
        coherence = [m for m in metrics if m.metric_type is MetricType.TOPOLOGY_COHERENCE]
        if coherence and misses_neighbours(coherence[0], self._recall):
            reasons = (*reasons, _missed(self._recall or 0.0))
        return GeometryReport(
            metrics, health, recommendation, action,
            reasons or ("every metric that was looked at is in its healthy range",),
            dict(self._missing), self._recall,
        )  # fmt: skip


def _missed(recall: float) -> str:
    return (
        f"neighbouring keys hang together, and dot products find {recall:.0%} of the keys that are "
        "nearest to a query: distances suit better"
    )
