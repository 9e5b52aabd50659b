"""The matrix products and the soft-max step on one tile.

Lanes are queries: scores are held as Sᵀ[key, query] and outputs as Oᵀ[d, query], so

    Sᵀ = K · Qᵀ        Oᵀ += Vᵀ · Pᵀ

K and V are only ever broadcast as scalars and need neither packing nor transposition, and the
statistics of a row are one vector lane: there are no horizontal reductions. A tile's statistics
are four rows of `queries` numbers in scratch memory:

====  =======================================================
row   content
====  =======================================================
0     running maximum of the scores
1     running denominator
2     factor by which the output so far has to be rescaled
3     maximum of this tile; −inf between tiles
====  =======================================================
"""

from __future__ import annotations

import functools
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


def _score_product(tile: target.Tile, rows: int) -> Any:
    """Scores of `rows` keys, and the tile's maximum."""
    vectors = Vectors(tile.dtype, tile.lanes)
    columns, lanes, wide = tile.columns, tile.lanes, tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def score_product(typing, key, at, step, scratch, packed, scores, maximum, size):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            key_, at_, step_, scratch_, packed_, scores_, maximum_, size_ = args
            k = builder.gep(pointer(context, builder, signature.args[0], key_), [at_])
            s = pointer(context, builder, signature.args[3], scratch_)
            zero = vectors.constant(0.0)
            result = multiply(
                builder, vectors, k, step_, index(1), builder.gep(s, [packed_]), index(wide),
                [[zero] * columns for _ in range(rows)], size_, ALIGN,
            )  # fmt: skip
            for n in range(columns):
                place = builder.add(maximum_, index(n * lanes))
                most = vectors.load(builder, s, place, ALIGN)
                for m in range(rows):
                    most = vectors.maximum(builder, result[m][n], most)
                    to = builder.add(scores_, index(m * wide + n * lanes))
                    vectors.store(builder, result[m][n], s, to, ALIGN)
                vectors.store(builder, most, s, place, ALIGN)
            return context.get_dummy_value()

        arguments = (key, _INT, _INT, scratch, _INT, _INT, _INT, _INT)
        return types.void(*arguments), emit

    return score_product


def _value_product(tile: target.Tile, rows: int) -> Any:
    """Oᵀ[rows] = Oᵀ[rows] · rescale + Vᵀ[rows] · Pᵀ."""
    vectors = Vectors(tile.dtype, tile.lanes)
    columns, lanes, wide = tile.columns, tile.lanes, tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def value_product(typing, value, at, step, scratch, weights, output, rescale, size):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            value_, at_, step_, scratch_, weights_, output_, rescale_, size_ = args
            v = builder.gep(pointer(context, builder, signature.args[0], value_), [at_])
            s = pointer(context, builder, signature.args[3], scratch_)

            def place(m: int, n: int) -> Any:
                return builder.add(output_, index(m * wide + n * lanes))

            factors = [
                vectors.load(builder, s, builder.add(rescale_, index(n * lanes)), ALIGN)
                for n in range(columns)
            ]
            before = [
                [
                    builder.fmul(vectors.load(builder, s, place(m, n), ALIGN), factors[n])
                    for n in range(columns)
                ]
                for m in range(rows)
            ]
            result = multiply(
                builder, vectors, v, index(1), step_, builder.gep(s, [weights_]), index(wide),
                before, size_, ALIGN,
            )  # fmt: skip
            for m in range(rows):
                for n in range(columns):
                    vectors.store(builder, result[m][n], s, place(m, n), ALIGN)
            return context.get_dummy_value()

        arguments = (value, _INT, _INT, scratch, _INT, _INT, _INT, _INT)
        return types.void(*arguments), emit

    return value_product


def _lane_product(tile: target.Tile, rows: int, columns: int) -> Any:
    """C[rows, columns·lanes] += A[rows, queries] · B[queries, columns·lanes].

    The product that is contracted over queries: gradients of keys and values.
    """
    vectors = Vectors(tile.dtype, tile.lanes)
    lanes, wide = tile.lanes, tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def lane_product(typing, scratch, a, b, b_step, out, c, c_step):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, a_, b_, b_step_, out_, c_, c_step_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            o = pointer(context, builder, signature.args[4], out_)

            def place(m: int, n: int) -> Any:
                row = builder.mul(c_step_, index(m))
                return builder.add(builder.add(c_, row), index(n * lanes))

            before = [
                [vectors.load(builder, o, place(m, n)) for n in range(columns)] for m in range(rows)
            ]
            result = multiply(
                builder, vectors, builder.gep(s, [a_]), index(wide), index(1),
                builder.gep(s, [b_]), b_step_, before, index(wide), ALIGN,
            )  # fmt: skip
            for m in range(rows):
                for n in range(columns):
                    vectors.store(builder, result[m][n], o, place(m, n))
            return context.get_dummy_value()

        arguments = (scratch, _INT, _INT, _INT, out, _INT, _INT)
        return types.void(*arguments), emit

    return lane_product


def _softmax_step(tile: target.Tile) -> Any:
    """One step of the running soft-max: scores become weights relative to the new maximum.

    `sharp` is log₂e, so that exponentials are powers of two. A row in which nothing has been
    visible so far has maximum −inf; it is measured from 0 instead, and all its weights are 0.
    """
    vectors = Vectors(tile.dtype, tile.lanes)
    columns, lanes, wide = tile.columns, tile.lanes, tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def softmax_step(typing, scratch, scores, statistics, rows):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, scores_, statistics_, rows_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            lowest = vectors.constant(float("-inf"))
            zero = vectors.constant(0.0)
            sharp = vectors.constant(float(np.log2(np.e)))

            def place(row: int, n: int) -> Any:
                return builder.add(statistics_, index(row * wide + n * lanes))

            shifts, rescales = [], []
            for n in range(columns):
                old = vectors.load(builder, s, place(0, n), ALIGN)
                new = vectors.maximum(builder, vectors.load(builder, s, place(3, n), ALIGN), old)
                empty = builder.fcmp_ordered("==", new, lowest)
                base = builder.select(empty, zero, new)
                shifts.append(builder.fmul(base, vectors.constant(-float(np.log2(np.e)))))
                down = vectors.multiply_add(builder, old, sharp, shifts[n])
                rescale = vectors.exp2(builder, down)
                rescales.append(rescale)
                vectors.store(builder, new, s, place(0, n), ALIGN)
                vectors.store(builder, rescale, s, place(2, n), ALIGN)
                vectors.store(builder, lowest, s, place(3, n), ALIGN)
            start = builder.gep(s, [scores_])
            with Loop(builder, rows_, [zero] * columns) as loop:
                sums = []
                row = builder.mul(loop.i, index(wide))
                for n in range(columns):
                    at = builder.add(row, index(n * lanes))
                    score = vectors.load(builder, start, at, ALIGN)
                    power = vectors.multiply_add(builder, score, sharp, shifts[n])
                    weight = vectors.exp2(builder, power)
                    vectors.store(builder, weight, start, at, ALIGN)
                    sums.append(builder.fadd(loop.carried[n], weight))
                loop.close(sums)
            for n in range(columns):
                before = vectors.load(builder, s, place(1, n), ALIGN)
                total = vectors.multiply_add(builder, before, rescales[n], loop.carried[n])
                vectors.store(builder, total, s, place(1, n), ALIGN)
            return context.get_dummy_value()

        return types.void(scratch, _INT, _INT, _INT), emit

    return softmax_step


def _exp_shifted(tile: target.Tile) -> Any:
    """exp(score − shift) in place, one shift a query: recomputed weights."""
    vectors = Vectors(tile.dtype, tile.lanes)
    columns, lanes, wide = tile.columns, tile.lanes, tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def exp_shifted(typing, scratch, scores, shifts, rows):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, scores_, shifts_, rows_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            sharp = vectors.constant(float(np.log2(np.e)))
            negative = vectors.constant(-float(np.log2(np.e)))
            down = [
                builder.fmul(
                    vectors.load(builder, s, builder.add(shifts_, index(n * lanes)), ALIGN),
                    negative,
                )
                for n in range(columns)
            ]
            start = builder.gep(s, [scores_])
            with Loop(builder, rows_, []) as loop:
                row = builder.mul(loop.i, index(wide))
                for n in range(columns):
                    at = builder.add(row, index(n * lanes))
                    score = vectors.load(builder, start, at, ALIGN)
                    power = vectors.multiply_add(builder, score, sharp, down[n])
                    vectors.store(builder, vectors.exp2(builder, power), start, at, ALIGN)
                loop.close([])
            return context.get_dummy_value()

        return types.void(scratch, _INT, _INT, _INT), emit

    return exp_shifted


def _tile_maximum(tile: target.Tile) -> Any:
    """The tile's maximum anew, after its scores were changed."""
    vectors = Vectors(tile.dtype, tile.lanes)
    columns, lanes, wide = tile.columns, tile.lanes, tile.queries

    @intrinsic  # type: ignore[untyped-decorator]
    def tile_maximum(typing, scratch, scores, maximum, rows):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scratch_, scores_, maximum_, rows_ = args
            s = pointer(context, builder, signature.args[0], scratch_)
            start = builder.gep(s, [scores_])
            lowest = [vectors.constant(float("-inf"))] * columns
            with Loop(builder, rows_, lowest) as loop:
                row = builder.mul(loop.i, index(wide))
                most = []
                for n in range(columns):
                    at = builder.add(row, index(n * lanes))
                    score = vectors.load(builder, start, at, ALIGN)
                    most.append(vectors.maximum(builder, score, loop.carried[n]))
                loop.close(most)
            for n in range(columns):
                place = builder.add(maximum_, index(n * lanes))
                vectors.store(builder, loop.carried[n], s, place, ALIGN)
            return context.get_dummy_value()

        return types.void(scratch, _INT, _INT, _INT), emit

    return tile_maximum


@functools.cache
def tile_operations(dtype: str) -> SimpleNamespace:
    """The operations on a tile of this dtype, for use inside kernels."""
    tile = target.tile(dtype)
    return SimpleNamespace(
        score_product=_score_product(tile, tile.rows),
        score_product_1=_score_product(tile, 1),
        value_product=_value_product(tile, tile.rows),
        value_product_1=_value_product(tile, 1),
        lane_product=_lane_product(tile, tile.rows, tile.columns),
        lane_product_1=_lane_product(tile, 1, tile.columns),
        lane_product_narrow=_lane_product(tile, tile.rows, 1),
        lane_product_narrow_1=_lane_product(tile, 1, 1),
        softmax_step=_softmax_step(tile),
        exp_shifted=_exp_shifted(tile),
        tile_maximum=_tile_maximum(tile),
    )
