"""Passes over the scores of one tile: the running soft-max, and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from . import target
from .tile_products import ALIGN, row_blocks
from .vector import Loop, Vectors, index, pointer

_INT = types.intp
_LOG2_E = float(np.log2(np.e))
_NO_WEIGHT = -1e4  # two to this power is 0 in every dtype, and 0 times it is 0
_UNROLL = 4  # keys at a time in passes over a tile, so that latencies overlap


def _each_column(tile: target.Tile, builder: Any, active: Any, body: Callable[[Any], None]) -> None:
    """Call `body` with the offset of each column in use."""
    with Loop(builder, builder.mul(active, index(tile.lanes)), [], tile.lanes) as loop:
        body(loop.i)
        loop.close([])


def softmax_step_of(tile: target.Tile, *, entropy: bool) -> Any:
    """One step of the running soft-max: scores become weights relative to the new maximum.

    With `entropy`, what that of a row needs besides the denominator is summed too.

    Exponentials are powers of two, of scores times log₂e. A row in which nothing has been visible
    so far has maximum −inf; it is measured from 0 instead, and all its weights are 0.

    Weights are summed in the same order however many keys there are: up to 3 rows behind the last
    are overwritten, with −inf and then 0. So a row is the same, to the last bit, in a tile that
    ends with it and in one that hides what follows.
    """
    vectors = Vectors(tile.dtype, tile.lanes)
    wide = tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def softmax_step(typing, scratch, scores, statistics, keys, active):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, scores_, statistics_, keys_, active_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            lowest, zero = vectors.constant(float("-inf")), vectors.constant(0.0)
            sharp, least = vectors.constant(_LOG2_E), vectors.constant(_NO_WEIGHT)
            more = builder.add(keys_, index(_UNROLL - 1))
            padded = builder.sub(more, builder.srem(more, index(_UNROLL)))

            def column(offset: Any) -> None:
                places = [
                    builder.add(builder.add(statistics_, offset), index(row * wide))
                    for row in range(5)
                ]
                old = vectors.load(builder, s, places[0], ALIGN)
                new = vectors.maximum(builder, vectors.load(builder, s, places[3], ALIGN), old)
                empty = builder.fcmp_ordered("==", new, lowest)
                base = builder.select(empty, zero, new)
                # The difference first, here and below: exactly 1 where the maximum stays, however
                # large it is. A rounding error in their products would be one of the exponent.
                down = builder.fmul(builder.fsub(old, base), sharp)
                rescale = vectors.exp2(builder, down)
                vectors.store(builder, new, s, places[0], ALIGN)
                vectors.store(builder, rescale, s, places[2], ALIGN)
                vectors.store(builder, lowest, s, places[3], ALIGN)
                start = builder.gep(s, [builder.add(scores_, offset)])
                with Loop(builder, padded, [], 1, keys_) as loop:
                    vectors.store(builder, lowest, start, builder.mul(loop.i, index(wide)), ALIGN)
                    loop.close([])
                with Loop(builder, padded, [zero] * (1 + entropy), _UNROLL) as loop:
                    total, *spread = loop.carried
                    for m in range(_UNROLL):
                        at = builder.mul(builder.add(loop.i, index(m)), index(wide))
                        score = vectors.load(builder, start, at, ALIGN)
                        below = builder.fmul(builder.fsub(score, base), sharp)
                        weight = vectors.exp2(builder, below)
                        vectors.store(builder, weight, start, at, ALIGN)
                        total = builder.fadd(total, weight)
                        if entropy:
                            below = vectors.maximum(builder, below, least)
                            spread = [vectors.multiply_add(builder, weight, below, spread[0])]
                    loop.close([total, *spread])
                total, *spread = loop.carried
                before = vectors.load(builder, s, places[1], ALIGN)
                if entropy:
                    down = vectors.maximum(builder, down, least)
                    earlier = vectors.load(builder, s, places[4], ALIGN)
                    earlier = vectors.multiply_add(builder, before, down, earlier)
                    spread = [vectors.multiply_add(builder, earlier, rescale, spread[0])]
                    vectors.store(builder, spread[0], s, places[4], ALIGN)
                total = vectors.multiply_add(builder, before, rescale, total)
                vectors.store(builder, total, s, places[1], ALIGN)

            _each_column(tile, builder, active_, column)
            return context.get_dummy_value()

        return types.void(scratch, _INT, _INT, _INT, _INT), emit

    return softmax_step


def exp_shifted_of(tile: target.Tile) -> Any:
    """exp(score − shift − rest) in place, of one of each a query: recomputed weights.

    `rest` is what rounding took from the shift: of a log-sum-exp of thousands, whole digits.
    """
    vectors = Vectors(tile.dtype, tile.lanes)
    wide = tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def exp_shifted(typing, scratch, scores, shifts, rests, keys, active):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, scores_, shifts_, rests_, keys_, active_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            sharp = vectors.constant(_LOG2_E)

            def column(offset: Any) -> None:
                shift = vectors.load(builder, s, builder.add(shifts_, offset), ALIGN)
                rest = vectors.load(builder, s, builder.add(rests_, offset), ALIGN)
                rest = builder.fneg(builder.fmul(rest, sharp))
                start = builder.gep(s, [builder.add(scores_, offset)])

                def block(first: Any, rows: int, nothing: list[Any]) -> list[Any]:
                    for m in range(rows):
                        at = builder.mul(builder.add(first, index(m)), index(wide))
                        score = vectors.load(builder, start, at, ALIGN)
                        above = builder.fsub(score, shift)
                        below = vectors.multiply_add(builder, above, sharp, rest)
                        vectors.store(builder, vectors.exp2(builder, below), start, at, ALIGN)
                    return nothing

                row_blocks(builder, keys_, _UNROLL, [], block)

            _each_column(tile, builder, active_, column)
            return context.get_dummy_value()

        return types.void(scratch, _INT, _INT, _INT, _INT, _INT), emit

    return exp_shifted


def gradient_step_of(tile: target.Tile) -> Any:
    """Scores become weights P = exp(S − shift − rest), and dP becomes dS = P ∘ (dP − δ).

    Where a weight is 0 its gradient is too, whatever the value behind it is.
    """
    vectors = Vectors(tile.dtype, tile.lanes)
    wide = tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def gradient_step(  # type: ignore[no-untyped-def]
        typing, scratch, scores, incoming, shifts, rests, deltas, keys, active
    ):
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, scores_, incoming_, shifts_, rests_, deltas_, keys_, active_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            sharp, zero = vectors.constant(_LOG2_E), vectors.constant(0.0)

            def column(offset: Any) -> None:
                shift = vectors.load(builder, s, builder.add(shifts_, offset), ALIGN)
                rest = vectors.load(builder, s, builder.add(rests_, offset), ALIGN)
                rest = builder.fneg(builder.fmul(rest, sharp))
                delta = vectors.load(builder, s, builder.add(deltas_, offset), ALIGN)
                start = builder.gep(s, [builder.add(scores_, offset)])
                upstream = builder.gep(s, [builder.add(incoming_, offset)])

                def block(first: Any, rows: int, nothing: list[Any]) -> list[Any]:
                    for m in range(rows):
                        at = builder.mul(builder.add(first, index(m)), index(wide))
                        score = vectors.load(builder, start, at, ALIGN)
                        above = builder.fsub(score, shift)
                        below = vectors.multiply_add(builder, above, sharp, rest)
                        weight = vectors.exp2(builder, below)
                        vectors.store(builder, weight, start, at, ALIGN)
                        change = vectors.load(builder, upstream, at, ALIGN)
                        change = builder.fmul(weight, builder.fsub(change, delta))
                        none = builder.fcmp_ordered("==", weight, zero)
                        change = builder.select(none, zero, change)
                        vectors.store(builder, change, upstream, at, ALIGN)
                    return nothing

                row_blocks(builder, keys_, _UNROLL, [], block)

            _each_column(tile, builder, active_, column)
            return context.get_dummy_value()

        return types.void(scratch, _INT, _INT, _INT, _INT, _INT, _INT, _INT), emit

    return gradient_step


def tile_maximum_of(tile: target.Tile) -> Any:
    """The tile's maximum anew, after its scores were changed."""
    vectors = Vectors(tile.dtype, tile.lanes)
    wide = tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def tile_maximum(typing, scratch, scores, maximum, keys, active):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, scores_, maximum_, keys_, active_ = args
            s = pointer(context, builder, signature.args[0], scratch_)

            def column(offset: Any) -> None:
                start = builder.gep(s, [builder.add(scores_, offset)])
                with Loop(builder, keys_, [vectors.constant(float("-inf"))]) as loop:
                    at = builder.mul(loop.i, index(wide))
                    score = vectors.load(builder, start, at, ALIGN)
                    loop.close([vectors.maximum(builder, score, loop.carried[0])])
                place = builder.add(maximum_, offset)
                vectors.store(builder, loop.carried[0], s, place, ALIGN)

            _each_column(tile, builder, active_, column)
            return context.get_dummy_value()

        return types.void(scratch, _INT, _INT, _INT, _INT), emit

    return tile_maximum
