"""Vector code of the two stages: passes over a panel of scores, and over single rows."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from polyattn_core.simd import target
from polyattn_core.simd.rows import lane_sums
from polyattn_core.simd.transpose import transposed
from polyattn_core.simd.vector import I32, Loop, Vectors, index, pointer

_INT = types.intp


def _number(vectors: Vectors) -> Any:
    return types.float32 if vectors.dtype == "float32" else types.float64


def _extremes(vectors: Vectors, wide: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def extremes(typing, scratch, panel, count, low, high, seen):  # type: ignore[no-untyped-def]
        """The least and the greatest of the numbers above −∞ of each lane, and how many."""

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, panel_, count_, low_, high_, seen_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            lowest, highest = vectors.constant(float("-inf")), vectors.constant(float("inf"))
            one, zero = vectors.constant(1.0), vectors.constant(0.0)
            with Loop(builder, index(wide), [], vectors.lanes) as lanes:
                start = builder.add(panel_, lanes.i)
                with Loop(builder, count_, [highest, lowest, zero]) as loop:
                    at = builder.add(start, builder.mul(loop.i, index(wide)))
                    score = vectors.load(builder, s, at)
                    least, most, total = loop.carried
                    visible = builder.fcmp_ordered(">", score, lowest)
                    below = builder.and_(visible, builder.fcmp_ordered("<", score, least))
                    more = builder.fadd(total, builder.select(visible, one, zero))
                    loop.close(
                        [
                            builder.select(below, score, least),
                            vectors.maximum(builder, score, most),
                            more,
                        ]
                    )
                for place, value in zip((low_, high_, seen_), loop.carried, strict=True):
                    vectors.store(builder, value, s, builder.add(place, lanes.i))
                lanes.close([])
            return context.get_dummy_value()

        return types.void(scratch, _INT, _INT, _INT, _INT, _INT), emit

    return extremes


def _counts(vectors: Vectors, wide: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def counts(typing, scratch, panel, count, bar, found):  # type: ignore[no-untyped-def]
        """How many numbers of each lane reach its bar."""

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, panel_, count_, bar_, found_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            one, zero = vectors.constant(1.0), vectors.constant(0.0)
            columns = wide // vectors.lanes
            offsets = [index(c * vectors.lanes) for c in range(columns)]
            bars = [vectors.load(builder, s, builder.add(bar_, offset)) for offset in offsets]
            with Loop(builder, count_, [zero] * columns) as loop:
                row = builder.add(panel_, builder.mul(loop.i, index(wide)))
                totals = []
                for offset, least, total in zip(offsets, bars, loop.carried, strict=True):
                    score = vectors.load(builder, s, builder.add(row, offset))
                    passes = builder.fcmp_ordered(">=", score, least)
                    totals.append(builder.fadd(total, builder.select(passes, one, zero)))
                loop.close(totals)
            for offset, total in zip(offsets, loop.carried, strict=True):
                vectors.store(builder, total, s, builder.add(found_, offset))
            return context.get_dummy_value()

        return types.void(scratch, _INT, _INT, _INT, _INT), emit

    return counts


def _passing_block(vectors: Vectors, wide: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def passing_block(typing, scratch, at, bar, words, to, shift):  # type: ignore[no-untyped-def]
        """Add to words[to + j] a bit for each of `lanes` numbers of lane j, from `shift` on.

        It is 1 where the number is not below the lane's bar, NaN included.
        """

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, at_, bar_, words_, to_, shift_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            w = pointer(context, builder, signature.args[3], words_)
            rows = [
                vectors.load(builder, s, builder.add(at_, index(r * wide)))
                for r in range(vectors.lanes)
            ]
            for j, numbers in enumerate(transposed(builder, rows)):
                least = builder.load(builder.gep(s, [builder.add(bar_, index(j))]))
                passes = builder.fcmp_unordered(">=", numbers, vectors.splat(builder, least))
                bits = builder.bitcast(passes, ir.IntType(vectors.lanes))
                place = builder.gep(w, [builder.add(to_, index(j))])
                moved = builder.shl(builder.zext(bits, ir.IntType(64)), shift_)
                builder.store(builder.or_(builder.load(place), moved), place)
            return context.get_dummy_value()

        return types.void(scratch, _INT, _INT, words, _INT, _INT), emit

    return passing_block


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(typing, bits):  # type: ignore[no-untyped-def]
    """Place of the lowest bit of a number that is not 0."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), emit


_ROWS = 4  # rows whose distances are summed at a time, so that latencies overlap


def _gaps(vectors: Vectors, squared: bool) -> Any:
    lanes = vectors.lanes

    @intrinsic  # type: ignore[untyped-decorator]
    def gaps(typing, x, at, y, places, count, size, factor, out):  # type: ignore[no-untyped-def]
        """out[c] = factor · Σ |x[at + i] − y[places[c] + i]|, or of squares, i < `size`.

        Written in whole vectors: up to a vector beyond the last holds anything.
        """

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            x_, at_, y_, places_, count_, size_, factor_, out_ = args
            own = builder.gep(pointer(context, builder, signature.args[0], x_), [at_])
            base = pointer(context, builder, signature.args[2], y_)
            starts = pointer(context, builder, signature.args[3], places_)
            o = pointer(context, builder, signature.args[7], out_)
            last = builder.sub(count_, index(1))
            whole = builder.sub(size_, builder.srem(size_, index(lanes)))
            zero = vectors.constant(0.0)

            def row(number: Any) -> Any:
                inside = builder.select(builder.icmp_signed("<", number, last), number, last)
                return builder.gep(base, [builder.load(builder.gep(starts, [inside]))])

            def more(left: Any, right: Any, total: Any) -> Any:
                part = builder.fsub(left, right)
                if squared:
                    return vectors.multiply_add(builder, part, part, total)
                other = builder.fsub(right, left)
                larger = builder.select(builder.fcmp_unordered(">", part, other), part, other)
                return builder.fadd(total, larger)

            with Loop(builder, count_, [], lanes) as loop:
                rows = [row(builder.add(loop.i, index(m))) for m in range(lanes)]
                totals = []
                for m in range(0, lanes, min(_ROWS, lanes)):
                    some = rows[m : m + _ROWS]
                    with Loop(builder, whole, [zero] * len(some), lanes) as along:
                        left = vectors.load(builder, own, along.i)
                        along.close(
                            [
                                more(left, vectors.load(builder, start, along.i), total)
                                for start, total in zip(some, along.carried, strict=True)
                            ]
                        )
                    totals += along.carried
                with Loop(builder, size_, [lane_sums(builder, vectors, totals)], 1, whole) as rest:
                    left = vectors.splat(builder, builder.load(builder.gep(own, [rest.i])))
                    right = ir.Constant(vectors.type, ir.Undefined)
                    for m, start in enumerate(rows):
                        number = builder.load(builder.gep(start, [rest.i]))
                        right = builder.insert_element(right, number, ir.Constant(I32, m))
                    rest.close([more(left, right, rest.carried[0])])
                scaled = builder.fmul(rest.carried[0], vectors.splat(builder, factor_))
                vectors.store(builder, scaled, o, loop.i)
                loop.close([])
            return context.get_dummy_value()

        return types.void(x, _INT, y, places, _INT, _INT, _number(vectors), out), emit

    return gaps


_STRIP = 4  # vectors of an output row that are summed in registers at a time


def _gathered_sum(vectors: Vectors) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def gathered_sum(typing, out, at, weights, first, places, count, array, size):  # type: ignore[no-untyped-def]
        """out[at + i] = Σ_c weights[first + c] · array[places[c] + i], over `size` numbers."""

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            out_, at_, weights_, first_, places_, count_, array_, size_ = args
            o = builder.gep(pointer(context, builder, signature.args[0], out_), [at_])
            w = builder.gep(pointer(context, builder, signature.args[2], weights_), [first_])
            p = pointer(context, builder, signature.args[4], places_)
            a = pointer(context, builder, signature.args[6], array_)

            def strip(start: Any, columns: int) -> None:
                offsets = [builder.add(start, index(c * vectors.lanes)) for c in range(columns)]
                with Loop(builder, count_, [vectors.constant(0.0)] * columns) as loop:
                    row = builder.gep(a, [builder.load(builder.gep(p, [loop.i]))])
                    weight = vectors.splat(builder, builder.load(builder.gep(w, [loop.i])))
                    loop.close(
                        [
                            vectors.multiply_add(
                                builder, weight, vectors.load(builder, row, offset), total
                            )
                            for offset, total in zip(offsets, loop.carried, strict=True)
                        ]
                    )
                for offset, total in zip(offsets, loop.carried, strict=True):
                    vectors.store(builder, total, o, offset)

            wide = _STRIP * vectors.lanes
            strips = builder.sub(size_, builder.srem(size_, index(wide)))
            with Loop(builder, strips, [], wide) as loop:
                strip(loop.i, _STRIP)
                loop.close([])
            whole = builder.sub(size_, builder.srem(size_, index(vectors.lanes)))
            with Loop(builder, whole, [], vectors.lanes, strips) as loop:
                strip(loop.i, 1)
                loop.close([])
            with Loop(builder, size_, [], 1, whole) as loop:
                with Loop(builder, count_, [ir.Constant(vectors.scalar, 0.0)]) as inner:
                    row = builder.gep(a, [builder.load(builder.gep(p, [inner.i]))])
                    more = builder.fmul(
                        builder.load(builder.gep(w, [inner.i])),
                        builder.load(builder.gep(row, [loop.i])),
                    )
                    inner.close([builder.fadd(inner.carried[0], more)])
                builder.store(inner.carried[0], builder.gep(o, [loop.i]))
                loop.close([])
            return context.get_dummy_value()

        arguments = (out, _INT, weights, _INT, places, _INT, array, _INT)
        return types.void(*arguments), emit

    return gathered_sum


@functools.cache
def operations(dtype: str) -> SimpleNamespace:
    """The operations of a dtype, for use inside kernels."""
    tile = target.tile(dtype)
    vectors = Vectors(dtype, tile.lanes)
    return SimpleNamespace(
        extremes=_extremes(vectors, tile.queries),
        counts=_counts(vectors, tile.queries),
        passing_block=_passing_block(vectors, tile.queries),
        squares=_gaps(vectors, True),
        distances=_gaps(vectors, False),
        gathered_sum=_gathered_sum(vectors),
    )
