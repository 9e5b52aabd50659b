"""Vector code of bfloat16: products of pairs, and what makes pairs of rows and of weights."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .tile_products import ALIGN, row_blocks
from .transpose import transposed
from .vector import I32, Loop, Vectors, index, pointer

_INT = types.intp
LANES, COLUMNS, _ROWS = 16, 4, 4  # 16 accumulators of 32 registers
WIDE = LANES * COLUMNS
_VECTORS = Vectors("float32", LANES)
_PAIRS = ir.VectorType(I32, LANES)


class _BFloat(ir.Type):
    """LLVM's type, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


_NARROW = ir.VectorType(_BFloat(), 2 * LANES)


def _load_pairs(builder: Any, base: Any, offset: Any) -> Any:
    place = builder.bitcast(builder.gep(base, [offset]), ir.PointerType(_PAIRS))
    pairs = builder.load(place, typ=_PAIRS)
    pairs.align = ALIGN
    return pairs


def _add_products(builder: Any, total: Any, x: Any, y: Any) -> Any:
    kind = ir.FunctionType(_VECTORS.type, [_VECTORS.type, _NARROW, _NARROW])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    add = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(add, [total, builder.bitcast(x, _NARROW), builder.bitcast(y, _NARROW)])


def _multiply(
    builder: Any, left: Any, row: Any, step: Any, right: Any, rows: int, length: Any
) -> list[list[Any]]:
    """Σ over k < length of pair left[m·row + k·step] · pairs right[k, n]; left in 16-bit steps."""
    starts = [builder.gep(left, [builder.mul(index(m), row)]) for m in range(rows)]
    zero = _VECTORS.constant(0.0)
    with Loop(builder, length, [zero] * (rows * COLUMNS)) as loop:
        values = list(loop.carried)
        offset = builder.mul(loop.i, index(WIDE))
        columns = [
            _load_pairs(builder, right, builder.add(offset, index(n * LANES)))
            for n in range(COLUMNS)
        ]
        along = builder.mul(loop.i, step)
        empty = ir.Constant(_PAIRS, ir.Undefined)
        zeros = ir.Constant(_PAIRS, [0] * LANES)
        for m in range(rows):
            place = builder.bitcast(builder.gep(starts[m], [along]), ir.PointerType(I32))
            pair = builder.load(place, typ=I32)
            pair.align = 2
            first = builder.insert_element(empty, pair, ir.Constant(I32, 0))
            splat = builder.shuffle_vector(first, empty, zeros)
            for n in range(COLUMNS):
                at = m * COLUMNS + n
                values[at] = _add_products(builder, values[at], splat, columns[n])
        loop.close(values)
    return [loop.carried[m * COLUMNS : (m + 1) * COLUMNS] for m in range(rows)]


@intrinsic  # type: ignore[untyped-decorator]
def score_product(
    typing, key, at, step, keys, pairs, packed, scratch, scores, maximum, scale, half
):  # type: ignore[no-untyped-def]
    """scores[key, lane] = scale · key · packed query, and their maximum."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        key_, at_, step_, keys_, pairs_, packed_, scratch_, scores_, maximum_, scale_, half_ = args
        k = builder.gep(pointer(context, builder, signature.args[0], key_), [at_])
        q = builder.gep(pointer(context, builder, signature.args[4], pairs_), [packed_])
        s = pointer(context, builder, signature.args[6], scratch_)
        factor = _VECTORS.splat(builder, scale_)

        def block(first: Any, rows: int, most: list[Any]) -> list[Any]:
            start = builder.gep(k, [builder.mul(first, step_)])
            found = _multiply(builder, start, step_, index(2), q, rows, half_)
            row = builder.add(scores_, builder.mul(first, index(WIDE)))
            for m in range(rows):
                for n in range(COLUMNS):
                    score = builder.fmul(found[m][n], factor)
                    most[n] = _VECTORS.maximum(builder, score, most[n])
                    to = builder.add(row, index(m * WIDE + n * LANES))
                    _VECTORS.store(builder, score, s, to, ALIGN)
            return most

        places = [builder.add(maximum_, index(n * LANES)) for n in range(COLUMNS)]
        before = [_VECTORS.load(builder, s, place, ALIGN) for place in places]
        most = row_blocks(builder, keys_, _ROWS, before, block)
        for place, value in zip(places, most, strict=True):
            _VECTORS.store(builder, value, s, place, ALIGN)
        return context.get_dummy_value()

    arguments = (key, _INT, _INT, _INT, pairs, _INT, scratch, _INT, _INT, types.float32, _INT)
    return types.void(*arguments), emit


@intrinsic  # type: ignore[untyped-decorator]
def pair_weights(typing, scratch, weights, pairs, to, count):  # type: ignore[no-untyped-def]
    """Weights of two neighbouring keys, rounded, in each lane."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        s = builder.gep(pointer(context, builder, signature.args[0], args[0]), [args[1]])
        p = builder.gep(pointer(context, builder, signature.args[2], args[2]), [args[3]])

        def constant(value: int) -> Any:
            return ir.Constant(_PAIRS, [value] * LANES)

        with Loop(builder, args[4], []) as loop:
            row = builder.mul(loop.i, index(2 * WIDE))
            for n in range(COLUMNS):
                rounded = []
                for m in (0, 1):
                    at = builder.add(row, index(m * WIDE + n * LANES))
                    bits = builder.bitcast(_VECTORS.load(builder, s, at, ALIGN), _PAIRS)
                    rounded.append(builder.add(bits, constant(0x8000)))
                low = builder.lshr(rounded[0], constant(16))
                pair = builder.or_(low, builder.and_(rounded[1], constant(-65536)))
                to = builder.add(builder.mul(loop.i, index(WIDE)), index(n * LANES))
                place = builder.bitcast(builder.gep(p, [to]), ir.PointerType(_PAIRS))
                builder.store(pair, place).align = ALIGN
            loop.close([])
        return context.get_dummy_value()

    return types.void(scratch, _INT, pairs, _INT, _INT), emit


@intrinsic  # type: ignore[untyped-decorator]
def value_product(typing, pairs, values, size, count, weights, scratch, output, rescale):  # type: ignore[no-untyped-def]
    """output[d, lane] = output[d, lane] · rescale[lane] + Σ over pairs of values · weights."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pairs_, values_, size_, count_, weights_, scratch_, output_, rescale_ = args
        p = pointer(context, builder, signature.args[0], pairs_)
        halves = builder.bitcast(builder.gep(p, [values_]), ir.IntType(16).as_pointer())
        w = builder.gep(p, [weights_])
        s = pointer(context, builder, signature.args[5], scratch_)
        factors = [
            _VECTORS.load(builder, s, builder.add(rescale_, index(n * LANES)), ALIGN)
            for n in range(COLUMNS)
        ]
        step = builder.mul(size_, index(2))

        def block(first: Any, rows: int, nothing: list[Any]) -> list[Any]:
            start = builder.gep(halves, [builder.mul(first, index(2))])
            found = _multiply(builder, start, index(2), step, w, rows, count_)
            row = builder.add(output_, builder.mul(first, index(WIDE)))
            for m in range(rows):
                for n in range(COLUMNS):
                    to = builder.add(row, index(m * WIDE + n * LANES))
                    before = _VECTORS.load(builder, s, to, ALIGN)
                    total = _VECTORS.multiply_add(builder, before, factors[n], found[m][n])
                    _VECTORS.store(builder, total, s, to, ALIGN)
            return nothing

        row_blocks(builder, size_, _ROWS, [], block)
        return context.get_dummy_value()

    return types.void(pairs, _INT, _INT, _INT, _INT, scratch, _INT, _INT), emit


_SHORT = ir.VectorType(ir.IntType(16), LANES)


@intrinsic  # type: ignore[untyped-decorator]
def pair_rows(typing, value, at, step, pairs, to, size, last):  # type: ignore[no-untyped-def]
    """pairs[to + d] = numbers d of a row and of the next one; 0 for this where the row is last."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        value_, at_, step_, pairs_, to_, size_, last_ = args
        first = builder.gep(pointer(context, builder, signature.args[0], value_), [at_])
        second = builder.gep(first, [builder.select(last_, index(0), step_)])
        p = builder.gep(pointer(context, builder, signature.args[3], pairs_), [to_])
        keep = builder.select(last_, I32(0), I32(-1))
        whole = builder.sub(size_, builder.srem(size_, index(LANES)))

        def pair(place: Any, kind: Any, wide: Any, mask: Any, shift: Any) -> None:
            halves = []
            for row in (first, second):
                source = builder.bitcast(builder.gep(row, [place]), ir.PointerType(kind))
                number = builder.load(source, typ=kind)
                number.align = 2
                halves.append(builder.zext(number, wide))
            high = builder.and_(builder.shl(halves[1], shift), mask)
            target_ = builder.bitcast(builder.gep(p, [place]), ir.PointerType(wide))
            builder.store(builder.or_(halves[0], high), target_).align = 4

        with Loop(builder, whole, [], LANES) as loop:
            empty = ir.Constant(_PAIRS, ir.Undefined)
            one = builder.insert_element(empty, keep, ir.Constant(I32, 0))
            mask = builder.shuffle_vector(one, empty, ir.Constant(_PAIRS, [0] * LANES))
            pair(loop.i, _SHORT, _PAIRS, mask, ir.Constant(_PAIRS, [16] * LANES))
            loop.close([])
        with Loop(builder, size_, [], 1, whole) as loop:
            pair(loop.i, ir.IntType(16), I32, keep, I32(16))
            loop.close([])
        return context.get_dummy_value()

    return types.void(value, _INT, _INT, pairs, _INT, _INT, types.boolean), emit


@intrinsic  # type: ignore[untyped-decorator]
def pack_block(typing, query, at, step, pairs, to):  # type: ignore[no-untyped-def]
    """pairs[to + i · wide + j] = pair i of row j, for a square of as many as there are lanes."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        query_, at_, step_, pairs_, to_ = args
        q = builder.gep(pointer(context, builder, signature.args[0], query_), [at_])
        p = builder.gep(pointer(context, builder, signature.args[3], pairs_), [to_])
        rows = []
        for j in range(LANES):
            row = builder.gep(q, [builder.mul(step_, index(j))])
            pair = builder.load(builder.bitcast(row, ir.PointerType(_PAIRS)), typ=_PAIRS)
            pair.align = 2
            rows.append(pair)
        for i, column in enumerate(transposed(builder, rows)):
            place = builder.gep(p, [index(i * WIDE)])
            builder.store(column, builder.bitcast(place, ir.PointerType(_PAIRS))).align = 4
        return context.get_dummy_value()

    return types.void(query, _INT, _INT, pairs, _INT), emit


@intrinsic  # type: ignore[untyped-decorator]
def round_row(typing, rows, at, out, to, size):  # type: ignore[no-untyped-def]
    """A row of float32 to bfloat16: to nearest, ties to even; whole vectors alone."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        r = builder.gep(pointer(context, builder, signature.args[0], args[0]), [args[1]])
        o = builder.gep(pointer(context, builder, signature.args[2], args[2]), [args[3]])

        def constant(value: int) -> Any:
            return ir.Constant(_PAIRS, [value] * LANES)

        with Loop(builder, args[4], [], LANES) as loop:
            number = _VECTORS.load(builder, r, loop.i)
            bits = builder.bitcast(number, _PAIRS)
            odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
            rounded = builder.lshr(
                builder.add(builder.add(bits, odd), constant(0x7FFF)), constant(16)
            )
            none = builder.fcmp_unordered("uno", number, number)
            narrow = builder.trunc(builder.select(none, constant(0x7FC0), rounded), _SHORT)
            place = builder.bitcast(builder.gep(o, [loop.i]), ir.PointerType(_SHORT))
            builder.store(narrow, place).align = 2
            loop.close([])
        return context.get_dummy_value()

    return types.void(rows, _INT, out, _INT, _INT), emit
