"""What these mechanisms share: all queries see the same keys, those before the padding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback

from ..visibility import visible_counts

Back = Callable[[Array], tuple[Array, Array, Array, dict[str, Array]]]
"""From the gradient by the output to those by query, key, value and parameters."""


class SetMechanism(Mechanism):
    """A mechanism whose queries all see the same keys: all, or the first of a padded sequence."""

    config: Any

    @abstractmethod
    def _set(self, query: Array, key: Array, value: Array) -> tuple[Array, Back]:
        """Attend, with as many key heads as heads and every key visible."""

    def _scale(self) -> float:
        return float(self.config.scale or self.config.head_dim**-0.5)

    def _forward(self, call: Call) -> Array:
        return self._vjp(call)[0]

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        heads, key_heads = call.query.shape[1], call.key.shape[1]
        group = heads // key_heads
        parts: list[tuple[Array, int, Back]] = []
        out = np.zeros((*call.query.shape[:3], call.value.shape[3]), call.dtype)
        for chosen, length in self._lengths(call):
            if not length:
                continue
            key, value = (
                np.repeat(x[chosen, :, :length], group, axis=1) for x in (call.key, call.value)
            )
            out[chosen], back = self._set(call.query[chosen], key, value)
            parts.append((chosen, length, back))

        def pullback(gradient: Array) -> Gradients:
            found = Gradients(
                np.zeros(call.query.shape, call.dtype),
                np.zeros(call.key.shape, call.dtype),
                np.zeros(call.value.shape, call.dtype),
                parameters={name: np.zeros_like(x) for name, x in self.parameters.items()},
            )

            def gather(array: Array) -> Array:
                split = array.reshape(len(array), key_heads, group, *array.shape[2:])
                return np.asarray(split.sum(axis=2))

            for chosen, length, back in parts:
                found.query[chosen], by_key, by_value, by_parameters = back(gradient[chosen])
                found.key[chosen, :, :length] = gather(by_key)
                found.value[chosen, :, :length] = gather(by_value)
                for name, array in by_parameters.items():
                    found.parameters[name] += array
            return found

        return out, pullback

    def _lengths(self, call: Call) -> list[tuple[Any, int]]:
        """Batch elements with as many visible keys: which, and how many."""
        counts = visible_counts(call.mask, call.shape, 0, call.key.shape[2])
        if counts is None or (counts != counts[:, :1]).any():
            raise self._lacks(
                "masks other than padding and what & and | make of it", "masks", "dense"
            )
        lengths = counts[:, 0]
        if len(lengths) == 1:
            return [(slice(None), int(lengths[0]))]
        return [(np.flatnonzero(lengths == n), int(n)) for n in np.unique(lengths)]


def soft_max(
    query: Array, key: Array, value: Array, scale: float, limit: int | None
) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    """softmax(scale · q kᵀ) v on the streaming engine, and its pullback."""
    from .. import kernels

    return kernels.soft_max(query, key, value, scale, limit)
