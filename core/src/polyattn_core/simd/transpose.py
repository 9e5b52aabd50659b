"""Turning rows into lanes and back, a square block of vectors at a time."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import target
from .jit import embed, inline
from .vector import I32, Loop, Vectors, index, pointer, raw

_INT = types.intp


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The transpose of a square block: in turn, exchange the off-diagonal blocks of each size."""
    lanes = len(rows)
    rows = list(rows)
    half = 1
    while half < lanes:
        upper, lower = [], []
        for lane in range(lanes):
            # Lanes of the second vector are numbered from `lanes`.
            upper.append(lanes + lane - half if lane & half else lane)
            lower.append(lanes + lane if lane & half else lane + half)
        masks = [ir.Constant(ir.VectorType(I32, lanes), m) for m in (upper, lower)]
        for i in range(lanes):
            if not i & half:
                a, b = rows[i], rows[i + half]
                rows[i] = builder.shuffle_vector(a, b, masks[0])
                rows[i + half] = builder.shuffle_vector(a, b, masks[1])
        half *= 2
    return rows


BLOCK = 16
"""Rows and columns of a block of bytes."""


@intrinsic  # type: ignore[untyped-decorator]
def visible_block(typing, octets, at, step, out, to, wide):  # type: ignore[no-untyped-def]
    """out[to + k · wide + j] = is octets[at + j · step + k] not 0, for a square block of bytes."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        octets_, at_, step_, out_, to_, wide_ = args
        source = builder.gep(pointer(context, builder, signature.args[0], octets_), [at_])
        target_ = builder.gep(pointer(context, builder, signature.args[3], out_), [to_])
        kind = ir.VectorType(ir.IntType(8), BLOCK)

        def row(base: Any, step: Any, number: int) -> Any:
            place = builder.gep(base, [builder.mul(step, index(number))])
            return builder.bitcast(place, ir.PointerType(kind))

        rows = []
        for j in range(BLOCK):
            rows.append(builder.load(row(source, step_, j), typ=kind))
            rows[j].align = 1
        zeros = ir.Constant(kind, [0] * BLOCK)
        for k, column in enumerate(transposed(builder, rows)):
            seen = builder.zext(builder.icmp_unsigned("!=", column, zeros), kind)
            builder.store(seen, row(target_, wide_, k)).align = 1
        return context.get_dummy_value()

    return types.void(octets, _INT, _INT, out, _INT, _INT), emit


def _block_in(vectors: Vectors, wide: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def block_in(typing, array, at, step, factor, scratch, to):  # type: ignore[no-untyped-def]
        """scratch[to + d · wide + j] = array row j, number d, times a factor."""

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            array_, at_, step_, factor_, scratch_, to_ = args
            a = pointer(context, builder, signature.args[0], array_)
            s = pointer(context, builder, signature.args[4], scratch_)
            rows = [
                vectors.load(builder, a, builder.add(at_, builder.mul(step_, index(j))))
                for j in range(vectors.lanes)
            ]
            times = vectors.splat(builder, factor_)
            for d, column in enumerate(transposed(builder, rows)):
                place = builder.add(to_, index(d * wide))
                vectors.store(builder, builder.fmul(column, times), s, place)
            return context.get_dummy_value()

        number = types.float32 if vectors.dtype == "float32" else types.float64
        return types.void(array, _INT, _INT, number, scratch, _INT), emit

    return block_in


def _block_out(vectors: Vectors, wide: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def block_out(typing, scratch, at, factors, array, to, step):  # type: ignore[no-untyped-def]
        """Array row j, number d = scratch[at + d · wide + j] · scratch[factors + j]."""

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, at_, factors_, array_, to_, step_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            a = pointer(context, builder, signature.args[3], array_)
            times = vectors.load(builder, s, factors_)
            columns = [
                builder.fmul(vectors.load(builder, s, builder.add(at_, index(d * wide))), times)
                for d in range(vectors.lanes)
            ]
            for j, row in enumerate(transposed(builder, columns)):
                place = builder.add(to_, builder.mul(step_, index(j)))
                vectors.store(builder, row, a, place)
            return context.get_dummy_value()

        return types.void(scratch, _INT, _INT, array, _INT, _INT), emit

    return block_out


def _block_add(vectors: Vectors, wide: int, *, out: bool) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def block_add(typing, array, at, step, scratch, to):  # type: ignore[no-untyped-def]
        """Add a square block of array rows to lanes, or with `out` of lanes to array rows.

        Rows may be the same memory, or overlap: each is read after the one before is written.
        """

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            array_, at_, step_, scratch_, to_ = args
            a = pointer(context, builder, signature.args[0], array_)
            s = pointer(context, builder, signature.args[3], scratch_)
            rows = [builder.add(at_, builder.mul(step_, index(j))) for j in range(vectors.lanes)]
            lanes = [builder.add(to_, index(d * wide)) for d in range(vectors.lanes)]
            source, target_ = ((s, lanes), (a, rows)) if out else ((a, rows), (s, lanes))
            turned = transposed(builder, [vectors.load(builder, source[0], i) for i in source[1]])
            for vector, place in zip(turned, target_[1], strict=True):
                total = builder.fadd(vectors.load(builder, target_[0], place), vector)
                vectors.store(builder, total, target_[0], place)
            return context.get_dummy_value()

        return types.void(array, _INT, _INT, scratch, _INT), emit

    return block_add


def _add_same(vectors: Vectors, wide: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def add_same(typing, array, at, step, count, scratch, to):  # type: ignore[no-untyped-def]
        """scratch[to + d · wide + j] += array[at + d · step] for all lanes j and d < count."""

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            array_, at_, step_, count_, scratch_, to_ = args
            a = builder.gep(pointer(context, builder, signature.args[0], array_), [at_])
            s = builder.gep(pointer(context, builder, signature.args[4], scratch_), [to_])
            with Loop(builder, count_, []) as loop:
                number = builder.load(builder.gep(a, [builder.mul(loop.i, step_)]))
                same, start = vectors.splat(builder, number), builder.mul(loop.i, index(wide))
                for j in range(0, wide, vectors.lanes):
                    place = builder.add(start, index(j))
                    total = builder.fadd(vectors.load(builder, s, place), same)
                    vectors.store(builder, total, s, place)
                loop.close([])
            return context.get_dummy_value()

        return types.void(array, _INT, _INT, _INT, scratch, _INT), emit

    return add_same


def _table_sum(vectors: Vectors, wide: int, *, out: bool) -> Any:
    lanes = vectors.lanes
    block_add, add_same = _block_add(vectors, wide, out=out), _add_same(vectors, wide)

    @inline
    def add(table, at, by_row, by_number, count, size, scratch, to):  # type: ignore[no-untyped-def]
        """scratch[to + d · wide + j] += table[at + j · by_row + d · by_number].

        With `out` it is the table that is added to, where strides of 0 add up.
        """
        if by_row == 0 and not out:
            add_same(table, at, by_number, size, scratch, to)
            return
        rows, whole = count - count % lanes, size - size % lanes
        if by_number != 1:
            rows = 0
        for j in range(0, rows, lanes):
            for d in range(0, whole, lanes):
                block_add(table, at + j * by_row + d, by_row, scratch, to + d * wide + j)
        numbers = raw(table)
        for d in range(size):
            for j in range(rows if d < whole else 0, count):
                place, lane = at + j * by_row + d * by_number, to + d * wide + j
                if out:
                    numbers[place] += scratch[lane]
                else:
                    scratch[lane] += numbers[place]

    return add


@functools.cache
def transpose_operations(dtype: str) -> SimpleNamespace:
    """Copies of rows to lanes and back, and sums of them, of a dtype, for use inside kernels."""
    tile = target.tile(dtype)
    wide, lanes = tile.queries, tile.lanes
    vectors = Vectors(dtype, lanes)
    block_in, block_out = _block_in(vectors, wide), _block_out(vectors, wide)
    zero = np.dtype(dtype).type(0)

    @embed
    def rows_to_lanes(array, b, h, first, count, begin, size, factor, scratch, to):  # type: ignore[no-untyped-def]
        """scratch[to + d · wide + j] = factor · array[b, h, first + j, begin + d], or 0."""
        step = array.strides[2] // array.itemsize
        at = (b * array.strides[0] + h * array.strides[1]) // array.itemsize + first * step + begin
        square_rows, square_size = count - count % lanes, size - size % lanes
        for j in range(0, square_rows, lanes):
            for d in range(0, square_size, lanes):
                block_in(array, at + j * step + d, step, factor, scratch, to + d * wide + j)
        numbers = raw(array)
        for j in range(count):
            for d in range(square_size if j < square_rows else 0, size):
                scratch[to + d * wide + j] = numbers[at + j * step + d] * factor
        used = (count + lanes - 1) // lanes * lanes
        if count < used:
            for d in range(size):
                for j in range(count, used):
                    scratch[to + d * wide + j] = zero

    @embed
    def lanes_to_rows(scratch, at, factors, array, b, h, first, count):  # type: ignore[no-untyped-def]
        """array[b, h, first + j, d] = scratch[at + d · wide + j] · scratch[factors + j]."""
        size = array.shape[3]
        step = array.strides[2] // array.itemsize
        to = (b * array.strides[0] + h * array.strides[1]) // array.itemsize + first * step
        square_rows, square_size = count - count % lanes, size - size % lanes
        for j in range(0, square_rows, lanes):
            for d in range(0, square_size, lanes):
                block_out(scratch, at + d * wide + j, factors + j, array, to + j * step + d, step)
        numbers = raw(array)
        for j in range(count):
            for d in range(square_size if j < square_rows else 0, size):
                numbers[to + j * step + d] = scratch[at + d * wide + j] * scratch[factors + j]

    return SimpleNamespace(
        rows_to_lanes=rows_to_lanes,
        lanes_to_rows=lanes_to_rows,
        add_table=_table_sum(vectors, wide, out=False),
        add_to_table=_table_sum(vectors, wide, out=True),
    )
