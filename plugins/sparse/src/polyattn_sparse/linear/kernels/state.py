"""The running state of a scan, and how tokens enter it.

*Items* are what is summed (keys with their values; for gradients also queries with theirs), *rows*
are what reads the sum. The state after some items is, for each feature r,

    M[r] = max log φ_r     S[r, :] = Σ φ_r e^(−M[r]) · payload     z[r] = Σ φ_r e^(−M[r]) · weight

With a maximum for each feature the largest item of a feature always counts as 1: however large or
small the features are, no row that sees anything finds nothing. Feature maps without exponentials
keep M = 0.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba.core import types

from polyattn_core.simd.jit import inline
from polyattn_core.simd.mathematics import exp
from polyattn_core.simd.scores import aligned_start
from polyattn_core.simd.tile_products import ALIGN

from . import blocks, emission
from .blocks import call

EXPONENTIAL, ELU, RELU = range(3)
"""Feature maps: exp(projection), elu + 1, rectifier."""

ZERO, ONE = np.int64(0), np.int64(1)
"""For arguments: Numba compiles a helper anew for each whole number that is written down."""

PRODUCT, TRANSPOSE, SCALE_ROW, EXP_TOKENS, EXP_ROWS = range(5, 5 + len(blocks.OPERATIONS))
"""Where the plan has the addresses of the operations on blocks."""

# What every kernel is given, in the order of the kernels' arguments; arrays of 4 axes are
# (batch, heads, tokens, size), of 3 (batch, heads, tokens).
# `shift`: subtracted from the logarithms of the items' features.
# `counts`: (batch, rows), how many of the items a row sees; never falls from row to row.
# `projection`: (features, size + 1), the last column for what is added to the projections.
# `numbers`: scale, added to all logarithms of features, ε of the normaliser.
# `plan`: feature map, number of features, rows of a segment, items of a piece, pieces, addresses.
# `pieces`: states after the first 1, 2, … pieces, (units, pieces, features · (padded size + 2)).
Problem = namedtuple(
    "Problem", "item shift payload weight row counts projection numbers plan pieces"
)
State = namedtuple("State", "total mass most")
# One block of items; `probe` is 0 where all of it is finite.
Block = namedtuple("Block", "tokens features payload weight shift top mass probe")


def problem_types(dtype: str) -> tuple[Any, ...]:
    """Numba types of the fields of a problem."""
    number = types.float32 if dtype == "float32" else types.float64

    def array(ndim: int, layout: str = "A", kind: Any = number) -> Any:
        return types.Array(kind, ndim, layout, readonly=True)

    return (
        array(4), array(3), array(4), array(3), array(4), array(2, "A", types.int64), array(2, "C"),
        array(1, "C"), array(1, "C", types.int64), array(3, "C"),
    )  # fmt: skip


@functools.cache
def state_operations(dtype: str) -> SimpleNamespace:
    """Operations on states and blocks, for use inside kernels of this dtype."""
    lanes, wide = np.int64(emission.lanes(dtype)), np.int64(emission.wide(dtype))
    number = np.dtype(dtype).type
    zero, one, half, lowest = number(0), number(1), number(0.5), number(-np.inf)

    @inline
    def clear(array, first, count):  # type: ignore[no-untyped-def]
        # Of signed places Numba cannot tell that they are not counted from the end.
        for x in range(np.uint64(first), np.uint64(first + count)):
            array[x] = zero

    @inline
    def room(count):  # type: ignore[no-untyped-def]
        """Uninitialised memory for so many numbers, aligned."""
        memory = np.empty(count + ALIGN, number)
        start = aligned_start(memory)
        return memory[start : start + count]

    @inline
    def padded(size):  # type: ignore[no-untyped-def]
        """`size` rounded up to whole vectors."""
        return (size + lanes - 1) // lanes * lanes

    @inline
    def place(array, b, h, n):  # type: ignore[no-untyped-def]
        """Index of array[b, h, n, 0] from the array's first number."""
        at = b * array.strides[0] + h * array.strides[1] + n * array.strides[2]
        return at // array.itemsize

    @inline
    def step(array):  # type: ignore[no-untyped-def]
        """Numbers from one token to the next."""
        return array.strides[2] // array.itemsize

    @inline
    def new_state(features, payload_size):  # type: ignore[no-untyped-def]
        return State(room(features * padded(payload_size)), room(features), room(features))

    @inline
    def new_block(features, size, payload_size):  # type: ignore[no-untyped-def]
        return Block(
            room((size + 1) * wide), room(features * wide), room(wide * padded(payload_size)),
            room(wide), room(wide), room(features), room(features), room(ONE),
        )  # fmt: skip

    @inline
    def load_state(p, unit, used, state):  # type: ignore[no-untyped-def]
        """The state after the first `used` pieces."""
        features = p.plan[1]
        wide_total = state.total.size
        if used == 0:
            clear(state.total, ZERO, wide_total)
            clear(state.mass, ZERO, features)
            # Feature maps without exponentials are measured from 1 = e⁰.
            for r in range(features):
                state.most[r] = lowest if p.plan[0] == EXPONENTIAL else zero
            return
        for x in range(wide_total):
            state.total[x] = p.pieces[unit, used - 1, x]
        for r in range(features):
            state.mass[r] = p.pieces[unit, used - 1, wide_total + r]
            state.most[r] = p.pieces[unit, used - 1, wide_total + features + r]

    @inline
    def load_tokens(p, array, b, h, first, count, tokens):  # type: ignore[no-untyped-def]
        """tokens[d · wide + lane]; lanes without a token are 0."""
        size = array.shape[3]
        if count < wide:
            clear(tokens, ZERO, size * wide)
        call(
            p.plan[TRANSPOSE], array, place(array, b, h, first), step(array), tokens, 0, wide,
            count, size,
        )  # fmt: skip

    @inline
    def logarithms(p, tokens, shift, count, logs):  # type: ignore[no-untyped-def]
        """logs[r · wide + lane] of tokens' features, less a shift a token; −inf beyond `count`."""
        features, size = p.plan[1], p.projection.shape[1] - 1
        extra = size * wide
        for j in range(wide):
            tokens[extra + j] = zero
        for d in range(size):
            for j in range(wide):
                tokens[extra + j] += tokens[d * wide + j] * tokens[d * wide + j]
        for j in range(wide):
            log = p.numbers[1] - half * p.numbers[0] * tokens[extra + j] - shift[j]
            tokens[extra + j] = log if j < count else lowest
        clear(logs, ZERO, features * wide)
        call(
            p.plan[PRODUCT], logs, 0, wide, p.projection, 0, size + 1, 1, tokens, 0, wide, features,
            wide // lanes, size + 1,
        )  # fmt: skip

    @inline
    def plain_features(p, tokens, factor, out):  # type: ignore[no-untyped-def]
        """Features of maps without exponentials, times a factor a token."""
        scale = p.numbers[0]
        for d in range(p.plan[1]):
            at = d * wide
            if p.plan[0] == ELU:
                for j in range(wide):
                    x = tokens[at + j] * scale
                    out[at + j] = (x + one if x > zero else exp(x)) * factor[j]
            else:
                for j in range(wide):
                    x = tokens[at + j] * scale
                    # max(NaN, 0) would hide a token that is not a number.
                    out[at + j] = (zero if x < zero else x) * factor[j]

    @inline
    def load_block(p, b, h, first, count, state, block):  # type: ignore[no-untyped-def]
        """Features and payload of items first … first + count − 1; is all of it finite?"""
        features, size = p.plan[1], p.payload.shape[3]
        across = padded(size)
        load_tokens(p, p.item, b, h, first, count, block.tokens)
        for j in range(wide):
            block.shift[j] = p.shift[b, h, first + j] if j < count else zero
            block.weight[j] = p.weight[b, h, first + j] if j < count else zero
        block.probe[0] = zero
        if p.plan[0] == EXPONENTIAL:
            logarithms(p, block.tokens, block.shift, count, block.features)
            call(
                p.plan[EXP_TOKENS], block.features, 0, state.most, 0, block.top, 0, block.mass, 0,
                block.weight, 0, features,
            )  # fmt: skip
        else:
            for j in range(wide):
                block.shift[j] = exp(-block.shift[j]) if j < count else zero
            plain_features(p, block.tokens, block.shift, block.features)
            for r in range(features):
                mass = zero
                for j in range(wide):
                    mass += block.features[r * wide + j] * block.weight[j]
                block.mass[r] = mass
                block.top[r] = zero
        for r in range(features):
            block.probe[0] += block.mass[r] * zero
        at, along = place(p.payload, b, h, first), step(p.payload)
        for j in range(count):
            call(
                p.plan[SCALE_ROW], p.payload, at + j * along, block.payload, j * across, size, one,
                block.probe, 0,
            )  # fmt: skip
            for d in range(size, across):
                block.payload[j * across + d] = zero
        return block.probe[0] == zero

    @inline
    def absorb(p, block, count, state):  # type: ignore[no-untyped-def]
        """Add a block to the state."""
        features, across = p.plan[1], padded(p.payload.shape[3])
        if p.plan[0] == EXPONENTIAL:
            for r in range(features):
                if state.most[r] < block.top[r]:
                    # From −inf the factor is exp(−inf) = 0, times a sum that is still 0.
                    factor = exp(state.most[r] - block.top[r])
                    for d in range(across):
                        state.total[r * across + d] *= factor
                    state.mass[r] *= factor
                    state.most[r] = block.top[r]
        for r in range(features):
            state.mass[r] += block.mass[r]
        call(
            p.plan[PRODUCT], state.total, 0, across, block.features, 0, wide, 1, block.payload, 0,
            across, features, across // lanes, count,
        )  # fmt: skip

    return SimpleNamespace(
        lanes=lanes,
        wide=wide,
        clear=clear,
        room=room,
        padded=padded,
        place=place,
        step=step,
        new_state=new_state,
        new_block=new_block,
        load_state=load_state,
        load_tokens=load_tokens,
        logarithms=logarithms,
        plain_features=plain_features,
        load_block=load_block,
        absorb=absorb,
    )
