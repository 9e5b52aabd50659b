"""Attention gated by the cheapest cut of the key graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.streaming import StreamingMechanism

from .coherence import _stacks, all_borders, least_cut, principal_axis


class MincutGated(StreamingMechanism):
    """Pairs across the cheapest cut of the keys lose score, where that cut is cheap.

        softmax(scale · q·kᵀ − strength · [side(q) ≠ side(k)] · [φ < threshold]) v

    The key graph has the weights (1 + cos)/2. Keys are sorted along their principal axis, and of
    all cuts there (64 of them, evenly apart, where there are more) the one with the least
    normalised cut is taken: a sweep cut, as in spectral clustering. φ is its value over that of
    evenly similar keys, which is 1. A query is on the side on which its direction falls. Each batch
    element and key head has its own cut.

    The cut is of all keys of a call, so there are no masks. It is constant almost everywhere, so
    gradients are those of the attention. Keys that are 0 or not finite belong to no side.

    O(n² d + n d²) time, O(n d) memory.

    References
    ----------
    Shi and Malik, Normalized cuts and image segmentation (2000); von Luxburg, A tutorial on
    spectral clustering, arXiv:0711.0189.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> camps = np.array([[3.0, 0.1], [3.0, -0.1], [-3.0, 0.1], [-3.0, -0.1]])
    >>> gated = pa.create("mincut-gated", dim=2, scale=0.01)
    >>> gated(camps, camps, np.eye(4))[0].round(2)
    array([0.49, 0.49, 0.01, 0.01])
    """

    def sides(self, query: Array, key: Array) -> tuple[Array, Array, Array]:
        """Sides −1 or 1 of queries and keys (batch, heads, tokens), and φ (batch, key heads).

        Sides are 0 where the cut is not cheap enough, or a token has no direction.
        """
        batch, key_heads = key.shape[:2]
        group = query.shape[1] // key_heads
        of_query = np.zeros(query.shape[:3], query.dtype)
        of_key = np.zeros(key.shape[:3], key.dtype)
        values = np.ones((batch, key_heads))
        for index in np.ndindex(batch, key_heads):
            # In float64: where two cuts are nearly equal, rounding would choose.
            units = _stacks(key[index][None].astype(np.float64))[0]
            if units.shape[1] < 2:
                continue
            axis = principal_axis(units)[0][0]
            along = units[0] @ axis
            order = np.argsort(along)
            along = along[order]
            [values[index]], [at] = least_cut(units, order[None], all_borders(len(along)))
            if values[index] >= self.config.threshold:
                continue
            border = (along[at - 1] + along[at]) / 2
            of_key[index] = _side(key[index], axis, border)
            heads = slice(index[1] * group, (index[1] + 1) * group)
            of_query[index[0], heads] = _side(query[index[0], heads], axis, border)
        return of_query, of_key, values

    def _gated(self, call: Call) -> Call:
        """Three more coordinates make the score lose strength/2 · (1 − side · side).

        Where a side is 0, all three are 0.
        """
        of_query, of_key, _ = self.sides(call.query, call.key)
        loss = call.dtype.type(self.config.strength / 2 / self._own_scale(call))
        ours = np.stack((loss * of_query, -loss * np.abs(of_query)), axis=-1)
        theirs = np.stack((of_key, np.abs(of_key)), axis=-1)
        return replace(
            call,
            query=np.concatenate((call.query, ours), axis=-1),
            key=np.concatenate((call.key, theirs), axis=-1),
        )

    def _own_scale(self, call: Call) -> float:
        scale = self.config.scale
        return float(scale) if scale is not None else float(self.config.head_dim**-0.5)

    def _scale(self, call: Call) -> float:
        return self._own_scale(call)

    def _forward(self, call: Call) -> Array:
        return super()._forward(self._gated(call))

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        return super()._observe(self._gated(call), wanted)

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        output, pull = super()._vjp(self._gated(call))
        size = call.query.shape[-1]

        def pullback(gradient: Array) -> Gradients:
            found = pull(gradient)
            return replace(found, query=found.query[..., :size], key=found.key[..., :size])

        return output, pullback


def _side(tokens: Array, axis: Array, border: Any) -> Array:
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        tokens = tokens.astype(np.float64)
        small = tokens / np.abs(tokens).max(axis=-1, keepdims=True)
        unit = small / np.sqrt(np.einsum("...d,...d->...", small, small))[..., None]
        side = np.where(unit @ axis > border, 1, -1)
    return np.asarray(np.where(np.isfinite(unit).all(axis=-1), side, 0))
