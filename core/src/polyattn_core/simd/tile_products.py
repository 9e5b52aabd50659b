"""Matrix products on one tile, from vectors kept in registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def score_product_of(tile: target.Tile) -> Any:
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


def value_product_of(tile: target.Tile) -> Any:
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


def lane_product_of(tile: target.Tile) -> Any:
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
