"""The bases of the family: inputs become points, the engine attends, outputs become vectors."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.partial import PartialState
from polyattn_core.positions import Rope
from polyattn_core.streaming import StreamingMechanism

from .coordinates import Chart, centroid, lift_with_time

_COARSE = 2e4
"""Product of the largest time coordinates of queries and keys from which float32 is refined: with
it, products are off by 1e-3, and points at the same place may seem 0.05 apart."""


@dataclass(slots=True)
class Lifted:
    """A call whose vectors have become points, and how gradients get back."""

    call: Call
    finish: Callable[[Array], tuple[Array, Callable[[Array], tuple[Array, dict[str, Array]]]]]
    """Engine's output → output, and a pullback: gradient → gradient, parameters' gradients."""
    undo: Callable[[Gradients], None]
    """Turns gradients by points into gradients by vectors, and adds those by parameters."""


class Lifting(StreamingMechanism):
    """A mechanism that attends to what :meth:`_lift` makes of a call."""

    @abstractmethod
    def _lift(self, call: Call) -> Lifted:
        """The call in lifted form."""

    def _scale(self, call: Call) -> float:
        return 1.0

    def _rotate(self, call: Call, query: Array, key: Array, undo: Any) -> tuple[Array, Array, Any]:
        return query, key, undo  # done before the lift

    def _turned(self, call: Call) -> tuple[Array, Array, Callable[..., tuple[Array, Array]]]:
        """Queries and keys in their rotary positions: rotations about the origin keep distances."""
        if not isinstance(self.config.position, Rope):
            return call.query, call.key, lambda d_query, d_key: (d_query, d_key)
        return super()._rotate(call, call.query, call.key, None)

    def _coarse(self, query: Array, key: Array, dtype: np.dtype[Any]) -> bool:
        """Should float32 points at these radii be computed with in float64?"""
        if dtype != np.float32 or self.config.precision == "input":
            return False
        farthest = [np.cosh(r[np.isfinite(r)].max(initial=0)) for r in (query, key)]
        return bool(farthest[0] * farthest[1] > _COARSE)

    def _forward(self, call: Call) -> Array:
        lifted = self._lift(call)
        return lifted.finish(super()._forward(lifted.call))[0]

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        lifted = self._lift(call)
        output, found = super()._observe(lifted.call, wanted)
        return lifted.finish(output)[0], {
            name: array if name == "top_keys" else array.astype(call.dtype, copy=False)
            for name, array in found.items()
        }

    def _partial(self, call: Call) -> PartialState:
        # Declared only where outputs are not finished any further.
        return super()._partial(self._lift(call).call)

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        lifted = self._lift(call)
        mean, pull = super()._vjp(lifted.call)
        output, pull_finish = lifted.finish(mean)

        def pullback(gradient: Array) -> Gradients:
            d_mean, by = pull_finish(gradient.astype(mean.dtype, copy=False))
            gradients = pull(np.ascontiguousarray(d_mean, mean.dtype))
            for name, array in by.items():
                gradients.parameters[name] += array
            lifted.undo(gradients)
            return gradients

        return output, pullback


def lifted_call(call: Call, query: Array, key: Array, value: Array) -> Call:
    """The call with points for vectors, and its bias in their dtype."""
    bias = call.bias
    if bias is not None and bias.dtype != query.dtype:
        bias = bias.astype(query.dtype)
    return replace(call, query=query, key=key, value=value, bias=bias)


class HyperbolicSpace(Lifting):
    """A mechanism whose queries and keys, and by default values, are points of hyperbolic space."""

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        return {
            **super()._initial_parameters(rng),
            "beta": np.full(config.heads, config.beta, np.float64),
            "curvature.log": np.full(self._key_heads, math.log(-config.curvature), np.float64),
        }

    def _roots(self) -> Array:
        """√−κ of each key head."""
        return np.exp(self.parameters["curvature.log"] / 2)

    def _chart(self, size: int) -> Chart:
        config = self.config
        scale = 1 / math.sqrt(size) if config.scale is None else config.scale
        return Chart(config.coordinates, scale, config.max_radius, config.outside)

    def _lift(self, call: Call) -> Lifted:
        """Points of queries, keys and values."""
        group = call.query.shape[1] // call.key.shape[1]
        own = self._roots()
        roots = np.repeat(own, group)
        chart = self._chart(call.query.shape[-1])
        query, key, turned = self._turned(call)
        value = call.value
        r_query, r_key = chart.lengths(query), chart.lengths(key)
        chart.check(query, r_query, roots, "query")
        chart.check(key, r_key, own, "key")
        if self._coarse(chart.radius(r_query, roots), chart.radius(r_key, own), call.dtype):
            query, key, value = (x.astype(np.float64) for x in (query, key, value))
        query, pull_query = chart.lift(query, r_query, roots)
        key, pull_key = chart.lift(key, r_key, own)
        value, finish, pull_value = self._lift_values(value, chart, own, group)

        def undo(gradients: Gradients) -> None:
            d_query, by_query = pull_query(gradients.query)
            d_key, by_key = pull_key(gradients.key)
            gradients.query, gradients.key = turned(d_query, d_key)
            gradients.value, by_value = pull_value(gradients.value)
            d_root = by_group(by_query, group) + by_key + by_value
            gradients.parameters["curvature.log"] += d_root * own / 2

        return Lifted(lifted_call(call, query, key, value), finish, undo)

    def _lift_values(self, value: Array, chart: Chart, own: Array, group: int) -> Any:
        """Values for the engine, how its output is finished, the pullback of values."""
        if self.config.aggregation == "average":
            return value, as_it_is, lambda gradient: (gradient, np.zeros_like(own))
        chart = replace(chart, scale=self._chart(value.shape[-1]).scale)
        r = chart.lengths(value)
        chart.check(value, r, own, "value")
        whole, pull = lift_with_time(chart, value, r, own)

        def finish(mean: Array) -> Any:
            point = centroid(mean)
            output, pull_output = chart.drop(
                point.direction, point.factor, point.length, np.repeat(own, group)
            )

            def pullback(gradient: Array) -> tuple[Array, dict[str, Array]]:
                d_point, d_root = pull_output(gradient)
                return point.pullback(d_point), {"curvature.log": by_group(d_root, group) * own / 2}

            return output, pullback

        return whole, finish, pull


def as_it_is(mean: Array) -> tuple[Array, Callable[[Array], tuple[Array, dict[str, Array]]]]:
    """The engine's output is the output."""
    return mean, lambda gradient: (gradient, {})


def by_group(per_head: Array, group: int) -> Array:
    """Sums over the query heads that share a key head."""
    return np.asarray(per_head.reshape((-1, group, *per_head.shape[1:])).sum(axis=1))
