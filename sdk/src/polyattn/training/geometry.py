"""Optimisers that follow the geometry of what they change: natural gradient, Riemannian Adam."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np

from polyattn_core import geometry
from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, ParameterError, ShapeError

from ._checks import real
from .optimiser import Groups, Optimiser, Rate
from .optimisers import Adam

_LIMIT = 1 - 1e-6
"""Radii of the ball from which on points are moved inwards: 14.5 from the origin at κ = −1."""


class NaturalGradient(Optimiser):
    """θ ← θ − η (F + δ I)⁻¹ g: the steepest descent where F, the Fisher information, is the metric.

    * ``metric="categorical"``: each last axis holds the logits of a categorical distribution
      p = softmax(θ), whose Fisher information diag(p) − ppᵀ is inverted exactly, in O(d).
    * ``metric="diagonal"``: the diagonal of the empirical Fisher information, the mean square of
      the gradients of single examples. Pass these along a leading axis, (examples, …); their
      mean is g. A gradient of the parameter's own shape counts as that of one example.

    Parameters
    ----------
    learning_rate
        η, a number or a schedule.
    metric
        Which of the two.
    damping
        δ > 0.
    decay
        Diagonal metric: F is a running mean, F ← decay F + (1 − decay) F of this step, without
        bias towards its start at 0. Has no effect on the categorical metric, which refuses it.
    groups
        Learning rates of some parameters; see :class:`Optimiser`.

    References
    ----------
    Amari, Natural gradient works efficiently in learning, Neural Computation 10, 1998; Martens,
    New insights and perspectives on the natural gradient method, arXiv:1412.1193.
    """

    name = "natural-gradient"

    def __init__(
        self,
        *,
        learning_rate: Rate = 1e-2,
        metric: str = "diagonal",
        damping: float = 1e-3,
        decay: float = 0.0,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(learning_rate=learning_rate, groups=groups)
        if metric not in ("diagonal", "categorical"):
            raise ArgumentError("metric", metric, "'diagonal' or 'categorical'")
        self.metric, self.damping = metric, real("damping", damping, above=0)
        self.decay = real("decay", decay, least=0, below=1)
        if self.decay and metric == "categorical":
            raise ArgumentError("decay", decay, "0 with the categorical metric, which is exact")
        if self.decay:
            self.slots = ("fisher",)

    def _check_shape(self, name: str, array: Array, gradient: Array) -> None:
        each = self.metric == "diagonal" and gradient.shape[1:] == array.shape
        if self.metric == "categorical" and not array.ndim:
            raise ShapeError(name, array.shape, "logits along a last axis")
        if gradient.shape != array.shape and not (each and gradient.size):
            accepted = f"shape {array.shape}"
            if self.metric == "diagonal":
                accepted += f" or (examples, *{array.shape})"
            raise ShapeError(f"gradients[{name!r}]", gradient.shape, accepted)

    def _change(
        self,
        name: str,
        array: Array,
        gradient: Array,
        state: dict[str, Array],
        rate: float,
        step: int,
    ) -> None:
        if self.metric == "categorical":
            direction = _categorical(array, gradient, self.damping)
        else:
            each = gradient if gradient.ndim > array.ndim else gradient[None]
            fisher = np.square(each).mean(axis=0)
            if self.decay:
                state["fisher"] *= self.decay
                state["fisher"] += (1 - self.decay) * fisher
                fisher = state["fisher"] / (1 - self.decay**step)
            direction = each.mean(axis=0) / (fisher + self.damping)
        array -= array.dtype.type(rate) * direction

    def options(self) -> dict[str, Any]:
        own = {"metric": self.metric, "damping": self.damping, "decay": self.decay}
        return {**own, **self._group_options()}


def _categorical(logits: Array, gradient: Array, damping: float) -> Array:
    """(diag(p) − ppᵀ + δ I)⁻¹ g by the formula of Sherman and Morrison."""
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = grown / grown.sum(axis=-1, keepdims=True)
    inverse = 1 / (p + damping)
    along = (p * inverse * gradient).sum(axis=-1, keepdims=True)
    # 1 − pᵀ(diag(p) + δ)⁻¹p without cancellation, as p sums to 1.
    rest = (p * damping * inverse).sum(axis=-1, keepdims=True)
    return np.asarray(inverse * (gradient + p * along / rest))


class RiemannianAdam(Adam):
    """Adam on points of hyperbolic space, one along each last axis.

    Gradients become tangent vectors of the metric, v is their squared Riemannian norm (one number a
    point), points move along geodesics, and m is carried along them by parallel transport. Other
    parameters take the steps of Adam.

    Parameters
    ----------
    learning_rate, betas, epsilon
        As for Adam.
    manifold
        ``"poincare"``: the ball of radius 1/√−κ. ``"lorentz"``: the sheet ⟨x, x⟩ = 1/κ of the
        hyperboloid with x₀ > 0, ⟨x, y⟩ = −x₀y₀ + x₁y₁ + …
    curvature
        κ < 0.
    points
        Wildcards for the names of parameters that are points; all are by default.
    groups
        Learning rates of some parameters; see :class:`Optimiser`.

    References
    ----------
    Bécigneul and Ganea, Riemannian adaptive optimization methods, arXiv:1810.00760.
    """

    name = "riemannian-adam"
    grouped = ("learning_rate",)

    def __init__(
        self,
        *,
        learning_rate: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        manifold: str = "poincare",
        curvature: float = -1.0,
        points: Sequence[str] = ("*",),
        groups: Groups | None = None,
    ) -> None:
        super().__init__(learning_rate=learning_rate, betas=betas, epsilon=epsilon, groups=groups)
        if manifold not in ("poincare", "lorentz"):
            raise ArgumentError("manifold", manifold, "'poincare' or 'lorentz'")
        self.manifold, self.curvature = manifold, real("curvature", curvature, below=0)
        self.points = (points,) if isinstance(points, str) else tuple(points)

    def _is_point(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.points)

    def _check_shape(self, name: str, array: Array, gradient: Array) -> None:
        super()._check_shape(name, array, gradient)
        if not self._is_point(name):
            return
        if not array.ndim or not array.size:
            raise ShapeError(name, array.shape, "points along a last axis")
        if self.manifold == "poincare":
            inside = (geometry.lengths(array) * np.sqrt(-self.curvature) < 1).all()
            accepted = f"points inside the ball of curvature {self.curvature:g}"
        else:
            wide = array.astype(np.float64)
            off = np.abs(_minkowski(wide, wide)[..., 0] * self.curvature - 1)
            slack = 1e3 * np.finfo(array.dtype).eps * (1 - self.curvature * np.square(wide[..., 0]))
            inside = bool((off <= slack).all() and (array[..., 0] > 0).all())
            accepted = f"points of the hyperboloid ⟨x, x⟩ = {1 / self.curvature:g}, x₀ > 0"
        if not inside:
            raise ParameterError(name, "points elsewhere", accepted)

    def _slot_shape(self, name: str, slot: str, array: Array) -> tuple[int, ...]:
        point = slot == "second" and self._is_point(name)
        return (*array.shape[:-1], 1) if point else array.shape

    def _change(
        self,
        name: str,
        array: Array,
        gradient: Array,
        state: dict[str, Array],
        rate: float,
        step: int,
    ) -> None:
        if not self._is_point(name):
            super()._change(name, array, gradient, state, rate, step)
            return
        ball = self.manifold == "poincare"
        x, g = array.astype(np.float64), gradient.astype(np.float64)
        tangent, square = (_ball_tangent if ball else _sheet_tangent)(x, g, self.curvature)
        (b1, b2), first, second = self.betas, state["first"], state["second"]
        first += (1 - b1) * (tangent - first)
        second += (1 - b2) * (square - second)
        root = np.sqrt(second.astype(np.float64) / (1 - b2**step)) + self.epsilon
        move = -rate / (1 - b1**step) * first.astype(np.float64) / root
        go = _ball_move if ball else _sheet_move
        array[...], first[...] = go(x, move, first.astype(np.float64), self.curvature)

    def options(self) -> dict[str, Any]:
        own = {"manifold": self.manifold, "curvature": self.curvature, "points": list(self.points)}
        return {
            "betas": list(self.betas), "epsilon": self.epsilon, **own, **self._group_options()
        }  # fmt: skip


def _ball_tangent(x: Array, gradient: Array, k: float) -> tuple[Array, Array]:
    """The Riemannian gradient and its squared norm; λ = 2/(1 + κ‖x‖²)."""
    factor = 2 / (1 + k * np.square(geometry.lengths(x)))[..., None]
    tangent = gradient / np.square(factor)
    return tangent, np.square(factor) * np.square(tangent).sum(axis=-1, keepdims=True)


def _ball_move(x: Array, step: Array, carried: Array, k: float) -> tuple[Array, Array]:
    x = geometry.project(x, k, _LIMIT)
    y = geometry.project(geometry.exp_map(step, k, x), k, _LIMIT)
    # gyr[y, −x] in closed form (Ungar), which is linear in what it turns.
    xv, yv, xy = _inner(x, carried), _inner(y, carried), _inner(x, y)
    xx, yy = _inner(x, x), _inner(y, y)
    by_y = -k * k * yv * xx + k * xv + 2 * k * k * xy * xv
    by_x = -k * k * xv * yy - k * yv
    # 1 + 2κ⟨x, y⟩ + κ²‖x‖²‖y‖² without cancellation at the boundary.
    below = (1 + k * xx) * (1 + k * yy) - k * _inner(x - y, x - y)
    turned = carried + 2 * (by_y * y + by_x * x) / below
    return y, turned * (1 + k * yy) / (1 + k * xx)


def _inner(x: Array, y: Array) -> Array:
    return np.asarray((x * y).sum(axis=-1, keepdims=True))


def _minkowski(x: Array, y: Array) -> Array:
    products = x * y
    return np.asarray(products[..., 1:].sum(axis=-1, keepdims=True) - products[..., :1])


def _sheet_tangent(x: Array, gradient: Array, k: float) -> tuple[Array, Array]:
    up = gradient.copy()
    up[..., 0] *= -1
    tangent = up - k * _minkowski(x, up) * x
    return tangent, np.maximum(_minkowski(tangent, tangent), 0)


def _sheet_move(x: Array, step: Array, carried: Array, k: float) -> tuple[Array, Array]:
    root = np.sqrt(-k)
    step = step - k * _minkowski(x, step) * x  # rounding leaves the tangent space
    r = root * np.sqrt(np.maximum(_minkowski(step, step), 0))
    end = np.cosh(r) * x + np.where(r > 0, np.sinh(r) / np.where(r > 0, r, 1), 1) * step
    end[..., 0] = np.sqrt(np.square(end[..., 1:]).sum(axis=-1) - 1 / k)
    moved = carried - k * _minkowski(end, carried) / (1 + k * _minkowski(x, end)) * (x + end)
    return end, moved - k * _minkowski(end, moved) * end


__all__ = ["NaturalGradient", "RiemannianAdam"]
