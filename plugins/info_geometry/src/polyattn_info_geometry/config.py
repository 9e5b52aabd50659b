"""Options of the information-geometric tools and mechanisms."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyattn_core.config import Schema
from polyattn_core.streaming import ScaledConfig, StreamingConfig


class FisherConfig(Schema):
    """Options of `FisherMetric`."""

    eps: float = Field(default=1e-8, gt=0, lt=1)
    """Least probability that is divided by."""
    max_cg_iters: int = Field(default=50, ge=1, le=100_000)
    """Most iterations of a conjugate-gradient solve."""
    cg_tol: float = Field(default=1e-6, gt=0, lt=1)
    """Residual, relative to the right-hand side, at which a solve ends."""
    damping: float = Field(default=0.0, ge=0, le=1e6)
    """λ of F + λI in solves; 0 is the pseudo-inverse."""


class NaturalGradientConfig(Schema):
    """Options of `NaturalGradient`."""

    lr: float = Field(default=0.1, gt=0, le=1e6)
    """Length of a step."""
    use_diagonal: bool = False
    """Divide by the diagonal of F alone."""
    solver: Literal["exact", "cg"] = "exact"
    """Closed form, or conjugate gradients; where `use_diagonal` is off."""
    damping: float | None = Field(default=None, ge=0, le=1e6)
    """λ of F + λI; that of `fisher` by default."""
    fisher: FisherConfig = FisherConfig()
    """Options of the metric."""


class FisherRaoConfig(StreamingConfig):
    """Options of `fisher-rao`."""

    sharpness: float = Field(default=4.0, gt=0, le=1e6)
    """β: how fast a weight falls with the distance, which is at most π."""
    temperature: float = Field(default=1.0, gt=0, le=1e6)
    """Temperature of the soft-max that maps vectors to distributions."""


class KLBregmanConfig(StreamingConfig):
    """Options of `kl-bregman`."""

    sharpness: float = Field(default=1.0, gt=0, le=1e6)
    """β: how fast a weight falls with the divergence."""
    temperature: float = Field(default=1.0, gt=0, le=1e6)
    """Temperature of the soft-max that maps vectors to distributions."""


class NaturalGradientAttentionConfig(ScaledConfig):
    """Options of `natural-gradient`."""

    steps: int = Field(default=1, ge=0, le=64)
    """Natural-gradient steps of each query before it attends."""
    lr: float = Field(default=0.5, gt=0, le=1)
    """Length of a step."""
    damping: float = Field(default=1.0, gt=0, le=1e6)
    """λ added to the Fisher information of each coordinate."""
