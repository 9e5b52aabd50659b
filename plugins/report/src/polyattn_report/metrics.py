"""The metrics of a report: what each says, which way is good, and when to worry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from polyattn_core.errors import ArgumentError


class MetricType(StrEnum):
    """What is measured; the values are the names of metrics in the registry."""

    OT_DISTANCE = "ot-distance"
    TOPOLOGY_COHERENCE = "topology-coherence"
    IB_KL = "ib-kl"
    DIFFUSION_ENERGY = "diffusion-energy"
    ATTENTION_ENTROPY = "attention-entropy"


class Status(StrEnum):
    """How a value is to be taken, the best first."""

    OK = "OK"
    WATCH = "WATCH"
    """Between what is fine and what is a warning."""
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"

    @property
    def score(self) -> float:
        """Its share in the health of a report."""
        return _SCORES[self]

    @property
    def severity(self) -> int:
        """0 for OK … 3 for CRITICAL."""
        return list(Status).index(self)


_SCORES = {Status.OK: 1.0, Status.WATCH: 0.75, Status.WARNING: 0.5, Status.CRITICAL: 0.0}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a metric is fine, a warning, critical.

    A metric that is bad when low has `warning` and `critical` below its healthy range, one that is
    bad when high above. Comparisons with these two are strict.
    """

    low: float
    """Least healthy value."""
    high: float
    """Greatest healthy value."""
    warning: float
    critical: float

    def __post_init__(self) -> None:
        rising = self.high <= self.warning < self.critical
        falling = self.critical < self.warning <= self.low
        if not (self.low <= self.high and (rising or falling)):
            raise ArgumentError(
                "thresholds",
                (self.low, self.high, self.warning, self.critical),
                "low ≤ high, and warning and critical beyond one of them, in this order",
            )

    @property
    def bad_when_low(self) -> bool:
        """Are low values the bad ones?"""
        return self.critical < self.low

    def status(self, value: float) -> Status:
        """How a value is to be taken; what is not finite is critical."""
        if not math.isfinite(value):
            return Status.CRITICAL
        if self.low <= value <= self.high:
            return Status.OK
        if self.bad_when_low:
            beyond = (value < self.critical, value < self.warning)
        else:
            beyond = (value > self.critical, value > self.warning)
        if beyond[0]:
            return Status.CRITICAL
        return Status.WARNING if beyond[1] else Status.WATCH


THRESHOLDS: Mapping[MetricType, Thresholds] = MappingProxyType(
    {
        MetricType.OT_DISTANCE: Thresholds(0.0, 0.3, 0.3, 0.7),
        MetricType.TOPOLOGY_COHERENCE: Thresholds(0.5, 1.0, 0.3, 0.1),
        MetricType.IB_KL: Thresholds(0.0, 0.2, 0.5, 1.0),
        MetricType.DIFFUSION_ENERGY: Thresholds(0.0, 1.0, 2.0, 5.0),
        MetricType.ATTENTION_ENTROPY: Thresholds(1.0, 4.0, 0.5, 0.1),
    }
)
"""Those that reports use unless told otherwise."""


def thresholds_for(
    metric: MetricType, keys: int | None, given: Mapping[MetricType, Thresholds]
) -> Thresholds:
    """Thresholds of a metric for a number of keys, where that is known.

    Entropy is at most ln(keys), so few keys must not look unhealthy: it is fine from
    min(1, ¼ ln keys), and the other two shrink with it.
    """
    chosen = given.get(metric) or THRESHOLDS[metric]
    if metric is not MetricType.ATTENTION_ENTROPY or metric in given or keys is None:
        return chosen
    low = min(chosen.low, 0.25 * math.log(max(keys, 2)))
    shrunk = low / chosen.low
    return Thresholds(low, chosen.high, chosen.warning * shrunk, chosen.critical * shrunk)


_MEANING = {
    MetricType.OT_DISTANCE: "queries and keys are distributed differently",
    MetricType.TOPOLOGY_COHERENCE: "neighbouring keys hang together little",
    MetricType.IB_KL: "the keys carry much more than a compressed form would",
    MetricType.DIFFUSION_ENERGY: "values change abruptly between neighbouring keys",
    MetricType.ATTENTION_ENTROPY: "each query looks at hardly more than one key",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """A value with what it means."""

    metric_type: MetricType
    value: float
    thresholds: Thresholds

    def status(self) -> Status:
        """OK, WATCH, WARNING or CRITICAL."""
        return self.thresholds.status(self.value)

    @property
    def reason(self) -> str:
        """In plain words, for values that are not fine; empty for the others."""
        status, name = self.status(), self.metric_type.value
        if status is Status.OK:
            return ""
        if not math.isfinite(self.value):
            return f"{name} is {self.value}: the data or the computation behind it is broken"
        limits = self.thresholds
        if limits.bad_when_low and self.value > limits.high:
            meaning = "attention is spread over so many keys that it is close to a plain mean"
            if self.metric_type is not MetricType.ATTENTION_ENTROPY:
                meaning = "it is above its range"
            return f"{name} is {self.value:.3g}, above {limits.high:.3g}: {meaning}"
        word = "below" if self.value < limits.low else "above"
        bound = {
            Status.CRITICAL: limits.critical,
            Status.WARNING: limits.warning,
            Status.WATCH: limits.low if word == "below" else limits.high,
        }[status]
        return f"{name} is {self.value:.3g}, {word} {bound:.3g}: {_MEANING[self.metric_type]}"
