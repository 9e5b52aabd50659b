"""Options of the mechanisms that diffuse over the graph of the keys."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import ClassVar, Self

from pydantic import Field, model_validator

from polyattn_core.config import AttentionConfig


class LaplacianType(StrEnum):
    """How the Laplacian of weights W with degrees D = diag(W 1) is normalised."""

    UNNORMALIZED = "unnormalized"
    """D − W."""
    SYMMETRIC_NORMALIZED = "symmetric-normalized"
    """I − D^{−½} W D^{−½}: symmetric, eigenvalues in [0, 2]."""
    RANDOM_WALK = "random-walk"
    """I − D^{−1} W: moves probability, and keeps its sum."""


class KeyGraphConfig(AttentionConfig):
    """What every mechanism on the graph of the keys has: its scores, and that graph."""

    position: ClassVar[None] = None
    reproducible: ClassVar[bool] = False
    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head size) by default."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability to drop a weight, before it is diffused, while training."""
    softcap: float | None = Field(default=None, gt=0)
    """Cap scores softly: softcap · tanh(score / softcap)."""
    sigma: float | None = Field(default=None, gt=0)
    """Bandwidth of the Gaussian kernel; the median distance of the keys by default."""
    k: int = Field(default=16, ge=1)
    """Neighbours of a key where the graph is one of nearest neighbours."""
    tolerance: float | None = Field(default=None, gt=0, lt=1)
    """Largest error of the filter at any eigenvalue; 10⁻⁶ in float32, 10⁻¹² in float64."""


class FilterConfig(KeyGraphConfig):
    """Adds the choice of the graph and of its Laplacian."""

    use_knn: bool = False
    """Keep the k nearest neighbours of each key (and whose neighbour it is), not all pairs."""
    laplacian_type: LaplacianType = LaplacianType.SYMMETRIC_NORMALIZED
    """`unnormalized`, `symmetric-normalized` or `random-walk`."""

    @model_validator(mode="after")
    def _check_neighbours(self) -> Self:
        if self.k != type(self).model_fields["k"].default and not self.use_knn:
            raise ValueError("k: counts neighbours, which only use_knn=True looks for")
        return self


class DiffusionConfig(FilterConfig):
    """Options of `diffusion`."""

    t: float = Field(default=1.0, ge=0)
    """Diffusion time."""
    num_steps: int | None = Field(default=None, ge=1)
    """Explicit Euler steps. By default the heat kernel is expanded to the tolerance instead."""

    @model_validator(mode="after")
    def _check_stable(self) -> Self:
        steps = self.num_steps
        if steps is None:
            return self
        if self.tolerance is not None:
            raise ValueError("tolerance: explicit Euler steps (num_steps) do not keep to one")
        if self.laplacian_type is not LaplacianType.UNNORMALIZED and steps < self.t:
            raise ValueError(
                f"num_steps: at least {math.ceil(self.t)}, as explicit Euler is unstable for steps "
                f"over 1 (eigenvalues reach 2); or none, for the expansion that has no such bound"
            )
        return self


class MultiscaleConfig(FilterConfig):
    """Options of `multiscale-diffusion`."""

    t: float = Field(default=1.0, ge=0)
    """Diffusion time of the last scale."""
    scales: int = Field(default=4, ge=1, le=64)
    """Number of scales."""
    ratio: float = Field(default=2.0, gt=1)
    """Ratio of the times of successive scales."""


class PageRankConfig(FilterConfig):
    """Options of `ppr`."""

    alpha: float = Field(default=0.15, gt=0, le=1)
    """Probability to teleport back to where the walk began."""
    laplacian_type: LaplacianType = LaplacianType.RANDOM_WALK
    """`unnormalized`, `symmetric-normalized` or `random-walk`."""


class ChebyshevConfig(FilterConfig):
    """Options of `chebyshev`."""

    tolerance: ClassVar[None] = None  # type: ignore[misc]
    order: int = Field(default=8, ge=1, le=1024)
    """Degree of the polynomial: how many edges far it reaches."""


class WaveConfig(FilterConfig):
    """Options of `wave`."""

    t: float = Field(default=1.0, ge=0)
    """Time."""


class AdvectionConfig(KeyGraphConfig):
    """Options of `advection-diffusion`."""

    t: float = Field(default=1.0, ge=0)
    """Time."""
