"""The base of the family's mechanisms: queries and keys are mapped, then the engine attends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.partial import PartialState
from polyattn_core.positions import Rope
from polyattn_core.streaming import StreamingMechanism

Undo = Callable[[Gradients], None]


class Mapped(StreamingMechanism):
    """A mechanism that attends to what :meth:`_map` makes of queries and keys."""

    @abstractmethod
    def _map(self, call: Call) -> tuple[Call, Undo]:
        """The call to attend to, and what turns its gradients, in place, into those by vectors."""

    def _rotate(self, call: Call, query: Array, key: Array, undo: Any) -> tuple[Array, Array, Any]:
        return query, key, undo  # done before the map

    def _turned(self, call: Call) -> tuple[Array, Array, Callable[..., tuple[Array, Array]]]:
        """Queries and keys in their rotary positions."""
        if not isinstance(self.config.position, Rope):
            return call.query, call.key, lambda d_query, d_key: (d_query, d_key)
        return super()._rotate(call, call.query, call.key, None)

    def _forward(self, call: Call) -> Array:
        return super()._forward(self._map(call)[0])

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        output, found = super()._observe(self._map(call)[0], wanted)
        return output, {
            name: array if name == "top_keys" else array.astype(call.dtype, copy=False)
            for name, array in found.items()
        }

    def _partial(self, call: Call) -> PartialState:
        return super()._partial(self._map(call)[0])

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        mapped, undo = self._map(call)
        output, pull = super()._vjp(mapped)

        def pullback(gradient: Array) -> Gradients:
            gradients = pull(gradient.astype(output.dtype, copy=False))
            undo(gradients)
            return gradients

        return output, pullback


def with_points(call: Call, query: Array, key: Array) -> Call:
    """The call with other queries and keys, and all else in their dtype."""
    if query.dtype == call.dtype:
        return replace(call, query=query, key=key)
    value, bias = call.value.astype(query.dtype), call.bias
    if bias is not None:
        bias = bias.astype(query.dtype)
    return replace(call, query=query, key=key, value=value, bias=bias)


def by_group(per_head: Array, group: int) -> Array:
    """Sums over the query heads that share a key head."""
    return np.asarray(per_head.reshape((-1, group, *per_head.shape[1:])).sum(axis=1))
