"""Options of `linear` and `favor`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyattn_core.config import AttentionConfig


class LinearConfig(AttentionConfig):
    """Options of `linear`."""

    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    features: Literal["elu+1", "relu"] = "elu+1"
    """The feature map φ, coordinate by coordinate: elu(x) + 1, or max(x, 0)."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of queries and keys before the feature map. Large ones bring elu + 1 close to relu."""
    epsilon: float = Field(default=0.0, ge=0)
    """Added to the normaliser: draws the output towards 0 where a query has little in common with
    all keys."""


class FavorConfig(AttentionConfig):
    """Options of `favor`."""

    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    features: int | None = Field(default=None, ge=1, le=1 << 20)
    """Number m of random projections; d·ln d by default, rounded up to a multiple of 16. The error
    falls like 1/√m, time grows like m."""
    kind: Literal["positive", "hyperbolic"] = "positive"
    """One exponential for each projection, or also that of its negative: twice the features, and a
    variance less than half as large."""
    orthogonal: bool = True
    """Draw the projections orthogonal to each other, d at a time, which lowers the variance."""
    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores whose soft-max is approximated; 1/√(head size) by default."""
    seed: int = Field(default=0, ge=0, lt=1 << 64)
    """Seed of the projections. All heads share them."""


class CosformerConfig(AttentionConfig):
    """Options of `cosformer`."""

    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    horizon: int | None = Field(default=None, ge=1)
    """Distance at which weights reach 0; the tokens of the longer side by default."""
    epsilon: float = Field(default=1e-6, ge=0)
    """Added to the normaliser: draws the output towards 0 where a query has little in common with
    all keys."""
