"""Attention gated by the cheapest cut of the key graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.streaming import StreamingMechanism


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
        from .kernels.cuts import measured, sides

        lead = key.shape[:2]
        # In float64: where two cuts are nearly equal, rounding would choose.
        metrics, axes, places = measured(
            key.reshape((-1, *key.shape[2:])), "float64", moments=False
        )
        cuts = metrics[:, 1].reshape(lead)
        places = np.where(cuts < self.config.threshold, places.reshape(lead), np.nan)
        axes = axes.reshape((*lead, -1))
        return sides(query, axes, places), sides(key, axes, places), cuts

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
