"""Matrix products, transpositions and exponentials on blocks of a scan.

A block holds `wide` tokens in the lanes of each row. All functions take arrays with the index of
the first number in them, and are for use inside compiled code.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from polyattn_core.simd import target
from polyattn_core.simd.jit import inline
from polyattn_core.simd.scores import aligned_start
from polyattn_core.simd.tiles import ALIGN, multiply
from polyattn_core.simd.vector import I32, Loop, Vectors, index, pointer

_INT = types.intp
# Numba compiles a function anew for each whole number that is written down in a call, not for these.
ZERO, ONE = np.int64(0), np.int64(1)
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


def _product(dtype: str, lanes: int, rows: int, columns: int) -> Any:
    """out[rows, columns·lanes] += left[rows, length] · right[length, columns·lanes]."""
    vectors = Vectors(dtype, lanes)

    @intrinsic  # type: ignore[untyped-decorator]
    def product(typing, out, c, c_step, left, a, a_row, a_step, right, b, b_step, length):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            out_, c_, c_step_, left_, a_, a_row_, a_step_, right_, b_, b_step_, length_ = args
            o = builder.gep(pointer(context, builder, signature.args[0], out_), [c_])
            x = builder.gep(pointer(context, builder, signature.args[3], left_), [a_])
            y = builder.gep(pointer(context, builder, signature.args[7], right_), [b_])

            def place(m: int, n: int) -> Any:
                return builder.add(builder.mul(c_step_, index(m)), index(n * lanes))

            before = [
                [vectors.load(builder, o, place(m, n)) for n in range(columns)] for m in range(rows)
            ]
            result = multiply(
                builder, vectors, x, a_row_, a_step_, y, b_step_, before, length_, vectors.itemsize
            )
            for m in range(rows):
                for n in range(columns):
                    vectors.store(builder, result[m][n], o, place(m, n))
            return context.get_dummy_value()

        operands = (out, _INT, _INT, left, _INT, _INT, _INT, right, _INT, _INT, _INT)
        return types.void(*operands), emit

    return product


@intrinsic  # type: ignore[untyped-decorator]
def keep_apart(typing):  # type: ignore[no-untyped-def]
    """Compile the function that calls this once, not again into each of its callers."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), emit


def _square_transpose(dtype: str, lanes: int) -> Any:
    """Transpose lanes × lanes numbers: log₂(lanes) rounds of shuffles."""
    vectors = Vectors(dtype, lanes)

    @intrinsic  # type: ignore[untyped-decorator]
    def square_transpose(typing, source, at, step, out, to, to_step):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            source_, at_, step_, out_, to_, to_step_ = args
            x = builder.gep(pointer(context, builder, signature.args[0], source_), [at_])
            o = builder.gep(pointer(context, builder, signature.args[3], out_), [to_])
            rows = [
                vectors.load(builder, x, builder.mul(step_, index(i))) for i in range(lanes)
            ]
            # Each round swaps the off-diagonal squares of side `half` between pairs of rows.
            half = lanes // 2
            while half:
                first, second = [], []
                for k in range(lanes):
                    upper = k & half
                    first.append(lanes + k - half if upper else k)
                    second.append(lanes + k if upper else k + half)
                masks = [
                    ir.Constant(ir.VectorType(I32, lanes), chosen) for chosen in (first, second)
                ]
                for i in range(lanes):
                    if not i & half:
                        a, b = rows[i], rows[i + half]
                        rows[i] = builder.shuffle_vector(a, b, masks[0])
                        rows[i + half] = builder.shuffle_vector(a, b, masks[1])
                half //= 2
            for i in range(lanes):
                vectors.store(builder, rows[i], o, builder.mul(to_step_, index(i)))
            return context.get_dummy_value()

        return types.void(source, _INT, _INT, out, _INT, _INT), emit

    return square_transpose


def _reduce(builder: Any, vectors: Vectors, vector: Any, combine: Any) -> Any:
    """All lanes combined, as a number."""
    half = vectors.lanes // 2
    while half:
        chosen = [(k + half) % vectors.lanes for k in range(vectors.lanes)]
        mask = ir.Constant(ir.VectorType(I32, vectors.lanes), chosen)
        vector = combine(vector, builder.shuffle_vector(vector, vector, mask))
        half //= 2
    return builder.extract_element(vector, ir.Constant(I32, 0))


def _exp_tokens(dtype: str, lanes: int, columns: int) -> Any:
    """Features of a block from their logarithms in place, and their weighted sums.

    Row r is measured from top[r] = max(most[r], its maximum), NaN aside; mass[r] = Σ of the row
    times `weight`. A row that is −inf throughout is measured from 0.
    """
    vectors = Vectors(dtype, lanes)

    @intrinsic  # type: ignore[untyped-decorator]
    def exp_tokens(typing, features, most, top, mass, weight, rows):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            base, most_, top_, mass_, weight_ = (
                pointer(context, builder, signature.args[k], args[k]) for k in range(5)
            )
            lowest = ir.Constant(vectors.scalar, float("-inf"))
            zero = ir.Constant(vectors.scalar, 0.0)
            sharp = vectors.constant(_SHARP)
            weights = [vectors.load(builder, weight_, index(n * lanes)) for n in range(columns)]
            with Loop(builder, args[5], []) as loop:
                row = builder.gep(base, [builder.mul(loop.i, index(columns * lanes))])
                logs = [vectors.load(builder, row, index(n * lanes)) for n in range(columns)]
                highest = vectors.splat(builder, builder.load(builder.gep(most_, [loop.i])))
                for log in logs:
                    highest = vectors.maximum(builder, log, highest)
                peak = _reduce(
                    builder, vectors, highest, lambda x, y: vectors.maximum(builder, x, y)
                )
                builder.store(peak, builder.gep(top_, [loop.i]))
                empty = builder.fcmp_ordered("==", peak, lowest)
                down = vectors.splat(builder, builder.select(empty, zero, peak))
                total = vectors.constant(0.0)
                for n, log in enumerate(logs):
                    power = builder.fmul(builder.fsub(log, down), sharp)
                    feature = vectors.exp2(builder, power)
                    vectors.store(builder, feature, row, index(n * lanes))
                    total = vectors.multiply_add(builder, feature, weights[n], total)
                found = _reduce(builder, vectors, total, builder.fadd)
                builder.store(found, builder.gep(mass_, [loop.i]))
                loop.close([])
            return context.get_dummy_value()

        return types.void(features, most, top, mass, weight, _INT), emit

    return exp_tokens


def _exp_rows(dtype: str, lanes: int, columns: int) -> Any:
    """out[r, lane] = exp(logs[r, lane] + lift[r] − down[lane]) for rows first … last − 1."""
    vectors = Vectors(dtype, lanes)

    @intrinsic  # type: ignore[untyped-decorator]
    def exp_rows(typing, logs, lift, down, out, first, last):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            source, lift_, down_, target_ = (
                pointer(context, builder, signature.args[k], args[k]) for k in range(4)
            )
            first_, last_ = args[4:]
            sharp = vectors.constant(_SHARP)
            shifts = [vectors.load(builder, down_, index(n * lanes)) for n in range(columns)]
            with Loop(builder, builder.sub(last_, first_), []) as loop:
                r = builder.add(first_, loop.i)
                raised = vectors.splat(builder, builder.load(builder.gep(lift_, [r])))
                start = builder.mul(r, index(columns * lanes))
                for n in range(columns):
                    at = builder.add(start, index(n * lanes))
                    log = vectors.load(builder, source, at)
                    log = builder.fsub(builder.fadd(log, raised), shifts[n])
                    power = vectors.exp2(builder, builder.fmul(log, sharp))
                    vectors.store(builder, power, target_, at)
                loop.close([])
            return context.get_dummy_value()

        return types.void(logs, lift, down, out, _INT, _INT), emit

    return exp_rows


def _scale_row(dtype: str, lanes: int) -> Any:
    """out[to + n] = source[at + n] · factor for n < count; returns Σ source · 0, NaN where not finite.

    Numba cannot know that the last axis of a general array is contiguous; here it is.
    """
    vectors, single = Vectors(dtype, lanes), Vectors(dtype, 1)
    number = types.float32 if dtype == "float32" else types.float64

    @intrinsic  # type: ignore[untyped-decorator]
    def scale_row(typing, source, at, out, to, count, factor):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            source_, at_, out_, to_, count_, factor_ = args
            x = builder.gep(pointer(context, builder, signature.args[0], source_), [at_])
            o = builder.gep(pointer(context, builder, signature.args[2], out_), [to_])
            rest = builder.srem(count_, index(lanes))
            whole = builder.sub(count_, rest)
            factors, zeros = vectors.splat(builder, factor_), vectors.constant(0.0)
            with Loop(builder, whole, [zeros], lanes) as loop:
                row = vectors.load(builder, x, loop.i)
                vectors.store(builder, builder.fmul(row, factors), o, loop.i)
                loop.close([vectors.multiply_add(builder, row, zeros, loop.carried[0])])
            probe = _reduce(builder, vectors, loop.carried[0], builder.fadd)
            with Loop(builder, rest, [probe]) as tail:
                place = builder.add(whole, tail.i)
                one = builder.load(builder.gep(x, [place]))
                builder.store(builder.fmul(one, factor_), builder.gep(o, [place]))
                probe = builder.fmul(one, ir.Constant(single.scalar, 0.0))
                tail.close([builder.fadd(tail.carried[0], probe)])
            return tail.carried[0]

        return number(source, _INT, out, _INT, _INT, number), emit

    return scale_row


@functools.cache
def block_operations(dtype: str) -> SimpleNamespace:
    """The operations on blocks of this dtype."""
    tile = target.tile(dtype)
    lanes, high, columns = tile.lanes, tile.rows, tile.columns
    number = np.dtype(dtype).type
    zero = number(0)
    square, square_tail = (_product(dtype, lanes, n, columns) for n in (high, 1))
    narrow, narrow_tail = (_product(dtype, lanes, n, 1) for n in (high, 1))
    square_transpose = _square_transpose(dtype, lanes)

    @inline
    def product(out, c, c_step, left, a, a_row, a_step, right, b, b_step, rows, vectors, length):  # type: ignore[no-untyped-def]
        """Accumulate out[c + m·c_step + n] += Σₖ left[a + m·a_row + k·a_step] · right[b + k·b_step + n].

        For m < `rows` and n < `vectors` · lanes.
        """
        keep_apart()
        n = 0
        while n < vectors:
            full = vectors - n >= columns
            c_at, b_at = c + n * lanes, b + n * lanes
            m = 0
            while m + high <= rows:
                c_here, a_here = c_at + m * c_step, a + m * a_row
                if full:
                    square(
                        out, c_here, c_step, left, a_here, a_row, a_step, right, b_at, b_step, length
                    )
                else:
                    narrow(
                        out, c_here, c_step, left, a_here, a_row, a_step, right, b_at, b_step, length
                    )
                m += high
            while m < rows:
                c_here, a_here = c_at + m * c_step, a + m * a_row
                if full:
                    square_tail(
                        out, c_here, c_step, left, a_here, a_row, a_step, right, b_at, b_step, length
                    )
                else:
                    narrow_tail(
                        out, c_here, c_step, left, a_here, a_row, a_step, right, b_at, b_step, length
                    )
                m += 1
            n += columns if full else 1

    @inline
    def transpose(source, at, step, out, to, to_step, rows, columns):  # type: ignore[no-untyped-def]
        """out[to + c·to_step + r] = source[at + r·step + c] for r < `rows`, c < `columns`."""
        keep_apart()
        r = 0
        while r < rows:
            c = 0
            if r + lanes <= rows:
                while c + lanes <= columns:
                    square_transpose(
                        source, at + r * step + c, step, out, to + c * to_step + r, to_step
                    )
                    c += lanes
            last = min(r + lanes, rows)
            for i in range(r, last):
                move(source, at + i * step + c, out, to + c * to_step + i, to_step, columns - c)
            r = last

    move = _move(dtype)

    @inline
    def clear(array, count):  # type: ignore[no-untyped-def]
        for x in range(count):
            array[x] = zero

    @inline
    def blank(array, first, count):  # type: ignore[no-untyped-def]
        for x in range(first, first + count):
            array[x] = zero

    @inline
    def room(count):  # type: ignore[no-untyped-def]
        """Uninitialised memory for so many numbers, aligned."""
        memory = np.empty(count + ALIGN, number)
        start = aligned_start(memory)
        return memory[start : start + count]

    return SimpleNamespace(
        lanes=lanes,
        wide=np.int64(wide(dtype)),
        product=product,
        transpose=transpose,
        clear=clear,
        blank=blank,
        room=room,
        scale_row=_scale_row(dtype, lanes),
        exp_tokens=_exp_tokens(dtype, lanes, wide(dtype) // lanes),
        exp_rows=_exp_rows(dtype, lanes, wide(dtype) // lanes),
    )


def _move(dtype: str) -> Any:
    """out[to + c·to_step] = source[at + c] for c < count; works on arrays of any rank."""
    vectors = Vectors(dtype, 1)

    @intrinsic  # type: ignore[untyped-decorator]
    def move(typing, source, at, out, to, to_step, count):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            source_, at_, out_, to_, to_step_, count_ = args
            x = builder.gep(pointer(context, builder, signature.args[0], source_), [at_])
            o = builder.gep(pointer(context, builder, signature.args[2], out_), [to_])
            with Loop(builder, count_, []) as loop:
                number = builder.load(builder.gep(x, [loop.i]), typ=vectors.scalar)
                builder.store(number, builder.gep(o, [builder.mul(loop.i, to_step_)]))
                loop.close([])
            return context.get_dummy_value()

        return types.void(source, _INT, out, _INT, _INT, _INT), emit

    return move
