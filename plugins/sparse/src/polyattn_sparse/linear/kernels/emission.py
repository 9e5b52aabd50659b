"""Vector code of the operations on blocks, emitted into the functions of :mod:`blocks`.

Each function here makes an intrinsic that takes pointers and whole numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from polyattn_core.simd import target
from polyattn_core.simd.tile_products import multiply
from polyattn_core.simd.vector import I32, Loop, Vectors, index

_SHARP = float(np.log2(np.e))
_TOKENS = 64  # of a block, where the columns of a register tile divide it


@functools.cache
def wide(dtype: str) -> int:
    """Tokens of a block: whole register tiles."""
    tile = target.tile(dtype)
    return tile.queries * max(1, _TOKENS // tile.queries)


def lanes(dtype: str) -> int:
    """Numbers of a vector."""
    return target.tile(dtype).lanes


def _operation(emit: Callable[..., None], *, arguments: int) -> Any:
    """An intrinsic that emits code from the builder and its arguments."""

    @intrinsic  # type: ignore[untyped-decorator]
    def operation(typing, *args):  # type: ignore[no-untyped-def]
        kinds = args[0] if len(args) == 1 and isinstance(args[0], types.BaseTuple) else args

        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            given = cgutils.unpack_tuple(builder, values[0])
            assert len(given) == arguments
            emit(builder, *given)
            return context.get_dummy_value()

        return types.void(types.StarArgTuple.from_types(tuple(kinds))), generate

    return operation


def product(dtype: str, rows: int, columns: int) -> Any:
    """out[rows, columns·lanes] += left[rows, length] · right[length, columns·lanes]."""
    vectors = Vectors(dtype, lanes(dtype))

    def emit(builder, out, c_step, left, a_row, a_step, right, b_step, length):  # type: ignore[no-untyped-def]
        def place(m: int, n: int) -> Any:
            return builder.add(builder.mul(c_step, index(m)), index(n * vectors.lanes))

        before = [
            [vectors.load(builder, out, place(m, n)) for n in range(columns)] for m in range(rows)
        ]
        result = multiply(
            builder, vectors, left, a_row, a_step, right, b_step, before, length, vectors.itemsize
        )
        for m in range(rows):
            for n in range(columns):
                vectors.store(builder, result[m][n], out, place(m, n))

    return _operation(emit, arguments=8)


def square_transpose(dtype: str) -> Any:
    """Transpose lanes × lanes numbers: log₂(lanes) rounds of shuffles."""
    vectors = Vectors(dtype, lanes(dtype))
    size = vectors.lanes

    def emit(builder, source, step, out, to_step):  # type: ignore[no-untyped-def]
        rows = [vectors.load(builder, source, builder.mul(step, index(i))) for i in range(size)]
        # Each round swaps the off-diagonal squares of side `half` between pairs of rows.
        half = size // 2
        while half:
            first = [size + k - half if k & half else k for k in range(size)]
            second = [size + k if k & half else k + half for k in range(size)]
            masks = [ir.Constant(ir.VectorType(I32, size), chosen) for chosen in (first, second)]
            for i in range(size):
                if not i & half:
                    a, b = rows[i], rows[i + half]
                    rows[i] = builder.shuffle_vector(a, b, masks[0])
                    rows[i + half] = builder.shuffle_vector(a, b, masks[1])
            half //= 2
        for i in range(size):
            vectors.store(builder, rows[i], out, builder.mul(to_step, index(i)))

    return _operation(emit, arguments=4)


def _reduce(builder: Any, vectors: Vectors, vector: Any, combine: Callable[..., Any]) -> Any:
    """All lanes combined, as a number."""
    half = vectors.lanes // 2
    while half:
        chosen = [(k + half) % vectors.lanes for k in range(vectors.lanes)]
        mask = ir.Constant(ir.VectorType(I32, vectors.lanes), chosen)
        vector = combine(vector, builder.shuffle_vector(vector, vector, mask))
        half //= 2
    return builder.extract_element(vector, ir.Constant(I32, 0))


def exp_tokens(dtype: str) -> Any:
    """Features of a block from their logarithms in place, and their weighted sums.

    Row r is measured from top[r] = max(most[r], its maximum), NaN aside; mass[r] = Σ of the row
    times `weight`. A row that is −inf throughout is measured from 0.
    """
    vectors = Vectors(dtype, lanes(dtype))
    columns = wide(dtype) // vectors.lanes

    def emit(builder, features, most, top, mass, weight, rows):  # type: ignore[no-untyped-def]
        lowest = ir.Constant(vectors.scalar, float("-inf"))
        zero = ir.Constant(vectors.scalar, 0.0)
        sharp = vectors.constant(_SHARP)
        weights = [vectors.load(builder, weight, index(n * vectors.lanes)) for n in range(columns)]
        with Loop(builder, rows, []) as loop:
            row = builder.gep(features, [builder.mul(loop.i, index(columns * vectors.lanes))])
            logs = [vectors.load(builder, row, index(n * vectors.lanes)) for n in range(columns)]
            highest = vectors.splat(builder, builder.load(builder.gep(most, [loop.i])))
            for log in logs:
                highest = vectors.maximum(builder, log, highest)
            peak = _reduce(builder, vectors, highest, functools.partial(vectors.maximum, builder))
            builder.store(peak, builder.gep(top, [loop.i]))
            empty = builder.fcmp_ordered("==", peak, lowest)
            down = vectors.splat(builder, builder.select(empty, zero, peak))
            total = vectors.constant(0.0)
            for n, log in enumerate(logs):
                power = builder.fmul(builder.fsub(log, down), sharp)
                feature = vectors.exp2(builder, power)
                vectors.store(builder, feature, row, index(n * vectors.lanes))
                total = vectors.multiply_add(builder, feature, weights[n], total)
            builder.store(
                _reduce(builder, vectors, total, builder.fadd), builder.gep(mass, [loop.i])
            )
            loop.close([])

    return _operation(emit, arguments=6)


def exp_rows(dtype: str) -> Any:
    """out[r, lane] = exp(logs[r, lane] + lift[r] − down[lane])."""
    vectors = Vectors(dtype, lanes(dtype))
    columns = wide(dtype) // vectors.lanes

    def emit(builder, logs, lift, down, out, rows):  # type: ignore[no-untyped-def]
        sharp = vectors.constant(_SHARP)
        shifts = [vectors.load(builder, down, index(n * vectors.lanes)) for n in range(columns)]
        with Loop(builder, rows, []) as loop:
            raised = vectors.splat(builder, builder.load(builder.gep(lift, [loop.i])))
            start = builder.mul(loop.i, index(columns * vectors.lanes))
            for n in range(columns):
                at = builder.add(start, index(n * vectors.lanes))
                log = builder.fadd(vectors.load(builder, logs, at), raised)
                power = builder.fmul(builder.fsub(log, shifts[n]), sharp)
                vectors.store(builder, vectors.exp2(builder, power), out, at)
            loop.close([])

    return _operation(emit, arguments=5)


def scale_row(dtype: str) -> Any:
    """out[n] = source[n] · factor for n < count; probe[0] becomes NaN where one is not finite."""
    vectors = Vectors(dtype, lanes(dtype))

    def emit(builder, source, out, count, factor, probe):  # type: ignore[no-untyped-def]
        rest = builder.srem(count, index(vectors.lanes))
        whole = builder.sub(count, rest)
        factors, zeros = vectors.splat(builder, factor), vectors.constant(0.0)
        with Loop(builder, whole, [zeros], vectors.lanes) as loop:
            row = vectors.load(builder, source, loop.i)
            vectors.store(builder, builder.fmul(row, factors), out, loop.i)
            loop.close([vectors.multiply_add(builder, row, zeros, loop.carried[0])])
        found = _reduce(builder, vectors, loop.carried[0], builder.fadd)
        with Loop(builder, rest, [found]) as tail:
            place = builder.add(whole, tail.i)
            number = builder.load(builder.gep(source, [place]))
            builder.store(builder.fmul(number, factor), builder.gep(out, [place]))
            zero = builder.fmul(number, ir.Constant(vectors.scalar, 0.0))
            tail.close([builder.fadd(tail.carried[0], zero)])
        builder.store(builder.fadd(builder.load(probe), tail.carried[0]), probe)

    return _operation(emit, arguments=5)
