"""Maps of spaces of constant curvature, float64 inside.

Points are in the κ-stereographic model: the Poincaré ball of radius 1/√−κ for κ < 0, the plane for
κ = 0, the stereographic projection of the sphere of radius 1/√κ for κ > 0; everything is smooth in
κ through 0. The metric at the origin is 4 times the Euclidean one, as in the literature, so
distances go to 2‖x − y‖ as κ → 0.

Maps that only change the length of a vector come with their derivatives through :func:`radial`.

References
----------
Bachmann et al., Constant curvature graph convolutional networks, arXiv:1911.05076; Skopek et al.,
Mixed-curvature variational autoencoders, arXiv:1911.08411.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arrays import Array


@dataclass(slots=True)
class Profile:
    """How a radial map x ↦ ratio(‖x‖) · x acts at given lengths r."""

    ratio: Array
    """f(r) / r where f(r) is the new length; f′(0) at 0."""
    slope: Callable[[], Array]
    """f′(r), asked for where there are gradients."""
    partials: dict[str, Callable[[], Array]] = field(default_factory=dict)
    """Likewise derivatives of the ratio by parameters, one for each head."""


RadialPullback = Callable[[Array], tuple[Array, dict[str, Array]]]


def lengths(array: Array) -> Array:
    """‖x‖ along the last axis, summed in float64."""
    from .simd import radial as kernels

    if kernels.takes(array):
        return kernels.lengths(array)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.sqrt(np.einsum("...d,...d->...", array, array, dtype=np.float64)))


def scaled(array: Array, ratio: Array, out: Array | None = None) -> Array:
    """Vectors (batch, heads, tokens, size) times a number each, rounded to their dtype first.

    In C order, or written to `out`, where that is given.
    """
    from .simd import radial as kernels

    if kernels.takes(array):
        found = np.empty(array.shape, array.dtype) if out is None else out
        return kernels.scaled(array, ratio, found)
    factor = ratio[..., None].astype(array.dtype)
    return np.asarray(np.multiply(array, factor, out=out, order="C"))


def radial(
    array: Array,
    profile: Callable[[Array], Profile],
    r: Array | None = None,
    out: Array | None = None,
) -> tuple[Array, RadialPullback]:
    """Apply a radial map to vectors (batch, heads, tokens, size).

    Returns the vectors in C order and their dtype, and a pullback that gives the gradient by the
    vectors and, for each parameter of the profile, that by its value for each head. Vectors without
    a gradient get none, finite or not. `r` are the lengths, where they are known already; the
    result is written to `out`, where that is given.
    """
    r = lengths(array) if r is None else r
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        at = profile(r)
        result = scaled(array, at.ratio, out)

    def pullback(gradient: Array) -> tuple[Array, dict[str, Array]]:
        live = np.any(gradient, axis=-1)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            along = np.einsum("...d,...d->...", gradient, array, dtype=np.float64)
            bend = np.where(r > 0, (at.slope() - at.ratio) / np.square(np.where(r > 0, r, 1)), 0)
            d_array = at.ratio[..., None] * gradient + (bend * along)[..., None] * array
            by = {
                name: np.where(live, along * partial(), 0).sum(axis=(0, -1))
                for name, partial in at.partials.items()
            }
        return np.where(live[..., None], d_array, 0).astype(array.dtype), by

    return result, pullback


def tan_k(x: Any, curvature: Any) -> Array:
    """tan(√κ x)/√κ, x, or tanh(√−κ x)/√−κ."""
    x, k = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(curvature, np.float64))
    root = np.sqrt(np.abs(k))
    z = root * x
    safe = np.where(root > 0, root, 1)
    t = k * np.square(x)
    series = x * (1 + t * (1 / 3 + t * (2 / 15 + t * (17 / 315 + t * 62 / 2835))))
    closed = _by_sign(k, lambda: np.tan(np.where(k > 0, z, 0)), lambda: np.tanh(z)) / safe
    return np.asarray(np.where(np.abs(t) < 1e-3, series, closed))


def _by_sign(k: Array, positive: Callable[[], Array], other: Callable[[], Array]) -> Array:
    """`positive` where k > 0, else `other`; computed where there is any."""
    above = k > 0
    if above.all():
        return positive()
    return np.where(above, positive(), other()) if above.any() else other()


def tan_k_slope(x: Any, curvature: Any) -> Array:
    """∂ tan_k / ∂κ."""
    x, k = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(curvature, np.float64))
    t = k * np.square(x)
    series = x**3 * (1 / 3 + t * (4 / 15 + t * (51 / 315 + t * (248 / 2835 + t * 6910 / 155925))))
    value = tan_k(x, k)
    # sec² = 1 + tan², where tan² = κ tan_k².
    closed = (x * (1 + k * np.square(value)) - value) / np.where(k == 0, 1, 2 * k)
    return np.asarray(np.where(np.abs(t) < 1e-3, series, closed))


def arctan_k(x: Any, curvature: Any) -> Array:
    """The inverse of :func:`tan_k` around 0: arctan(√κ x)/√κ, x, or artanh(√−κ x)/√−κ."""
    x, k = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(curvature, np.float64))
    root = np.sqrt(np.abs(k))
    z = root * x
    safe = np.where(root > 0, root, 1)
    t = k * np.square(x)
    series = x * (1 - t * (1 / 3 - t * (1 / 5 - t * (1 / 7 - t * (1 / 9 - t / 11)))))
    inside = np.where((k < 0) & (np.abs(z) < 1), z, 0)
    closed = _by_sign(k, lambda: np.arctan(z), lambda: np.arctanh(inside)) / safe
    closed = np.where((k < 0) & (np.abs(z) >= 1), np.copysign(np.inf, x), closed)
    return np.asarray(np.where(np.abs(t) < 1e-3, series, closed))


def arctan_k_slope(x: Any, curvature: Any) -> Array:
    """∂ arctan_k / ∂κ."""
    x, k = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(curvature, np.float64))
    t = k * np.square(x)
    series = -(x**3) * (1 / 3 - t * (2 / 5 - t * (3 / 7 - t * (4 / 9 - t * 5 / 11))))
    closed = (x / (1 + t) - arctan_k(x, k)) / np.where(k == 0, 1, 2 * k)
    return np.asarray(np.where(np.abs(t) < 1e-3, series, closed))


def project(points: Array, curvature: float, limit: float = 1 - 1e-15) -> Array:
    """Points beyond `limit` radii of the ball moved there along their direction; κ ≥ 0: as is."""
    points = np.asarray(points, np.float64)
    if curvature >= 0:
        return points
    r, most = lengths(points), limit / np.sqrt(-curvature)
    factor = np.where(r > most, most / np.where(r > most, r, 1), 1)
    return np.asarray(points * factor[..., None])


def mobius_add(x: Array, y: Array, curvature: float) -> Array:
    """x ⊕ y: the translation that moves the origin to x, applied to y."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    k = curvature
    xy = np.sum(x * y, axis=-1, keepdims=True)
    xx = np.sum(x * x, axis=-1, keepdims=True)
    yy = np.sum(y * y, axis=-1, keepdims=True)
    above = (1 - 2 * k * xy - k * yy) * x + (1 + k * xx) * y
    return np.asarray(above / (1 - 2 * k * xy + k * k * xx * yy))


def distance(x: Array, y: Array, curvature: float) -> Array:
    """Geodesic distance, from ‖x − y‖ itself: exact for points that are near each other.

    d = 2 asn_κ(‖x − y‖ / √((1 + κ‖x‖²)(1 + κ‖y‖²))).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    k = float(curvature)
    s = lengths(x - y) / np.sqrt(_conformal(x, k) * _conformal(y, k))
    if k == 0:
        return np.asarray(2 * s)
    root = np.sqrt(abs(k))
    return np.asarray(
        2 / root * (np.arcsin(np.minimum(root * s, 1)) if k > 0 else np.arcsinh(root * s))
    )


def _conformal(x: Array, k: float) -> Array:
    """1 + κ‖x‖², without loss of digits where κ‖x‖² → −1."""
    z = np.sqrt(abs(k)) * lengths(x)
    return np.asarray((1 - z) * (1 + z) if k < 0 else 1 + z * z)


def exp_map(tangent: Array, curvature: float, origin: Array | None = None) -> Array:
    """The point at which the geodesic from `origin` in the direction of `tangent` ends.

    exp_p(v) = p ⊕ tan_κ(λ_p ‖v‖/2) v̂ with λ_p = 2/(1 + κ‖p‖²). The geodesic has length λ_p ‖v‖.
    """
    tangent = np.asarray(tangent, np.float64)
    half = 1.0 if origin is None else 1 / _conformal(np.asarray(origin, np.float64), curvature)
    r = lengths(tangent)
    new = tan_k(r * half, curvature)
    step = tangent * (np.where(r > 0, new / np.where(r > 0, r, 1), half))[..., None]
    return step if origin is None else mobius_add(origin, step, curvature)


def log_map(points: Array, curvature: float, origin: Array | None = None) -> Array:
    """The tangent vector at `origin` that leads to the point: the inverse of :func:`exp_map`."""
    points = np.asarray(points, np.float64)
    if origin is None:
        moved, scale = points, np.ones(())
    else:
        moved = mobius_add(-np.asarray(origin, np.float64), points, curvature)
        scale = _conformal(np.asarray(origin, np.float64), curvature)
    r = lengths(moved)
    # From the distance, which keeps its digits where ‖(−p) ⊕ x‖ is next to the boundary.
    new = arctan_k(r, curvature) if origin is None else distance(origin, points, curvature) / 2
    return np.asarray(moved * (scale * np.where(r > 0, new / np.where(r > 0, r, 1), 1))[..., None])


def sphere_exp(tangent: Array, origin: Array) -> Array:
    """On the unit sphere in R^d: cos‖v‖ p + sin‖v‖ v̂ for a tangent v ⟂ p."""
    tangent, origin = np.asarray(tangent, np.float64), np.asarray(origin, np.float64)
    r = lengths(tangent)[..., None]
    return np.asarray(np.cos(r) * origin + np.sinc(r / np.pi) * tangent)


def sphere_log(points: Array, origin: Array) -> Array:
    """The inverse of :func:`sphere_exp`, with the angle from its tangent: good near 0 and π."""
    points, origin = np.asarray(points, np.float64), np.asarray(origin, np.float64)
    cosine = np.sum(points * origin, axis=-1)
    across = points - cosine[..., None] * origin
    sine = lengths(across)
    angle = np.arctan2(sine, cosine)
    return np.asarray(
        across * np.where(sine > 0, angle / np.where(sine > 0, sine, 1), 1)[..., None]
    )


__all__ = [
    "Profile",
    "RadialPullback",
    "arctan_k",
    "arctan_k_slope",
    "distance",
    "exp_map",
    "lengths",
    "log_map",
    "mobius_add",
    "project",
    "radial",
    "scaled",
    "sphere_exp",
    "sphere_log",
    "tan_k",
    "tan_k_slope",
]
