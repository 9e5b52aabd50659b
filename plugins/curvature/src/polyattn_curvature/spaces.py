"""Attention by distances in one space of constant curvature.

All are called and raise errors like :meth:`polyattn_core.mechanism.Mechanism.attend`: queries
(…, heads, queries, head size), keys and values (…, key heads, keys, head size); called as a model's
layer, (…, tokens, dim).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError
from polyattn_core.geometry import Profile, lengths, radial, tan_k, tan_k_slope
from polyattn_core.mechanism import Call, Gradients

from .mapped import Mapped, Undo, by_group, with_points

if TYPE_CHECKING:
    from polyattn_core.simd.rules import ScoreRule

    Rules = Sequence[tuple[ScoreRule, Sequence[Any]]]

_SHORTEST = 1e-6
"""Vectors shorter than this have no direction: they are divided by it, not by their length."""
_NOISE = 4
"""Squared sines and lengths below this many ε, relative, count as 0: rounding, as between a point
and itself."""
_HALF_WAY = math.pi / 2 - 1e-3
"""Half of the angle up to which the sphere is covered; beyond are 0.002 radians to the antipode."""
_COARSE = 2e4
"""Product of the largest conformal factors from which float32 is refined to float64."""


class Spherical(Mapped):
    """The angle between query and key itself, the geodesic distance on the sphere.

        softmax(−β θ(q, k)) v,   θ = 2 arcsin √((1 − q̂·k̂)/2)

    β is the parameter `beta` (heads,). Where cosine attention is flat around its best key, the
    angle has a cone: near keys are told apart. A sphere of another curvature only scales β.

    O(n² d) time, O(n d) memory. In float32 angles are exact to 3e-4 near 0 and π, and to rounding
    between.

    References
    ----------
    Bachmann et al., Constant curvature graph convolutional networks, arXiv:1911.05076.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> spherical = pa.create("spherical", dim=2, beta=np.log(4) / (np.pi / 2))
    >>> spherical([2.0, 0.0], [[5.0, 0.0], [0.0, 1.0]], np.eye(2)).round(6)
    array([0.8, 0.2])
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        beta = np.full(self.config.heads, self.config.beta, np.float64)
        return {**super()._initial_parameters(rng), "beta": beta}

    def _scale(self, call: Call) -> float:
        return 1.0

    def _rules(self, call: Call) -> Rules:
        from .kernels import angle

        return [(angle, (self.parameters["beta"], _NOISE * np.finfo(call.dtype).eps))]

    def _parameter_gradients(self, rule_parameters: Array, sink: Array | None) -> dict[str, Array]:
        return {"beta": rule_parameters[:, 0]}

    def _map(self, call: Call) -> tuple[Call, Undo]:
        query, key, turned = self._turned(call)
        query, pull_query = radial(query, _unit)
        key, pull_key = radial(key, _unit)

        def undo(gradients: Gradients) -> None:
            gradients.query, gradients.key = turned(
                pull_query(gradients.query)[0], pull_key(gradients.key)[0]
            )

        return with_points(call, query, key), undo


def _unit(r: Array) -> Profile:
    ratio = 1 / np.maximum(r, _SHORTEST)
    return Profile(ratio, lambda: np.where(r > _SHORTEST, 0, ratio))


class KappaStereographic(Mapped):
    """One distance for spheres, the plane and hyperbolic spaces, with a curvature that is learned.

        softmax(−β d_κ(q, k)) v,
        d_κ(x, y) = 2 sn_κ⁻¹(‖x − y‖ / √((1 + κ‖x‖²)(1 + κ‖y‖²)))

    where sn_κ⁻¹(s) is arcsin(√κ s)/√κ, s, or arsinh(√−κ s)/√−κ: one analytic function of κ, so
    gradient descent passes through κ = 0 without noticing. κ is the parameter `curvature`
    (key heads,), β the parameter `beta` (heads,). At κ = 0 the distance is 2‖x − y‖, which for
    tangent vectors, mapped by exp₀(v/2), is ‖v_q − v_k‖.

    O(n² d) time, O(n d) memory. float32 is computed in float64 where points are so near to the
    boundary of the ball that it would not tell them apart.

    References
    ----------
    Bachmann et al., Constant curvature graph convolutional networks, arXiv:1911.05076; Skopek et
    al., Mixed-curvature variational autoencoders, arXiv:1911.08411.

    Examples
    --------
    The gradient by κ does not change abruptly at 0:

    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((6, 4))
    >>> for curvature in (-1e-9, 0.0, 1e-9):
    ...     kappa = pa.create("kappa-stereographic", dim=4, curvature=curvature)
    ...     _, pullback = kappa.vjp(x)
    ...     print(pullback(np.ones((6, 4))).parameters["curvature"].round(6))
    [-0.036276]
    [-0.036276]
    [-0.036276]
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        return {
            **super()._initial_parameters(rng),
            "beta": np.full(config.heads, config.beta, np.float64),
            "curvature": np.full(self._key_heads, config.curvature, np.float64),
        }

    def _scale(self, call: Call) -> float:
        return 1.0

    def _rules(self, call: Call) -> Rules:
        from . import kernels

        noise = _NOISE * np.finfo(call.dtype).eps
        kappa = np.repeat(self.parameters["curvature"], self.config.heads // self._key_heads)
        return [(kernels.stereographic, (self.parameters["beta"], kappa, noise))]

    def _parameter_gradients(self, rule_parameters: Array, sink: Array | None) -> dict[str, Array]:
        group = self.config.heads // self._key_heads
        by_curvature = by_group(rule_parameters[:, 1].astype(np.float64), group)
        return {"beta": rule_parameters[:, 0], "curvature": by_curvature}

    def _map(self, call: Call) -> tuple[Call, Undo]:
        query, key, turned = self._turned(call)
        group = query.shape[1] // key.shape[1]
        own = self.parameters["curvature"]
        kappa = np.repeat(own, group)
        r_query, r_key = lengths(query), lengths(key)
        self._check(r_query, kappa, query, "query")
        self._check(r_key, own, key, "key")
        if call.dtype == np.float32 and self._coarse(r_query, kappa, r_key, own, query):
            query, key = query.astype(np.float64), key.astype(np.float64)
        query, pull_query = radial(query, self._profile(kappa, query), r_query)
        key, pull_key = radial(key, self._profile(own, key), r_key)

        def undo(gradients: Gradients) -> None:
            d_query, by_query = pull_query(gradients.query)
            d_key, by_key = pull_key(gradients.key)
            gradients.query, gradients.key = turned(d_query, d_key)
            gradients.parameters["curvature"] = (
                gradients.parameters["curvature"]
                + by_group(by_query["curvature"], group)
                + by_key["curvature"]
            )

        return with_points(call, query, key), undo

    def _half(self, array: Array) -> float:
        """Tangent vectors times this are half as long as their points are far away."""
        scale = self.config.scale
        return (1 / math.sqrt(array.shape[-1]) if scale is None else float(scale)) / 2

    def _limit(self, kappa: Array) -> Array:
        """How long vectors may be: halved tangent vectors, or stereographic coordinates."""
        tangent = self.config.coordinates == "tangent"
        radius = self.config.max_radius / 2
        ball = radius if tangent else math.tanh(radius)
        sphere = _HALF_WAY if tangent else math.tan(_HALF_WAY)
        with np.errstate(divide="ignore"):
            return np.where(kappa < 0, ball, sphere) / np.sqrt(np.abs(kappa))

    def _check(self, r: Array, kappa: Array, array: Array, argument: str) -> None:
        if self.config.outside != "refuse":
            return
        factor = self._half(array) if self.config.coordinates == "tangent" else 1
        limit = self._limit(kappa)[:, None] / factor
        beyond = np.isfinite(r) & (r > limit * (1 + 1e-12))
        if beyond.any():
            raise ArgumentError(
                argument,
                f"a vector of length {r[beyond].max():.9g}",
                f"at most {limit.min():.9g} at this curvature, or outside='project'",
            )

    def _coarse(self, r: Array, kappa: Array, r_key: Array, own: Array, array: Array) -> bool:
        """Do the conformal factors 1/(1 + κ‖x‖²) take more digits than float32 has?"""
        largest = 1.0
        for lengths_, k in ((r, kappa), (r_key, own)):
            new = self._profile(k, array)(lengths_).ratio * lengths_
            rest = 1 + np.minimum(k, 0)[:, None] * np.square(new)
            largest /= max(float(rest[np.isfinite(rest)].min(initial=1)), 1e-300)
        return largest > _COARSE

    def _profile(self, kappa: Array, array: Array) -> Any:
        tangent = self.config.coordinates == "tangent"
        a = self._half(array) if tangent else 1.0
        k, limit = kappa[:, None], self._limit(kappa)[:, None]

        def profile(r: Array) -> Profile:
            inside = ~(a * r > limit)
            z = np.minimum(a * r, limit)
            new = tan_k(z, k) if tangent else z
            safe = np.where(r > 0, r, 1)

            def slope() -> Array:
                inner = a * (1 + k * np.square(new)) if tangent else np.ones_like(z)
                return np.where(inside, inner, 0)

            def by_kappa() -> Array:
                inner = tan_k_slope(z, k) if tangent else np.zeros_like(z)
                # What is moved to the limit has a constant √|κ| ‖x‖.
                moved = -new / (2 * np.where(k == 0, 1, k))
                return np.where(r > 0, np.where(inside, inner, moved) / safe, 0)

            return Profile(np.where(r > 0, new / safe, a), slope, {"curvature": by_kappa})

        return profile
