"""Options of the transport mechanisms."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from polyattn_core.config import AttentionConfig


class EntropicConfig(AttentionConfig):
    """What every mechanism with entropic regularisation has."""

    scale: float | None = Field(default=None, gt=0)
    """Inverse of the regularisation, the factor of products or squared distances; 1/√(head size) by
    default. Large scales approach unregularised transport."""
    iterations: int = Field(default=10, ge=1, le=10_000)
    """Sinkhorn iterations at most."""
    tolerance: float = Field(default=0.0, ge=0)
    """A head stops when its logarithmic row sums are off by no more. 0 runs all iterations, with
    which results do not depend on the dtype's rounding."""


class SinkhornConfig(EntropicConfig):
    """Options of `sinkhorn`."""

    causal: bool = False
    """Hide later keys. The balanced plan then has little freedom; see the mechanism's notes."""


class UnbalancedOTConfig(EntropicConfig):
    """Options of `unbalanced-ot`."""

    causal: bool = False
    """Hide later keys."""
    query_penalty: float = Field(default=1.0, gt=0, le=1e6)
    """Price of a query's mass deviating from 1, in units of the regularisation. Small: far queries
    attend to little; large: every query attends in full."""
    key_penalty: float = Field(default=1.0, gt=0, le=1e6)
    """Price of a key's mass deviating from queries ÷ keys, in the same units. Small: keys may be
    attended to by all or by none; large: all equally."""


class CentroidOTConfig(EntropicConfig):
    """Options of `centroid-ot`."""

    centroids: int = Field(default=32, ge=1, le=4096)
    """Clusters of the keys of each head."""
    rounds: int = Field(default=5, ge=0, le=1000)
    """Rounds of k-means after seeding."""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    """Of the draws with which clusters are seeded."""


class LowRankOTConfig(EntropicConfig):
    """Options of `low-rank-ot`."""

    rank: int = Field(default=64, ge=1, le=4096)
    """Positive features of the kernel: the rank of the plan is at most this."""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    """Of the orthogonal random directions of the features."""


class SlicedWassersteinConfig(AttentionConfig):
    """Options of `sliced-wasserstein`."""

    projections: int = Field(default=16, ge=1, le=4096)
    """Random directions that distributions are projected on."""
    candidates: int = Field(default=64, ge=1, le=4096)
    """Keys for which the transport cost is computed, found by the cheap filter 2q·k − ‖k‖²."""
    power: float = Field(default=2.0, ge=1, le=8)
    """p of the transport cost |x − y|ᵖ."""
    sharpness: float = Field(default=1.0, gt=0)
    """Factor of the transport cost in the soft-max."""
    window: int = Field(default=1, ge=1, le=256)
    """A token's distribution is that of the last so many tokens, its own included.
    Where token sets are passed, they are the distributions instead."""
    representation: Literal["exact", "quantiles", "histogram"] = "exact"
    """How a projected distribution is held: all its sorted numbers, `bins` quantiles, or a
    cumulative histogram of `bins` (for power 1)."""
    bins: int | None = Field(default=None, ge=1, le=1024)
    """Quantiles or bins, 8 by default; the representation "exact" has none."""
    bound: float | None = Field(default=None, gt=0)
    """Histograms cover projections from −bound to bound, 4 by default; what is outside counts at
    the border."""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    """Of the random directions."""
    causal: bool = False
    """Hide later keys."""

    @model_validator(mode="after")
    def _check_representation(self) -> Self:
        if self.representation == "histogram" and self.power != 1:
            raise ValueError(
                'power: histograms give the transport cost of power 1; "quantiles" that of others'
            )
        if self.representation == "exact" and self.bins is not None:
            raise ValueError(
                'bins: representation="exact" has none; "quantiles" and "histogram" do'
            )
        if self.representation != "histogram" and self.bound is not None:
            raise ValueError('bound: only representation="histogram" has one')
        return self

    @property
    def levels(self) -> int:
        """Quantiles or bins that are used."""
        return self.bins or 8

    @property
    def range(self) -> float:
        """Half the range of histograms that is used."""
        return self.bound or 4.0
