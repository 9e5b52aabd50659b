"""Vector code of the two stages: passes over a panel of scores, and over single rows."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from polyattn_core.simd import target
from polyattn_core.simd.vector import Loop, Vectors, index, pointer

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


def _passing(vectors: Vectors) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def passing(typing, scratch, at, bar):  # type: ignore[no-untyped-def]
        """One bit for each lane of a vector that is not below its bar, NaN included."""

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, at_, bar_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            left, right = (vectors.load(builder, s, place) for place in (at_, bar_))
            bits = builder.fcmp_unordered(">=", left, right)
            narrow = builder.bitcast(bits, ir.IntType(vectors.lanes))
            return builder.zext(narrow, ir.IntType(64))

        return types.int64(scratch, _INT, _INT), emit

    return passing


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(typing, bits):  # type: ignore[no-untyped-def]
    """Place of the lowest bit of a number that is not 0."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), emit


def _gap(vectors: Vectors, squared: bool) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def gap(typing, x, at, y, to, size):  # type: ignore[no-untyped-def]
        """Σ |x[at + i] − y[to + i]|, or of squares, over `size` numbers."""

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            x_, at_, y_, to_, size_ = args
            left = builder.gep(pointer(context, builder, signature.args[0], x_), [at_])
            right = builder.gep(pointer(context, builder, signature.args[2], y_), [to_])
            whole = builder.sub(size_, builder.srem(size_, index(vectors.lanes)))
            with Loop(builder, whole, [vectors.constant(0.0)], vectors.lanes) as loop:
                a, b = (vectors.load(builder, base, loop.i) for base in (left, right))
                part = builder.fsub(a, b)
                if squared:
                    total = vectors.multiply_add(builder, part, part, loop.carried[0])
                else:
                    other = builder.fsub(b, a)
                    size = builder.select(builder.fcmp_ordered(">", part, other), part, other)
                    total = builder.fadd(loop.carried[0], size)
                loop.close([total])
            suffix = f"v{vectors.lanes}f{8 * vectors.itemsize}"
            function_type = ir.FunctionType(vectors.scalar, [vectors.scalar, vectors.type])
            reduce = cgutils.get_or_insert_function(
                builder.module, function_type, f"llvm.vector.reduce.fadd.{suffix}"
            )
            zero = ir.Constant(vectors.scalar, 0.0)
            total = builder.call(reduce, [zero, loop.carried[0]], fastmath=("reassoc",))
            with Loop(builder, size_, [total], 1, whole) as rest:
                a, b = (builder.load(builder.gep(base, [rest.i])) for base in (left, right))
                part = builder.fsub(a, b)
                if squared:
                    more = builder.fmul(part, part)
                else:
                    other = builder.fsub(b, a)
                    more = builder.select(builder.fcmp_ordered(">", part, other), part, other)
                rest.close([builder.fadd(rest.carried[0], more)])
            return rest.carried[0]

        return _number(vectors)(x, _INT, y, _INT, _INT), emit

    return gap


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
        passing=_passing(vectors),
        squares=_gap(vectors, True),
        distances=_gap(vectors, False),
        gathered_sum=_gathered_sum(vectors),
    )
