"""Exact attention in linear memory."""

from __future__ import annotations

from polyattn_core.streaming import StreamingMechanism


class Flash(StreamingMechanism):
    """Exact soft-max attention, tiled: nothing of size queries × keys is ever in memory.

        softmax(scale · q·kᵀ) v,   scale = 1/√d

    With a running maximum m and denominator l, a tile of scores S updates

        m' = max(m, max S),   l' = l·e^{m−m'} + Σ e^{S−m'},   o' = o·e^{m−m'} + e^{S−m'} v

    O(n² d) time, O(n d) memory, forward and backward. Dao et al., FlashAttention,
    arXiv:2205.14135.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).normal(size=(2, 100, 64)).astype("float32")
    >>> pa.create("flash", dim=64, heads=4, causal=True)(x).shape
    (2, 100, 64)
    """

    def _block(self) -> int:
        return int(self.config.block_size)
