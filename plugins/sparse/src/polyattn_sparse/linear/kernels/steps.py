"""The steps of a scan that its kernels share.

A scan goes through its rows in blocks. What all rows of a block see is in the state when they are
computed; the items that only some of them see, always fewer than a block holds, are paired with
each row, and enter the state afterwards. Every item is transformed once.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np

from polyattn_core.simd.jit import inline

from .blocks import call
from .state import ONE, PRODUCT, ZERO, state_operations

_STRIP = 16  # rows of a block whose products stop at the last item that one of them sees


@functools.cache
def scan_operations(dtype: str) -> SimpleNamespace:
    """Steps of a scan, for use inside kernels of this dtype."""
    ops = state_operations(dtype)
    wide, lanes, padded, clear = ops.wide, ops.lanes, ops.padded, ops.clear
    load_block, absorb = ops.load_block, ops.absorb
    number = np.dtype(dtype).type
    zero = number(0)

    @inline
    def absorb_range(p, b, h, heads, first, stop, state, block):  # type: ignore[no-untyped-def]
        """Add items first … stop − 1 of heads h … h + heads − 1 to the state."""
        start = first
        while start < stop:
            count = min(wide, stop - start)
            for head in range(h, h + heads):
                load_block(p, b, head, start, count, state, block)
                absorb(p, block, count, state)
            start += count

    @inline
    def begin(p, b, first, at):  # type: ignore[no-untyped-def]
        """How many pieces row `first` sees in full; at[0] becomes the number of items in them."""
        seen, most = p.counts[b, first], p.counts[b, p.counts.shape[1] - 1]
        used = ZERO
        while used < p.plan[4] and min((used + 1) * p.plan[3], most) <= seen:
            used += 1
        at[0] = min(used * p.plan[3], most)
        return used

    @inline
    def advance(p, b, h, heads, first, count, at, state, block):  # type: ignore[no-untyped-def]
        """Add up what all of these rows see, unless it fits in one block with the rest.

        Returns how many items are left that some of them see, or −1 where that is too many, which
        a single row never meets.
        """
        low, high = p.counts[b, first], p.counts[b, first + count - 1]
        if count == 1 or high - at[0] > wide:
            absorb_range(p, b, h, heads, at[0], low, state, block)
            at[0] = max(at[0], low)
        width = high - at[0]
        return width if width <= wide else -ONE

    @inline
    def find_limits(p, b, first, count, done, limit):  # type: ignore[no-untyped-def]
        """How many items of the block each row sees; 0 in lanes without a row."""
        for j in range(wide):
            limit[j] = number(p.counts[b, first + j] - done) if j < count else zero

    @inline
    def hide(width, limit, pairs):  # type: ignore[no-untyped-def]
        """0 for pairs[item · wide + row] that do not see each other."""
        for i in range(width):
            for j in range(wide):
                pairs[i * wide + j] = pairs[i * wide + j] if number(i) < limit[j] else zero

    @inline
    def pair(p, count, width, block, features, limit, pairs):  # type: ignore[no-untyped-def]
        """pairs[item · wide + row] = product of their features, 0 where the row does not see it."""
        clear(pairs, ZERO, width * wide)
        for i in range(0, width, _STRIP):
            # Rows that see none of the strip come first: none sees less than the row before.
            start = ZERO
            while start < count and limit[start] <= i:
                start += 1
            start = start // lanes * lanes
            call(
                p.plan[PRODUCT], pairs, i * wide + start, wide, block.features, i, 1, wide,
                features, start, wide, min(_STRIP, width - i), (wide - start) // lanes, p.plan[1],
            )  # fmt: skip
        hide(width, limit, pairs)

    @inline
    def apply_pairs(p, count, width, block, pairs, limit, result, to):  # type: ignore[no-untyped-def]
        """result[to + row · size + d] += Σ pairs · payload over the items that the row sees."""
        across = padded(p.payload.shape[3])
        for j in range(0, count, _STRIP):
            rows = min(_STRIP, count - j)
            seen = min(width, np.int64(limit[j + rows - 1]))
            call(
                p.plan[PRODUCT], result, to + j * across, across, pairs, j, 1, wide, block.payload,
                0, across, rows, across // lanes, seen,
            )  # fmt: skip

    return SimpleNamespace(
        **vars(ops),
        absorb_range=absorb_range,
        begin=begin,
        advance=advance,
        find_limits=find_limits,
        hide=hide,
        pair=pair,
        apply_pairs=apply_pairs,
    )
