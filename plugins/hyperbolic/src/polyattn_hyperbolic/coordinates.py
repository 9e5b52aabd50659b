"""From coordinates to the unit hyperboloid and back, with pullbacks.

Inside, a point is the spatial part X of (√(1 + |X|²), X) on the hyperboloid of curvature −1: near
the boundary of the ball, where 1 − |x| has no digits left, X still has all of its own. `root` is
√−κ of each head, (heads,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError
from polyattn_core.geometry import Profile, lengths, radial, scaled

LiftPullback = Callable[[Array], tuple[Array, Array]]
"""Gradient by X → gradients by the vectors and by `root` (heads,)."""


@dataclass(frozen=True, slots=True)
class Chart:
    """How vectors are read as points."""

    coordinates: str
    scale: float
    max_radius: float
    outside: str

    def lengths(self, array: Array) -> Array:
        """Length of the part of a vector that says where the point is."""
        return lengths(array[..., 1:] if self.coordinates == "hyperboloid" else array)

    def radius(self, r: Array, root: Array) -> Array:
        """Distance from the origin in radii of curvature, at most `max_radius`."""
        z = root[:, None] * r
        with np.errstate(invalid="ignore"):
            if self.coordinates == "tangent":
                far = self.scale * z
            elif self.coordinates == "ball":
                far = 2 * np.arctanh(np.minimum(z, np.tanh(self.max_radius / 2)))
            else:
                far = np.arcsinh(z)
            return np.asarray(np.minimum(far, self.max_radius))

    def check(self, array: Array, r: Array, root: Array, argument: str) -> None:
        """Refuse points that are outside, where that is what the option says."""
        if self.outside != "refuse":
            return
        z = root[:, None] * r
        limit = self._limit()
        far = np.where(np.isfinite(z), z, 0).max(initial=0)
        if far > limit * (1 + 1e-12):
            raise ArgumentError(
                argument,
                f"a vector of length {far:.9g} in units of the radius of curvature",
                f"{self.coordinates} coordinates of at most {limit:.9g} (max_radius="
                f"{self.max_radius:g}), or outside='project'",
            )
        if self.coordinates == "hyperboloid":
            time = root[:, None] * array[..., 0].astype(np.float64)
            off = np.abs(time - np.sqrt(1 + np.square(z)))
            # As exact as the coordinates of points of this length can be.
            allowed = 64 * np.finfo(array.dtype).eps * (1 + np.square(z))
            if np.any(off > allowed):
                raise ArgumentError(
                    argument,
                    f"a point {np.nanmax(off):.3g} off the hyperboloid",
                    "time coordinates √(1/−κ + |x|²), or outside='project'",
                )

    def _limit(self) -> float:
        """Length at `max_radius`, times root."""
        if self.coordinates == "tangent":
            return self.max_radius / self.scale
        inside = self.coordinates == "ball"
        return float(np.tanh(self.max_radius / 2) if inside else np.sinh(self.max_radius))

    def lift(
        self, array: Array, r: Array, root: Array, out: Array | None = None
    ) -> tuple[Array, LiftPullback]:
        """X of the points, and its pullback. Points outside are moved to `max_radius`."""
        ambient = self.coordinates == "hyperboloid"
        spatial, pull = radial(
            array[..., 1:] if ambient else array, lambda r: self._profile(r, root), r, out
        )

        def pullback(gradient: Array) -> tuple[Array, Array]:
            d_array, by = pull(gradient)
            if ambient:  # the time coordinate is implied
                d_array = np.concatenate((np.zeros_like(d_array[..., :1]), d_array), axis=-1)
            return d_array, by["root"]

        return spatial, pullback

    def _profile(self, r: Array, root: Array) -> Profile:
        wide = root[:, None]
        limit = self._limit() / wide
        inside = ~(r > limit)
        z = wide * np.minimum(r, limit)
        if self.coordinates == "tangent":
            new = np.sinh(self.scale * z)
        else:
            new = 2 * z / ((1 - z) * (1 + z)) if self.coordinates == "ball" else z

        def by_z() -> Array:
            if self.coordinates == "tangent":
                return np.asarray(self.scale * np.cosh(self.scale * z))
            if self.coordinates == "ball":
                return np.asarray(2 * (1 + z * z) / np.square((1 - z) * (1 + z)))
            return np.ones_like(z)

        ratio = np.where(r > 0, new / np.where(r > 0, r, 1), wide * self._slope_at_origin())
        return Profile(
            ratio,
            lambda: np.where(inside, wide * by_z(), 0),
            {"root": lambda: np.where(inside, by_z(), 0)},
        )

    def _slope_at_origin(self) -> float:
        return {"tangent": self.scale, "ball": 2.0}.get(self.coordinates, 1.0)

    def drop(
        self, direction: Array, factor: Array, length: Array, root: Array
    ) -> tuple[Array, LiftPullback]:
        """The coordinates of points X = factor · direction of known lengths: undoes `lift`.

        The pullback is by X.
        """
        wide = root[:, None]

        def profile(m: Array) -> Profile:
            time = np.sqrt(1 + np.square(m))
            if self.coordinates == "tangent":
                new, by_m = np.arcsinh(m) / self.scale, 1 / time / self.scale
            elif self.coordinates == "ball":
                new, by_m = m / (1 + time), 1 / (time * (1 + time))
            else:
                new, by_m = m, np.ones_like(m)
            ratio = np.where(m > 0, new / np.where(m > 0, m, 1), by_m) / wide
            return Profile(ratio, lambda: by_m / wide, {"root": lambda: -ratio / wide})

        result = scaled(direction, profile(length).ratio * factor)
        time = np.sqrt(1 + np.square(length)) / wide

        def pullback(gradient: Array) -> tuple[Array, Array]:
            spatial = scaled(direction, factor)
            pull = radial(spatial, profile, length)[1]
            if self.coordinates != "hyperboloid":
                return _rooted(pull(gradient))
            d_spatial, d_root = _rooted(pull(gradient[..., 1:]))
            by_time = gradient[..., 0]
            share = (by_time / (np.square(wide) * time)).astype(spatial.dtype)
            d_root = d_root - (by_time * time / wide).sum(axis=(0, -1))
            return d_spatial + share[..., None] * spatial, d_root

        if self.coordinates == "hyperboloid":
            result = np.concatenate((time[..., None].astype(result.dtype), result), axis=-1)
        return result, pullback


def _rooted(found: tuple[Array, dict[str, Array]]) -> tuple[Array, Array]:
    return found[0], found[1]["root"]


def lift_with_time(chart: Chart, array: Array, r: Array, root: Array) -> tuple[Array, LiftPullback]:
    """(√(1 + |X|²), X) of the points, and its pullback."""
    size = array.shape[-1] + (chart.coordinates != "hyperboloid")
    whole = np.empty((*array.shape[:-1], size), array.dtype)
    spatial, pull = chart.lift(array, r, root, whole[..., 1:])
    whole[..., 0] = np.cosh(chart.radius(r, root))

    def pullback(gradient: Array) -> tuple[Array, Array]:
        # Vectors without a gradient get none, finite or not.
        live = np.any(gradient, axis=-1, keepdims=True)
        found = gradient[..., 1:] + gradient[..., :1] / whole[..., :1] * spatial
        return pull(np.where(live, found, 0))

    return whole, pullback


@dataclass(frozen=True, slots=True)
class Centroid:
    """The point X = factor · direction above a weighted mean of points (time, X)."""

    direction: Array
    factor: Array
    length: Array
    """|X|, like `factor` (batch, heads, queries)."""
    pullback: Callable[[Array], Array]
    """Gradients by X → by the mean."""


def centroid(mean: Array) -> Centroid:
    """Where the hyperboloid is above a mean of its points; 0 where there are none.

    Scaled to the hyperboloid the mean is the Lorentzian centroid; its shadow on the Klein disc,
    X/time, is the Einstein midpoint: the same point.
    """
    time, spatial = mean[..., 0].astype(np.float64), mean[..., 1:]
    length = lengths(spatial)
    square = np.square(time) - np.square(length)
    # Rounding may leave the cone where all points are far out in one direction.
    square = np.maximum(square, np.finfo(mean.dtype).eps * np.square(time))
    factor = np.where(time > 0, 1 / np.sqrt(np.where(time > 0, square, 1)), 0)
    factor = np.where(np.isnan(time), np.nan, factor)

    def pullback(gradient: Array) -> Array:
        rounded = factor[..., None].astype(mean.dtype)
        along = np.einsum("...d,...d->...", gradient, spatial)[..., None] * rounded**3
        return np.concatenate(
            (-along * mean[..., :1], rounded * gradient + along * spatial), axis=-1
        )

    return Centroid(spatial, factor, factor * length, pullback)
