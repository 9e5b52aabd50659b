"""From metrics to advice: a family of attention, what to do, and why."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from .metrics import Metric, MetricType, Status


class AttentionRecommendation(StrEnum):
    """Which family of attention suits data of this shape."""

    STANDARD = "standard"
    SPARSE = "sparse"
    GEOMETRIC = "geometric"
    DIFFUSION = "diffusion"


class Action(StrEnum):
    """What to do about the state of attention."""

    STABLE = "stable"
    """Nothing: go on."""
    CAUTIOUS = "cautious"
    """Attend more narrowly, trust results less."""
    FREEZE = "freeze"
    """Stop updating: the structure of the keys has fallen apart."""
    RAISE_TEMPERATURE = "raise-temperature"
    """Soften the weights: they have collapsed onto single keys."""
    LOWER_TEMPERATURE = "lower-temperature"
    """Sharpen the weights: they are nearly uniform."""
    REGULARISE = "regularise"
    """Compress: the representation carries more than it needs."""


_ADVICE = {
    MetricType.DIFFUSION_ENERGY: AttentionRecommendation.DIFFUSION,
    MetricType.OT_DISTANCE: AttentionRecommendation.GEOMETRIC,
    MetricType.ATTENTION_ENTROPY: AttentionRecommendation.SPARSE,
}
"""In the order in which equally bad metrics decide."""

COHERENT = 0.6
"""Coherence from which on neighbourhoods are worth attending to: between the noise on which dot
products did better and the least coherent structure on which distances did."""
FOUND = 0.9
"""Share of nearest keys from which on dot products find them well enough."""


def advise(
    metrics: Sequence[Metric], neighbour_recall: float | None = None
) -> tuple[AttentionRecommendation, Action]:
    """What the worst metric calls for; WATCH alone changes nothing.

    Diffusion where values are rough along the keys, geometric attention where queries and keys are
    distributed differently, sparse attention where the weights have collapsed. Where none of these
    is bad: geometric attention if neighbouring keys hang together and dot products miss them, and
    standard attention otherwise.

    The last rule is the one that was tested against outcomes. So was diffusion where keys hang
    together little, which did worse than standard attention and is advised no more.
    """
    found = {metric.metric_type: metric for metric in metrics}
    order = list(_ADVICE)
    bad = sorted(
        (metric for metric in metrics if metric.metric_type in _ADVICE and _is_bad(metric)),
        key=lambda metric: (-metric.status().severity, order.index(metric.metric_type)),
    )
    if bad:
        advice = _ADVICE[bad[0].metric_type]
    elif misses_neighbours(found.get(MetricType.TOPOLOGY_COHERENCE), neighbour_recall):
        advice = AttentionRecommendation.GEOMETRIC
    else:
        advice = AttentionRecommendation.STANDARD
    return advice, _action(found)


def misses_neighbours(coherence: Metric | None, neighbour_recall: float | None) -> bool:
    """Are there neighbourhoods, and do dot products look elsewhere?"""
    if coherence is None or neighbour_recall is None:
        return False
    return coherence.value >= COHERENT and neighbour_recall < FOUND


def _is_bad(metric: Metric) -> bool:
    return metric.status().severity >= Status.WARNING.severity


def _action(found: dict[MetricType, Metric]) -> Action:
    coherence = found.get(MetricType.TOPOLOGY_COHERENCE)
    if coherence is not None and coherence.status() is Status.CRITICAL:
        return Action.FREEZE
    entropy = found.get(MetricType.ATTENTION_ENTROPY)
    if entropy is not None and _is_bad(entropy):
        return Action.RAISE_TEMPERATURE
    compression = found.get(MetricType.IB_KL)
    if compression is not None and _is_bad(compression):
        return Action.REGULARISE
    if any(_is_bad(metric) for metric in found.values()):
        return Action.CAUTIOUS
    if entropy is not None and entropy.value > entropy.thresholds.high:
        return Action.LOWER_TEMPERATURE
    return Action.STABLE
