"""Attention by distances in products of spaces: each slice of a head is a point of its own space.

All are called and raise errors like :meth:`polyattn_core.mechanism.Mechanism.attend`: queries
(…, heads, queries, head size), keys and values (…, key heads, keys, head size); called as a model's
layer, (…, tokens, dim).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.geometry import Profile, radial
from polyattn_core.mechanism import Call, Gradients

from .coordinates import Chart
from .space import Lifted, Lifting, as_it_is, by_group, lifted_call

if TYPE_CHECKING:
    from polyattn_core.simd.engine import Component

_SHORTEST = 1e-6
"""Vectors shorter than this have no direction: they are divided by it, not by their length."""


class Factor(NamedTuple):
    """A space of the product, and the coordinates of a head that it has."""

    kind: Literal["euclidean", "hyperbolic", "spherical"]
    size: int
    level: int = 0
    """Of a hyperbolic space: its place in the parameter `curvature.log`."""


class ProductSpace(Lifting):
    """Scores −β Σ w d² over the factors of a product of spaces.

    The w of a head are the soft-max of its row of the parameter `components`.
    """

    @abstractmethod
    def _factors(self) -> list[Factor]:
        """The spaces, in the order of their coordinates; none is empty."""

    @abstractmethod
    def _curvatures(self) -> tuple[float, ...]:
        """Initial curvatures of the hyperbolic spaces."""

    def _rule(self, kind: str) -> Any:
        from . import kernels

        return {
            "euclidean": kernels.squared_distance,
            "hyperbolic": kernels.squared_geodesic,
            "spherical": kernels.squared_angle,
        }[kind]

    # ---- parameters ---------------------------------------------------------------------------

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        logs = np.log(-np.asarray(self._curvatures(), np.float64))
        return {
            **super()._initial_parameters(rng),
            "beta": np.full(config.heads, config.beta, np.float64),
            "components": np.zeros((config.heads, len(self._factors()))),
            "curvature.log": np.tile(logs, (self._key_heads, 1)),
        }

    def _weights(self) -> Array:
        logits = self.parameters["components"]
        grown = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(grown / grown.sum(axis=1, keepdims=True))

    def _squared_curvature_radius(self) -> Array:
        """1/|κ| of each factor, (heads, factors): what squared distances in units of it count."""
        heads = self.config.heads
        logs = np.repeat(self.parameters["curvature.log"], heads // self._key_heads, axis=0)

        def of(factor: Factor) -> Array:
            if factor.kind == "hyperbolic":
                return np.asarray(np.exp(-logs[:, factor.level]))
            return np.full(
                heads, 1 / self.config.curvature_s if factor.kind == "spherical" else 1.0
            )

        return np.stack([of(factor) for factor in self._factors()], axis=1)

    def _components(self, call: Call) -> Sequence[Component]:
        from polyattn_core.simd.engine import Component

        sharpness = self.parameters["beta"][:, None] * self._weights()
        sharpness = sharpness * self._squared_curvature_radius()
        return [
            Component(factor.size, 1.0, [(self._rule(factor.kind), (column,))])
            for factor, column in zip(self._factors(), sharpness.T, strict=True)
        ]

    def _parameter_gradients(self, rule_parameters: Array, sink: Array | None) -> dict[str, Array]:
        # The sharpness of a factor is β w / |κ|.
        beta, weights = self.parameters["beta"], self._weights()
        radius = self._squared_curvature_radius()
        by_weight = rule_parameters[:, : radius.shape[1]].astype(np.float64) * radius
        along = (by_weight * weights).sum(axis=1)
        logs = np.zeros_like(self.parameters["curvature.log"])
        by_log = -by_weight * weights * beta[:, None]
        for factor, column in zip(self._factors(), by_log.T, strict=True):
            if factor.kind == "hyperbolic":
                logs[:, factor.level] = by_group(column, len(beta) // self._key_heads)
        return {
            "beta": along,
            "components": beta[:, None] * weights * (by_weight - along[:, None]),
            "curvature.log": logs,
        }

    # ---- lifting ------------------------------------------------------------------------------

    def _lift(self, call: Call) -> Lifted:
        query, key, turned = self._turned(call)
        value = call.value
        config, factors = self.config, self._factors()
        size = query.shape[-1]
        scale = 1 / math.sqrt(size) if config.scale is None else config.scale
        chart = Chart(config.coordinates, scale, config.max_radius, config.outside)
        roots = np.exp(self.parameters["curvature.log"] / 2)
        group = query.shape[1] // key.shape[1]
        ends = np.cumsum([factor.size for factor in factors])[:-1]
        parts = [np.split(array, ends, axis=-1) for array in (query, key)]

        def lengths(side: int) -> list[Array | None]:
            return [
                chart.lengths(part) if factor.kind == "hyperbolic" else None
                for factor, part in zip(factors, parts[side], strict=True)
            ]

        repeated = np.repeat(roots, group, axis=0)
        r_query, r_key = lengths(0), lengths(1)
        for factor, rq, rk, q, k in zip(factors, r_query, r_key, *parts, strict=True):
            if rq is not None and rk is not None:
                root, own = repeated[:, factor.level], roots[:, factor.level]
                chart.check(q, rq, root, "query")
                chart.check(k, rk, own, "key")
                if self._coarse(chart.radius(rq, root), chart.radius(rk, own), call.dtype):
                    parts = [[part.astype(np.float64) for part in side] for side in parts]
                    value = value.astype(np.float64)
                    break
        queries = self._lift_side(chart, factors, parts[0], r_query, repeated)
        keys = self._lift_side(chart, factors, parts[1], r_key, roots)

        def undo(gradients: Gradients) -> None:
            d_query, by_query = queries[1](gradients.query)
            d_key, by_key = keys[1](gradients.key)
            gradients.query, gradients.key = turned(d_query, d_key)
            gradients.parameters["curvature.log"] += (
                (by_group(by_query, group) + by_key) * roots / 2
            )

        return Lifted(lifted_call(call, queries[0], keys[0], value), as_it_is, undo)

    def _lift_side(
        self, chart: Chart, factors: list[Factor], parts: list[Array], r: list[Array | None],
        roots: Array,
    ) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:  # fmt: skip
        """Points of all factors side by side; a pullback by vectors and by `roots`."""
        ends = np.cumsum([factor.size for factor in factors])
        points = np.empty((*parts[0].shape[:-1], ends[-1]), parts[0].dtype)
        pulls: list[Callable[[Array], tuple[Array, Any]]] = []
        for factor, end, part, length in zip(factors, ends, parts, r, strict=True):
            out = points[..., end - factor.size : end]
            pull: Callable[[Array], tuple[Array, Any]]
            if factor.kind == "hyperbolic" and length is not None:
                _, pull = chart.lift(part, length, roots[:, factor.level], out)
            elif factor.kind == "spherical":
                _, pull = radial(part, _unit, out=out)
            else:
                scale = part.dtype.type(chart.scale if chart.coordinates == "tangent" else 1)
                np.multiply(part, scale, out=out)
                pull = _scaled(scale)
            pulls.append(pull)

        def pullback(gradient: Array) -> tuple[Array, Array]:
            d_roots = np.zeros_like(roots)
            found = []
            sliced = np.split(gradient, ends[:-1], axis=-1)
            for factor, pull, part in zip(factors, pulls, sliced, strict=True):
                d_part, by = pull(part)
                found.append(d_part)
                if factor.kind == "hyperbolic":
                    d_roots[:, factor.level] = by
            return np.concatenate(found, axis=-1), d_roots

        return points, pullback


def _unit(r: Array) -> Profile:
    ratio = 1 / np.maximum(r, _SHORTEST)
    return Profile(ratio, lambda: np.where(r > _SHORTEST, 0, ratio))


def _scaled(factor: Any) -> Any:
    return lambda gradient: (gradient * factor, None)


class LorentzCascade(ProductSpace):
    """Hyperbolic spaces from nearly flat to strongly curved, each with a slice of the head.

        softmax(−β Σ_l w_l d_l²(q_l, k_l)) v,   d_l²(x, y) = −2/κ_l · (x₀y₀ − x·y − 1)

    The squared Lorentzian distances of the levels add up; flat levels tell fine differences apart,
    curved ones the branches of hierarchies. w is the soft-max over the levels of a row of the
    parameter `components` (heads, levels), ln −κ the parameter `curvature.log` (key heads, levels),
    β the parameter `beta` (heads,). Values are averaged as they are.

    O(n² d) time, O(n d) memory: the products of all levels come from one pass over the head.

    References
    ----------
    Chen et al., Fully hyperbolic neural networks, arXiv:2105.14686, for the distance; sums over
    spaces of several curvatures as in Gu et al., Learning mixed-curvature representations in
    product spaces, ICLR 2019.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> cascade = pa.create("lorentz-cascade", dim=64, curvatures=(-0.1, -1.0, -10.0))
    >>> {name: array.shape for name, array in cascade.parameters.items()}
    {'beta': (1,), 'components': (1, 3), 'curvature.log': (1, 3)}
    """

    def _factors(self) -> list[Factor]:
        levels, size = len(self.config.curvatures), self.config.head_dim
        sizes = [size // levels + (level < size % levels) for level in range(levels)]
        return [Factor("hyperbolic", n, level) for level, n in enumerate(sizes) if n]

    def _curvatures(self) -> tuple[float, ...]:
        curvatures: tuple[float, ...] = self.config.curvatures[: len(self._factors())]
        return curvatures

    def _rule(self, kind: str) -> Any:
        from .kernels import lorentzian

        return lorentzian


class MixedCurvature(ProductSpace):
    """Distances in a product of flat, hyperbolic and spherical space, mixed as the head learns.

        softmax(−β Σ_c w_c d_c²(q_c, k_c)) v

    over the components E (‖q − k‖²), H (squared geodesic distance) and S (squared angle between
    directions, over κ_S), each a slice of the head. With equal weights the sum is the squared
    geodesic distance of the product manifold. w is the soft-max over the components of a row of the
    parameter `components` (heads, components), ln −κ of H the parameter `curvature.log`
    (key heads, 1), β the parameter `beta` (heads,). Values are averaged as they are. Opposite
    directions have no gradient to each other; next to them, in float32 within 0.01 radians, it is
    inexact.

    O(n² d) time, O(n d) memory: the products of all components come from one pass over the head.

    References
    ----------
    Gu et al., Learning mixed-curvature representations in product spaces, ICLR 2019; Skopek et al.,
    Mixed-curvature variational autoencoders, arXiv:1911.08411.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> mixed = pa.create(
    ...     "mixed-curvature", dim=8, euclidean_dim=4, hyperbolic_dim=2, spherical_dim=2
    ... )
    >>> query, key = np.random.default_rng(0).standard_normal((2, 3, 8))
    >>> longer = key * [1, 1, 1, 1, 1, 1, 7, 7]  # the spherical part has no length
    >>> np.allclose(mixed(query, key, key), mixed(query, longer, key))
    True
    """

    def _factors(self) -> list[Factor]:
        e, h, s = self.config.sizes
        every = (Factor("euclidean", e), Factor("hyperbolic", h), Factor("spherical", s))
        return [factor for factor in every if factor.size]

    def _curvatures(self) -> tuple[float, ...]:
        return (self.config.curvature_h,)
