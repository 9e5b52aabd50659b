"""Options of the hyperbolic mechanisms."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from polyattn_core.streaming import StreamingConfig

Negative = Annotated[float, Field(lt=0, ge=-1e6)]


class SpaceConfig(StreamingConfig):
    """What all mechanisms of this family have: how vectors become points."""

    coordinates: Literal["tangent", "ball"] = "tangent"
    """What vectors are: tangent vectors at the origin, as long as the point is far from it, or
    points of the Poincaré ball."""
    scale: float | None = Field(default=None, gt=0)
    """Tangent vectors are multiplied by this; 1/√(head size) by default, which puts normally
    distributed vectors at distance 1 from the origin. Only for tangent vectors."""
    beta: float = Field(default=1.0, ge=0, le=1e6)
    """Initial value of the learned factor β of the distances of each head."""
    outside: Literal["project", "refuse"] = "project"
    """Points further than `max_radius` from the origin, among them those outside the ball, are
    moved there along their direction, or an error."""
    max_radius: float = Field(default=16.0, gt=0, le=18)
    """Largest distance from the origin, in radii of curvature: at 18 float64 ends."""
    precision: Literal["auto", "input"] = "auto"
    """Compute float32 in float64 where points are so far out that float32 might see a point 0.05
    radii of curvature from itself, or always as passed."""

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.scale is not None and self.coordinates != "tangent":
            raise ValueError("scale: only for coordinates='tangent'")
        return self


class HyperbolicConfig(SpaceConfig):
    """Options of `hyperbolic`."""

    coordinates: Literal["tangent", "ball", "hyperboloid"] = "tangent"  # type: ignore[assignment]
    """What vectors are: tangent vectors at the origin, as long as the point is far from it; points
    of the Poincaré ball; points of the hyperboloid with their time coordinate first, off which
    they are moved along the time axis or refused as `outside` says. Outputs are in the same
    coordinates."""
    curvature: Negative = -1.0
    """Initial value of the learned curvature of each key head."""
    aggregation: Literal["midpoint", "average"] = "midpoint"
    """Values are points, of which the weighted midpoint is taken, or plain vectors, averaged."""

    @model_validator(mode="after")
    def _check_coordinates(self) -> Self:
        if self.coordinates == "hyperboloid" and self.head_dim < 2:
            raise ValueError("coordinates: a hyperboloid takes a head size of 2 or more")
        return self


class LorentzConfig(HyperbolicConfig):
    """Options of `lorentz`."""


class LorentzCascadeConfig(SpaceConfig):
    """Options of `lorentz-cascade`."""

    curvatures: tuple[Negative, ...] = Field(default=(-0.25, -1.0, -4.0), min_length=1)
    """Initial curvature of each level, learned for each key head. Each level has a slice of the
    head; where the head has fewer coordinates than there are levels, the last ones have none."""


class MixedCurvatureConfig(SpaceConfig):
    """Options of `mixed-curvature`."""

    euclidean_dim: int | None = Field(default=None, ge=0)
    """Coordinates of the Euclidean component, of all heads together."""
    hyperbolic_dim: int | None = Field(default=None, ge=0)
    """Coordinates of the hyperbolic component, of all heads together."""
    spherical_dim: int | None = Field(default=None, ge=0)
    """Coordinates of the spherical component, of all heads together. Where none of the three is
    given, a quarter of each head is hyperbolic, a quarter spherical (if that makes 3 or more), the
    rest Euclidean; where some are, the others are 0."""
    curvature_h: Negative = -1.0
    """Initial curvature of the hyperbolic component, learned for each key head."""
    curvature_s: float = Field(default=1.0, gt=0, le=1e6)
    """Curvature of the spherical component, which scales its distances."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Coordinates of a head in the Euclidean, hyperbolic and spherical component."""
        given = (self.euclidean_dim, self.hyperbolic_dim, self.spherical_dim)
        if given == (None, None, None):
            quarter = self.head_dim // 4
            spherical = quarter if quarter > 2 else 0
            return self.head_dim - quarter - spherical, quarter, spherical
        e, h, s = ((size or 0) // self.heads for size in given)
        return e, h, s

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        names = ("euclidean_dim", "hyperbolic_dim", "spherical_dim")
        given = {name: getattr(self, name) or 0 for name in names}
        if all(getattr(self, name) is None for name in names):
            return self
        for name, size in given.items():
            if size % self.heads:
                raise ValueError(f"{name}: {size} is not a multiple of heads {self.heads}")
        if sum(given.values()) != self.dim:
            raise ValueError(
                f"euclidean_dim: the components have {sum(given.values())} coordinates together; "
                f"dim is {self.dim}"
            )
        return self
