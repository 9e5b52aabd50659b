"""Options of the hyperbolic mechanisms."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from polyattn_core.streaming import StreamingConfig

Negative = Annotated[float, Field(lt=0, ge=-1e6)]


class HyperbolicSpaceConfig(StreamingConfig):
    """What all mechanisms of this family have: how vectors become points, and back."""

    coordinates: Literal["tangent", "ball", "hyperboloid"] = "tangent"
    """What vectors are: tangent vectors at the origin, as long as the point is far from it; points
    of the Poincaré ball; points of the hyperboloid with their time coordinate first. Outputs are
    in the same coordinates."""
    scale: float | None = Field(default=None, gt=0)
    """Tangent vectors are multiplied by this; 1/√(head size) by default, which puts normally
    distributed vectors at distance 1 from the origin. Only for tangent vectors."""
    beta: float = Field(default=1.0, ge=0, le=1e6)
    """Initial value of the learned factor β of the distances of each head."""
    aggregation: Literal["midpoint", "average"] = "midpoint"
    """Values are points, of which the weighted midpoint is taken, or plain vectors, averaged."""
    outside: Literal["project", "refuse"] = "project"
    """Points further than `max_radius` from the origin, among them those outside the ball: moved
    there along their direction, or an error. Off the hyperboloid: moved along the time axis."""
    max_radius: float = Field(default=16.0, gt=0, le=18)
    """Largest distance from the origin, in radii of curvature: at 18 float64 ends."""
    precision: Literal["auto", "input"] = "auto"
    """Compute float32 in float64 where points are so far out that float32 would tell them apart
    by no more than 0.05 radii of curvature, or always as passed."""

    @model_validator(mode="after")
    def _check_coordinates(self) -> Self:
        if self.scale is not None and self.coordinates != "tangent":
            raise ValueError("scale: only for coordinates='tangent'")
        if self.coordinates == "hyperboloid" and self.head_dim < 2:
            raise ValueError("coordinates: a hyperboloid takes a head size of 2 or more")
        return self


class HyperbolicConfig(HyperbolicSpaceConfig):
    """Options of `hyperbolic`."""

    curvature: Negative = -1.0
    """Initial value of the learned curvature of each key head."""


class LorentzConfig(HyperbolicConfig):
    """Options of `lorentz`."""


class LorentzCascadeConfig(HyperbolicSpaceConfig):
    """Options of `lorentz-cascade`."""

    coordinates: Literal["tangent", "ball"] = "tangent"  # type: ignore[assignment]
    """What the slices of a vector are: tangent vectors at the origin, or points of the ball."""
    curvatures: tuple[Negative, ...] = Field(default=(-0.25, -1.0, -4.0), min_length=1)
    """Initial curvature of each level, the same for all heads; learned."""
