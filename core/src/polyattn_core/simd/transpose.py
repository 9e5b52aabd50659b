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
from .jit import embed
from .vector import I32, Vectors, index, pointer, raw

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


@functools.cache
def transpose_operations(dtype: str) -> SimpleNamespace:
    """`rows_to_lanes` and `lanes_to_rows` of a dtype, for use inside kernels."""
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

    return SimpleNamespace(rows_to_lanes=rows_to_lanes, lanes_to_rows=lanes_to_rows)
