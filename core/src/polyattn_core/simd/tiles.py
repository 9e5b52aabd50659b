"""The matrix products and the soft-max step on one tile.

Lanes are queries: scores are held as Sᵀ[key, query] and outputs as Oᵀ[d, query], so

    Sᵀ = K · Qᵀ        Oᵀ += Vᵀ · Pᵀ

K and V are only ever broadcast as scalars and need neither packing nor transposition, and the
statistics of a row are one vector lane: there are no horizontal reductions. A tile's statistics
are five rows of `queries` numbers in scratch memory:

====  =======================================================
row   content
====  =======================================================
0     running maximum of the scores
1     running denominator
2     factor by which the output so far has to be rescaled
3     maximum of this tile; −inf between tiles
4     running Σ eˢ⁻ᵐ (s − m) log₂e of the scores s and their maximum m, where the entropy is wanted
====  =======================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from . import target
from .vector import Loop, Vectors, index, pointer

ALIGN = 64
_INT = types.intp


def multiply(
    builder: Any,
    vectors: Vectors,
    a: Any,
    a_row: Any,
    a_step: Any,
    b: Any,
    b_step: Any,
    accumulators: list[list[Any]],
    length: Any,
    b_align: int,
) -> list[list[Any]]:
    """accumulators[m][n] += a[m·a_row + k·a_step] · b[k·b_step + n·lanes : + lanes], over k."""
    rows, columns = len(accumulators), len(accumulators[0])
    starts = [builder.gep(a, [builder.mul(index(m), a_row)]) for m in range(rows)]
    with Loop(builder, length, [x for row in accumulators for x in row]) as loop:
        values = list(loop.carried)
        offset = builder.mul(loop.i, b_step)
        right = [
            vectors.load(builder, b, builder.add(offset, index(n * vectors.lanes)), b_align)
            for n in range(columns)
        ]
        along = builder.mul(loop.i, a_step)
        for m in range(rows):
            left = vectors.splat(builder, builder.load(builder.gep(starts[m], [along])))
            for n in range(columns):
                place = m * columns + n
                values[place] = vectors.multiply_add(builder, left, right[n], values[place])
        loop.close(values)
    return [loop.carried[m * columns : (m + 1) * columns] for m in range(rows)]


Rows = Callable[[Any, int, list[Any]], list[Any]]


def row_blocks(builder: Any, count: Any, rows: int, carried: list[Any], body: Rows) -> list[Any]:
    """Call `body(first row, rows, carried)` for all of `count` rows: blocks, then what is left.

    Few rows at a time cannot hide the latency of multiply-add, so what is left of large blocks goes
    through blocks of a quarter first.
    """
    start = index(0)
    for step in sorted({rows, max(rows // 4, 1), 1}, reverse=True):
        left = builder.sub(count, start)
        stop = builder.add(start, builder.mul(builder.sdiv(left, index(step)), index(step)))
        with Loop(builder, stop, carried, step, start) as loop:
            loop.close(body(loop.i, step, list(loop.carried)))
        carried, start = list(loop.carried), stop
    return carried


def _by_columns(builder: Any, active: Any, columns: int, emit: Callable[[int], None]) -> None:
    """Emit code for each possible number of columns, of which `active` are in use."""
    done = builder.function.append_basic_block("columns.done")
    for count in range(columns, 0, -1):
        if count == 1:
            emit(count)
            builder.branch(done)
            break
        here = builder.function.append_basic_block(f"columns.{count}")
        fewer = builder.function.append_basic_block("columns.fewer")
        builder.cbranch(builder.icmp_signed(">=", active, index(count)), here, fewer)
        builder.position_at_end(here)
        emit(count)
        builder.branch(done)
        builder.position_at_end(fewer)
    builder.position_at_end(done)


def _score_product(tile: target.Tile) -> Any:
    """scores[key, lane] = key · packed query, for `keys` keys, and their maximum."""
    vectors = Vectors(tile.dtype, tile.lanes)
    lanes, wide = tile.lanes, tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def score_product(typing, key, at, step, keys, scratch, packed, scores, maximum, size, active):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            key_, at_, step_, keys_, scratch_, packed_, scores_, maximum_, size_, active_ = args
            k = builder.gep(pointer(context, builder, signature.args[0], key_), [at_])
            s = pointer(context, builder, signature.args[4], scratch_)
            queries = builder.gep(s, [packed_])

            def for_columns(columns: int) -> None:
                def block(first: Any, rows: int, most: list[Any]) -> list[Any]:
                    zero = vectors.constant(0.0)
                    result = multiply(
                        builder, vectors, builder.gep(k, [builder.mul(first, step_)]), step_,
                        index(1), queries, index(wide), [[zero] * columns for _ in range(rows)],
                        size_, ALIGN,
                    )  # fmt: skip
                    row = builder.add(scores_, builder.mul(first, index(wide)))
                    for m in range(rows):
                        for n in range(columns):
                            most[n] = vectors.maximum(builder, result[m][n], most[n])
                            to = builder.add(row, index(m * wide + n * lanes))
                            vectors.store(builder, result[m][n], s, to, ALIGN)
                    return most

                places = [builder.add(maximum_, index(n * lanes)) for n in range(columns)]
                before = [vectors.load(builder, s, place, ALIGN) for place in places]
                most = row_blocks(builder, keys_, tile.accumulators // columns, before, block)
                for place, value in zip(places, most, strict=True):
                    vectors.store(builder, value, s, place, ALIGN)

            _by_columns(builder, active_, tile.columns, for_columns)
            return context.get_dummy_value()

        arguments = (key, _INT, _INT, _INT, scratch, _INT, _INT, _INT, _INT, _INT)
        return types.void(*arguments), emit

    return score_product


def _value_product(tile: target.Tile) -> Any:
    """output[d, lane] = output[d, lane] · rescale[lane] + Σ value[key, d] · weights[key, lane].

    The sum is taken by itself before it is added, so that rounding errors grow with the number of
    tiles rather than with that of keys.
    """
    vectors = Vectors(tile.dtype, tile.lanes)
    lanes, wide = tile.lanes, tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def value_product(
        typing, value, at, step, keys, scratch, weights, output, rescale, size, active
    ):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            value_, at_, step_, keys_, scratch_, weights_, output_, rescale_, size_, active_ = args
            v = builder.gep(pointer(context, builder, signature.args[0], value_), [at_])
            s = pointer(context, builder, signature.args[4], scratch_)
            w = builder.gep(s, [weights_])

            def for_columns(columns: int) -> None:
                factors = [
                    vectors.load(builder, s, builder.add(rescale_, index(n * lanes)), ALIGN)
                    for n in range(columns)
                ]

                def block(first: Any, rows: int, nothing: list[Any]) -> list[Any]:
                    row = builder.add(output_, builder.mul(first, index(wide)))

                    def place(m: int, n: int) -> Any:
                        return builder.add(row, index(m * wide + n * lanes))

                    zero = vectors.constant(0.0)
                    result = multiply(
                        builder, vectors, builder.gep(v, [first]), index(1), step_, w, index(wide),
                        [[zero] * columns for _ in range(rows)], keys_, ALIGN,
                    )  # fmt: skip
                    for m in range(rows):
                        for n in range(columns):
                            before = vectors.load(builder, s, place(m, n), ALIGN)
                            total = vectors.multiply_add(builder, before, factors[n], result[m][n])
                            vectors.store(builder, total, s, place(m, n), ALIGN)
                    return nothing

                row_blocks(builder, size_, tile.accumulators // columns, [], block)

            _by_columns(builder, active_, tile.columns, for_columns)
            return context.get_dummy_value()

        arguments = (value, _INT, _INT, _INT, scratch, _INT, _INT, _INT, _INT, _INT)
        return types.void(*arguments), emit

    return value_product


def _lane_product(tile: target.Tile) -> Any:
    """out[key, :] += Σ left[key, lane] · right[lane, :], the product contracted over queries.

    Rows of `right` and `out` are `step` numbers apart, of which `width` are used, a multiple of
    `lanes`; `queries` lanes are used.
    """
    vectors = Vectors(tile.dtype, tile.lanes)
    lanes, wide = tile.lanes, tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def lane_product(typing, scratch, left, right, queries, out, at, keys, step, width):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, left_, right_, queries_, out_, at_, keys_, step_, width_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            o = builder.gep(pointer(context, builder, signature.args[4], out_), [at_])

            def strip(start: Any, columns: int) -> None:
                def block(first: Any, rows: int, nothing: list[Any]) -> list[Any]:
                    row = builder.add(builder.mul(first, step_), start)

                    def place(m: int, n: int) -> Any:
                        below = builder.mul(step_, index(m))
                        return builder.add(builder.add(row, below), index(n * lanes))

                    zero = vectors.constant(0.0)
                    from_row = builder.add(left_, builder.mul(first, index(wide)))
                    result = multiply(
                        builder, vectors, builder.gep(s, [from_row]), index(wide), index(1),
                        builder.gep(s, [builder.add(right_, start)]), step_,
                        [[zero] * columns for _ in range(rows)], queries_,
                        vectors.itemsize * lanes,
                    )  # fmt: skip
                    for m in range(rows):
                        for n in range(columns):
                            before = vectors.load(builder, o, place(m, n))
                            total = builder.fadd(before, result[m][n])
                            vectors.store(builder, total, o, place(m, n))
                    return nothing

                row_blocks(builder, keys_, tile.accumulators // columns, [], block)

            whole = builder.sub(width_, builder.srem(width_, index(wide)))
            with Loop(builder, whole, [], wide) as loop:
                strip(loop.i, tile.columns)
                loop.close([])
            rest = builder.sdiv(builder.sub(width_, whole), index(lanes))
            some = builder.icmp_signed(">", rest, index(0))
            with builder.if_then(some):
                _by_columns(builder, rest, tile.columns - 1, lambda count: strip(whole, count))
            return context.get_dummy_value()

        arguments = (scratch, _INT, _INT, _INT, out, _INT, _INT, _INT, _INT)
        return types.void(*arguments), emit

    return lane_product


_LOG2_E = float(np.log2(np.e))
_NO_WEIGHT = -1e4  # two to this power is 0 in every dtype, and 0 times it is 0
_UNROLL = 4  # keys at a time in passes over a tile, so that latencies overlap


def _each_column(tile: target.Tile, builder: Any, active: Any, body: Callable[[Any], None]) -> None:
    """Call `body` with the offset of each column in use."""
    with Loop(builder, builder.mul(active, index(tile.lanes)), [], tile.lanes) as loop:
        body(loop.i)
        loop.close([])


def _softmax_step(tile: target.Tile, *, entropy: bool) -> Any:
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


def _exp_shifted(tile: target.Tile) -> Any:
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


def _gradient_step(tile: target.Tile) -> Any:
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


def _tile_maximum(tile: target.Tile) -> Any:
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


@functools.cache
def tile_operations(dtype: str) -> SimpleNamespace:
    """The operations on a tile of this dtype, for use inside kernels."""
    tile = target.tile(dtype)
    return SimpleNamespace(
        score_product=_score_product(tile),
        value_product=_value_product(tile),
        lane_product=_lane_product(tile),
        softmax_step=_softmax_step(tile, entropy=False),
        entropy_step=_softmax_step(tile, entropy=True),
        exp_shifted=_exp_shifted(tile),
        gradient_step=_gradient_step(tile),
        tile_maximum=_tile_maximum(tile),
    )
