"""Matrix products, transpositions and exponentials on blocks of tokens.

A block holds `wide` tokens in the lanes of each row. Each operation is compiled once, to C code
that kernels reach through its address: it is no part of their compilation.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from polyattn_core.simd import target
from polyattn_core.simd.jit import callback
from polyattn_core.simd.vector import pointer

from . import emission
from .emission import lanes, wide

_INT = types.int64

OPERATIONS = ("product", "transpose", "scale_row", "exp_tokens", "exp_rows")
"""In the order in which kernels are given their addresses."""


@intrinsic  # type: ignore[untyped-decorator]
def call(typing, address, *args):  # type: ignore[no-untyped-def]
    """Call an operation. Each array is followed by the index of the first number that is meant."""
    kinds = args[0] if len(args) == 1 and isinstance(args[0], types.BaseTuple) else args

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        given = iter(zip(kinds, cgutils.unpack_tuple(builder, values[1]), strict=True))
        passed = []
        for kind, value in given:
            if isinstance(kind, types.Array):
                at_kind, at = next(given)
                start = context.cast(builder, at, at_kind, _INT)
                passed.append(builder.gep(pointer(context, builder, kind, value), [start]))
            elif isinstance(kind, types.Integer):
                passed.append(context.cast(builder, value, kind, _INT))
            else:
                passed.append(value)
        function_type = ir.FunctionType(ir.VoidType(), [value.type for value in passed])
        function = builder.inttoptr(values[0], function_type.as_pointer())
        builder.call(function, passed)
        return context.get_dummy_value()

    return types.void(_INT, types.StarArgTuple.from_types(tuple(kinds))), emit


@intrinsic  # type: ignore[untyped-decorator]
def _from(typing, base, offset):  # type: ignore[no-untyped-def]
    """The pointer `offset` numbers further on."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.gep(args[0], [args[1]])

    return base(base, _INT), emit


@functools.cache
def block_operations(dtype: str) -> SimpleNamespace:
    """The operations, each with an `.address`, in C with arguments as they say.

    product(out, c_step, left, a_row, a_step, right, b_step, rows, vectors, length)
        out[m·c_step + n] += Σₖ left[m·a_row + k·a_step] · right[k·b_step + n] for m < rows,
        n < vectors · lanes.
    transpose(source, step, out, to_step, rows, columns)
        out[c·to_step + r] = source[r·step + c] for r < rows, c < columns.
    scale_row(source, out, count, factor, probe), exp_tokens(features, most, top, mass, weight,
    rows), exp_rows(logs, lift, down, out, rows)
        As in :mod:`emission`.
    """
    columns, across = target.tile(dtype).columns, lanes(dtype)
    high = target.tile(dtype).accumulators // columns
    square, square_tail = (emission.product(dtype, n, columns) for n in (high, 1))
    # Twice as many rows of one vector: few sums at a time would wait for each other.
    tall = 2 * high
    narrow, narrow_tail = (emission.product(dtype, n, 1) for n in (tall, 1))
    square_transpose = emission.square_transpose(dtype)
    scale, tokens = emission.scale_row(dtype), emission.exp_tokens(dtype)
    rows_of = emission.exp_rows(dtype)

    def product(out, c_step, left, a_row, a_step, right, b_step, rows, vectors, length):  # type: ignore[no-untyped-def]
        n = 0
        while n < vectors:
            full = vectors - n >= columns
            b = _from(right, n * across)
            m = 0
            while m < rows:
                c = _from(out, m * c_step + n * across)
                a = _from(left, m * a_row)
                if full:
                    if m + high <= rows:
                        square(c, c_step, a, a_row, a_step, b, b_step, length)
                        m += high
                    else:
                        square_tail(c, c_step, a, a_row, a_step, b, b_step, length)
                        m += 1
                elif m + tall <= rows:
                    narrow(c, c_step, a, a_row, a_step, b, b_step, length)
                    m += tall
                else:
                    narrow_tail(c, c_step, a, a_row, a_step, b, b_step, length)
                    m += 1
            n += columns if full else 1

    def transpose(source, step, out, to_step, rows, columns):  # type: ignore[no-untyped-def]
        r = 0
        while r < rows:
            last, c = min(r + across, rows), 0
            while last - r == across and c + across <= columns:
                square_transpose(
                    _from(source, r * step + c), step, _from(out, c * to_step + r), to_step
                )
                c += across
            for i in range(r, last):
                for d in range(c, columns):
                    out[d * to_step + i] = source[i * step + d]
            r = last

    def scale_row(source, out, count, factor, probe):  # type: ignore[no-untyped-def]
        scale(source, out, count, factor, probe)

    def exp_tokens(features, most, top, mass, weight, rows):  # type: ignore[no-untyped-def]
        tokens(features, most, top, mass, weight, rows)

    def exp_rows(logs, lift, down, out, rows):  # type: ignore[no-untyped-def]
        rows_of(logs, lift, down, out, rows)

    number = types.float32 if dtype == "float32" else types.float64
    many = types.CPointer(number)
    signatures: dict[Any, Any] = {
        product: (many, _INT, many, _INT, _INT, many, _INT, _INT, _INT, _INT),
        transpose: (many, _INT, many, _INT, _INT, _INT),
        scale_row: (many, many, _INT, number, many),
        exp_tokens: (many, many, many, many, many, _INT),
        exp_rows: (many, many, many, many, _INT),
    }
    tag = f"{dtype} {target.tile(dtype)} {wide(dtype)}"
    compiled = {
        function.__name__: callback(function, types.void(*kinds), tag)
        for function, kinds in signatures.items()
    }
    return SimpleNamespace(**compiled)


@functools.cache
def addresses(dtype: str) -> tuple[int, ...]:
    """Addresses of :data:`OPERATIONS`."""
    compiled = block_operations(dtype)
    return tuple(int(getattr(compiled, name).address) for name in OPERATIONS)
