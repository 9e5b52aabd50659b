"""Between points of a curved space and vectors of its tangent spaces, with derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_core.geometry import (
    arctan_k,
    arctan_k_slope,
    exp_map,
    lengths,
    log_map,
    mobius_add,
    project,
)
from polyattn_core.parameters import Parameters

from .config import TangentSpaceConfig

_LIMIT = 1 - 2.0**-52
"""Of the radius of the ball: the last place where float64 still has 1 − r²."""


class TangentSpaceMapper:
    """Exact exponential and logarithmic maps at an origin of one's choice.

        log_p(x) = (1 + κ‖p‖²) · arctan_κ(‖m‖) m̂,   m = (−p) ⊕ x

    in the κ-stereographic model: the Poincaré ball for κ < 0, the stereographic projection of the
    sphere for κ > 0. Everything is computed in float64, whatever comes in; distances near the
    boundary of the ball come from ‖x − p‖ itself. Points outside the ball are projected onto its
    last shell, tangent vectors may have any length.

    O(d) time and memory a point.

    Parameters
    ----------
    config
        The options; curvature and origin start at −1 and 0.

    Attributes
    ----------
    parameters
        `curvature` () and `origin` (dimension,), which can be set, saved and loaded. Pullbacks have
        gradients for those that are learnable.

    References
    ----------
    Ganea et al., Hyperbolic neural networks, arXiv:1805.09112; Bachmann et al., Constant curvature
    graph convolutional networks, arXiv:1911.05076.

    Examples
    --------
    >>> import numpy as np
    >>> mapper = TangentSpaceMapper(TangentSpaceConfig(hyperbolic_dim=2))
    >>> points = np.array([[0.5, 0.0], [0.0, 1 - 1e-6]])
    >>> tangent = mapper.map_to_tangent(points)
    >>> tangent.round(4)
    array([[0.5493, 0.    ],
           [0.    , 7.2543]])
    >>> np.allclose(mapper.map_from_tangent(tangent), points, rtol=1e-12)
    True
    """

    def __init__(self, config: TangentSpaceConfig | None = None) -> None:
        self.config = TangentSpaceConfig() if config is None else config
        self.parameters = Parameters(
            {
                "curvature": np.array(self.config.curvature, np.float64),
                "origin": np.zeros(self.config.hyperbolic_dim),
            }
        )

    def map_to_tangent(self, points: Any) -> Array:
        """log_p of points (…, dimension), in their dtype."""
        array, origin, kappa = self._checked(points, "points")
        return log_map(project(array, kappa, _LIMIT), kappa, origin).astype(_kind(points))

    def map_from_tangent(self, tangent: Any) -> Array:
        """exp_p of tangent vectors (…, dimension), in their dtype."""
        array, origin, kappa = self._checked(tangent, "tangent")
        return project(exp_map(array, kappa, origin), kappa, _LIMIT).astype(_kind(tangent))

    def vjp(self, points: Any) -> tuple[Array, Callable[[Any], tuple[Array, dict[str, Array]]]]:
        """`map_to_tangent`, and a pullback: gradient → gradient by points, by parameters.

        Points outside the ball have the derivative of the point that they are projected to.
        """
        given, origin, kappa = self._checked(points, "points")
        array = project(given, kappa, _LIMIT)
        tangent = log_map(array, kappa, origin)
        moved = mobius_add(-origin, array, kappa)
        r = lengths(moved)
        safe = np.where(r > 0, r, 1)
        squared = float(origin @ origin)
        conformal = 1 + kappa * squared
        ratio = np.where(r > 0, arctan_k(r, kappa) / safe, 1)[..., None]
        slope = (1 / (1 + kappa * np.square(r)))[..., None]
        by_kappa = np.where(r > 0, arctan_k_slope(r, kappa) / safe, 0)[..., None]

        def pullback(gradient: Any) -> tuple[Array, dict[str, Array]]:
            g = as_array(gradient, "gradient").astype(np.float64)
            if g.shape != tangent.shape:
                raise ShapeError("gradient", g.shape, f"the output's shape {tangent.shape}")
            along = (g * moved).sum(axis=-1, keepdims=True)
            bend = np.where(r[..., None] > 0, (slope - ratio) / np.square(safe)[..., None], 0)
            d_moved = conformal * (ratio * g + bend * along * moved)
            d_conformal = float((ratio * along).sum())
            d_kappa = conformal * float((by_kappa * along).sum()) + d_conformal * squared
            minus, d_points, more = _mobius_pullback(-origin, array, kappa, d_moved)
            d_origin = 2 * kappa * d_conformal * origin - minus
            by: dict[str, Array] = {}
            if self.config.learnable_curvature:
                by["curvature"] = np.asarray(d_kappa + more)
            if self.config.learnable_origin:
                by["origin"] = d_origin
            return d_points.astype(_kind(points)), by

        return tangent.astype(_kind(points)), pullback

    def _checked(self, value: Any, argument: str) -> tuple[Array, Array, float]:
        array = as_array(value, argument)
        size = self.config.hyperbolic_dim
        if array.ndim < 1 or array.shape[-1] != size:
            raise ShapeError(argument, array.shape, f"a last axis of hyperbolic_dim={size}")
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            raise ArgumentError(argument, "numbers that are not finite", "finite ones")
        kappa, origin = float(self.parameters["curvature"]), self.parameters["origin"]
        if kappa < 0 and -kappa * float(origin @ origin) >= 1:
            raise ArgumentError("origin", origin, "a point inside the ball of radius 1/√−κ")
        return array, origin, kappa


def _kind(value: Any) -> np.dtype[Any]:
    return as_array(value, "array").dtype


def _mobius_pullback(x: Array, y: Array, k: float, gradient: Array) -> tuple[Array, Array, float]:
    """Gradients by x (size,), y (…, size) and κ of x ⊕ y."""
    xy = (x * y).sum(axis=-1, keepdims=True)
    xx = float(x @ x)
    yy = (y * y).sum(axis=-1, keepdims=True)
    first, second = 1 - 2 * k * xy - k * yy, 1 + k * xx
    below = 1 - 2 * k * xy + k * k * xx * yy
    above = first * x + second * y
    d_above = gradient / below
    d_below = -(d_above * above).sum(axis=-1, keepdims=True) / below
    d_first = (d_above * x).sum(axis=-1, keepdims=True)
    d_second = (d_above * y).sum(axis=-1, keepdims=True)
    d_x = (
        first * d_above - 2 * k * y * d_first + 2 * k * x * d_second
        + d_below * (2 * k * k * yy * x - 2 * k * y)
    )  # fmt: skip
    d_y = (
        second * d_above - 2 * k * (x + y) * d_first + d_below * (2 * k * k * xx * y - 2 * k * x)
    )  # fmt: skip
    d_k = d_first * (-2 * xy - yy) + d_second * xx + d_below * (2 * k * xx * yy - 2 * xy)
    return d_x.reshape((-1, x.size)).sum(axis=0), d_y, float(d_k.sum())
