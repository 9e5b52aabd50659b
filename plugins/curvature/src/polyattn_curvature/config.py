"""Options of the mechanisms, the tangent-space mapper and the quantiser."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from polyattn_core.config import Schema
from polyattn_core.streaming import ScaledConfig, StreamingConfig

Negative = Annotated[float, Field(lt=0, ge=-1e6)]
Positive = Annotated[float, Field(gt=0, le=1e6)]


class FusedCurvatureConfig(ScaledConfig):
    """Options of `fused-mixed-curvature`."""

    euclidean_dim: int | None = Field(default=None, ge=0)
    """Coordinates of the Euclidean component, of all heads together."""
    hyperbolic_dim: int | None = Field(default=None, ge=0)
    """Coordinates of the hyperbolic component, points of the Poincaré ball; of all heads."""
    spherical_dim: int | None = Field(default=None, ge=0)
    """Coordinates of the spherical component, stereographic ones; of all heads. Where none of the
    three is given, a quarter of each head is hyperbolic, a quarter spherical, the rest Euclidean;
    where some are, the others are 0."""
    curvature_h: Negative = -1.0
    """Initial curvature of the hyperbolic component, learned for each key head."""
    curvature_s: Positive = 1.0
    """Initial curvature of the spherical component, learned for each key head."""
    weight_e: float = Field(default=1.0, ge=-1e6, le=1e6)
    """Initial weight of the Euclidean component, learned for each head."""
    weight_h: float = Field(default=1.0, ge=-1e6, le=1e6)
    """Initial weight of the hyperbolic component, learned for each head."""
    weight_s: float = Field(default=1.0, ge=-1e6, le=1e6)
    """Initial weight of the spherical component, learned for each head."""
    outside: Literal["project", "refuse"] = "project"
    """Hyperbolic points further than `max_radius` from the origin, among them those outside the
    ball, are moved there along their direction, or an error."""
    max_radius: float = Field(default=16.0, gt=0, le=36)
    """Largest distance of hyperbolic points from the origin, in radii of curvature."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Coordinates of a head in the Euclidean, hyperbolic and spherical component."""
        given = (self.euclidean_dim, self.hyperbolic_dim, self.spherical_dim)
        if given == (None, None, None):
            quarter = self.head_dim // 4
            return self.head_dim - 2 * quarter, quarter, quarter
        e, h, s = ((size or 0) // self.heads for size in given)
        return e, h, s

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        names = ("euclidean_dim", "hyperbolic_dim", "spherical_dim")
        if all(getattr(self, name) is None for name in names):
            return self
        given = {name: getattr(self, name) or 0 for name in names}
        for name, size in given.items():
            if size % self.heads:
                raise ValueError(f"{name}: {size} is not a multiple of heads {self.heads}")
        if sum(given.values()) != self.dim:
            raise ValueError(
                f"euclidean_dim: the components have {sum(given.values())} coordinates together; "
                f"dim is {self.dim}"
            )
        return self


Bits = Annotated[int, Field(ge=2, le=16)]


class QuantisedCurvatureConfig(FusedCurvatureConfig):
    """Options of `quantised-mixed-curvature`."""

    dropout: float = Field(default=0.0, ge=0, le=0)
    """0: there is nothing to train."""
    bits_e: Bits = 8
    """Bits of a Euclidean coordinate of a key."""
    bits_h: Bits = 5
    """Bits of a log-mapped hyperbolic coordinate of a key."""
    bits_s: Bits = 5
    """Bits of a log-mapped spherical coordinate of a key."""
    chunk: int = Field(default=1024, ge=1)
    """Keys that are unpacked at a time."""


class SphericalConfig(StreamingConfig):
    """Options of `spherical`."""

    beta: float = Field(default=3.0, ge=0, le=1e6)
    """Initial value of the learned factor β of the angles of each head."""


class KappaStereographicConfig(StreamingConfig):
    """Options of `kappa-stereographic`."""

    curvature: float = Field(default=0.0, ge=-1e6, le=1e6)
    """Initial value of the learned curvature κ of each key head: spherical, flat, hyperbolic."""
    coordinates: Literal["tangent", "stereographic"] = "tangent"
    """What vectors are: tangent vectors at the origin, as long as the point is far from it, or
    points of the model: of the Poincaré ball for κ < 0, of the plane else."""
    scale: float | None = Field(default=None, gt=0)
    """Tangent vectors are multiplied by this; 1/√(head size) by default. Only for those."""
    beta: float = Field(default=1.0, ge=0, le=1e6)
    """Initial value of the learned factor β of the distances of each head."""
    outside: Literal["project", "refuse"] = "project"
    """Points further from the origin than `max_radius` radii of curvature where κ < 0, or than
    half-way round where κ > 0, are moved back along their direction, or an error."""
    max_radius: float = Field(default=12.0, gt=0, le=16)
    """Largest distance from the origin where κ < 0, in radii of curvature."""

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.scale is not None and self.coordinates != "tangent":
            raise ValueError("scale: only for coordinates='tangent'")
        return self


class TangentSpaceConfig(Schema):
    """Options of :class:`polyattn_curvature.tangent.TangentSpaceMapper`."""

    hyperbolic_dim: int = Field(default=128, ge=1)
    """Coordinates of a point."""
    curvature: float = Field(default=-1.0, ge=-1e6, le=1e6)
    """Curvature κ: the Poincaré ball of radius 1/√−κ, the plane, the sphere of radius 1/√κ."""
    learnable_curvature: bool = True
    """Is κ among the parameters that pullbacks have gradients for?"""
    learnable_origin: bool = False
    """Is the origin?"""
