"""Options of the topology family."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

from pydantic import Field, model_validator

from polyattn_core.config import AttentionConfig, Schema
from polyattn_core.streaming import ScaledConfig


class CoherenceMetric(StrEnum):
    """How the coherence of keys is measured; see `WindowCoherence`."""

    BOUNDARY_MASS = "boundary-mass"
    CUT_PROXY = "cut-proxy"
    DISAGREEMENT = "disagreement"
    SIMILARITY_VARIANCE = "similarity-variance"


class AttentionMode(StrEnum):
    """What a gate lets through."""

    STABLE = "stable"
    CAUTIOUS = "cautious"
    FREEZE = "freeze"


class GateState(Schema):
    """Everything a gate remembers. Goes through JSON unchanged."""

    mode: AttentionMode | None = None
    """None before the first call."""
    coherence: float | None = Field(default=None, ge=0, le=1)
    """Of the keys that were last measured."""
    retained: int = Field(default=0, ge=0)
    """Number of keys of the last call that was not frozen, or of the first call."""
    fingerprint: str = ""
    """Of the keys that were last measured."""
    measured: int = Field(default=0, ge=0)
    """How often coherence was measured."""


class PolicyConfig(Schema):
    """When a gate changes its mode."""

    stable_threshold: float = Field(default=0.8, ge=0, le=1)
    """Coherence from which on all is well."""
    cautious_threshold: float = Field(default=0.5, ge=0, le=1)
    """Coherence from which on a frozen gate opens again."""
    freeze_threshold: float = Field(default=0.3, ge=0, le=1)
    """Coherence below which a gate freezes."""
    hysteresis: float = Field(default=0.05, ge=0, le=0.5)
    """By how much a threshold must be passed for a gate to change its mode."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.freeze_threshold <= self.cautious_threshold <= self.stable_threshold:
            raise ValueError(
                "cautious_threshold: between freeze_threshold and stable_threshold, in this order"
            )
        return self


class TopologyGatedConfig(AttentionConfig):
    """Options of `topology-gated`."""

    causal: bool = False
    """Hide later keys; the mode, however, is one of all keys."""
    inner: str = "flash"
    """The mechanism that is gated: any registered name."""
    inner_options: Mapping[str, Any] = {}
    """Its options beyond the layout of heads."""
    cautious: str = "top-k"
    """The mechanism of the cautious mode: a sparser one."""
    cautious_options: Mapping[str, Any] = {"k": 16}
    """Its options beyond the layout of heads."""
    metrics: tuple[CoherenceMetric, ...] = Field(default=tuple(CoherenceMetric), min_length=1)
    """Metrics of coherence, of which the mean is taken."""
    window: int | None = Field(default=None, ge=2, le=1 << 30)
    """Keys of a window, where keys are a sequence; None where their order means nothing."""
    sample: int | None = Field(default=256, ge=2)
    """Keys of each head that coherence looks at, where there are no windows; None for all."""
    policy: PolicyConfig = PolicyConfig()
    """When the mode changes."""


class MincutGatedConfig(ScaledConfig):
    """Options of `mincut-gated`."""

    threshold: float = Field(default=0.8, gt=0, le=4)
    """Normalised cut, over that of evenly similar keys, below which the cut closes the gate."""
    strength: float = Field(default=4.0, gt=0, le=1e4)
    """What a pair across a closed cut loses of its score."""

    @model_validator(mode="after")
    def _check_causal(self) -> Self:
        if self.causal:
            raise ValueError("causal: False: the cut is one of all keys")
        if self.position is not None:
            raise ValueError("position: none; the cut is one of directions")
        return self
