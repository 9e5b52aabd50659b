"""Exact attention in linear memory."""

from __future__ import annotations

from polyattn_core.streaming import StreamingMechanism


class Flash(StreamingMechanism):
    """Exact soft-max attention, tiled: nothing of size queries × keys is ever in memory.

        softmax(scale · q·kᵀ) v

    where scale is 1/√(head size) unless given. With a running maximum m, a running denominator l
    and a running output o, which start at −∞, 0 and 0, a tile of scores S updates

        m' = max(m, max S),   l' = l·e^{m−m'} + Σ e^{S−m'},   o' = o·e^{m−m'} + e^{S−m'} v

    and o/l at the end is the output. Gradients recompute the weights from m + ln l.

    O(n² d) time, O(n d) memory, forward and backward. Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`. `block_size`, the keys of a tile, changes
    speed and the order of rounding, nothing else.

    References
    ----------
    Dao et al., FlashAttention: fast and memory-efficient exact attention with IO-awareness,
    arXiv:2205.14135.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((2, 100, 64), np.float32)
    >>> flash = pa.create("flash", dim=64, heads=4, causal=True)
    >>> output, pullback = flash.vjp(x)
    >>> pullback(np.ones_like(output)).query.shape
    (2, 100, 64)
    """

    def _block(self) -> int:
        return int(self.config.block_size)
