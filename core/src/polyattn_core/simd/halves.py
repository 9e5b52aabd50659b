"""The streaming kernel of bfloat16: products of pairs, two numbers of a lane at a time.

For processors whose ``vdpbf16ps`` multiplies pairs of bfloat16 and adds them up in float32. Lanes
are queries, as in :mod:`forward`; a lane holds two neighbouring numbers of its query, or its
weights of two neighbouring keys. Scores, soft-max and sums are in float32; weights are rounded to
bfloat16 for their product with the values.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import masking, target, threads
from .jit import Kernel, inline
from .masking import (
    BATCH,
    COUNT,
    EMPTY,
    FIRST,
    FULL,
    HEAD,
    KEY,
    KEY_COUNT,
    PARTIAL,
    PLACE_SIZE,
    QUERY_COUNT,
    WIDE,
    WIDTH,
    EncodedMask,
    interpret,
)
from .scores import aligned_start, counter_type, take_task
from .tiles import ALIGN, row_blocks, tile_operations
from .transpose import transpose_operations, transposed
from .vector import I32, Loop, Vectors, index, pointer

Array = npt.NDArray[Any]

_INT = types.intp
_LANES, _COLUMNS, _ROWS = 16, 4, 4  # 16 accumulators of 32 registers
_WIDE = _LANES * _COLUMNS
_DEEP = 64  # keys of a tile
_FEW_KEYS = 2048  # up to which one thread is enough for a block of queries
_VECTORS = Vectors("float32", _LANES)
_PAIRS = ir.VectorType(I32, _LANES)


class _BFloat(ir.Type):
    """LLVM's type, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


_NARROW = ir.VectorType(_BFloat(), 2 * _LANES)


def supported() -> bool:
    """Does the processor that code is generated for multiply pairs of bfloat16?"""
    return "avx512bf16" in target.cpu_features() and target.vector_bytes() == 64


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
    with Loop(builder, length, [zero] * (rows * _COLUMNS)) as loop:
        values = list(loop.carried)
        offset = builder.mul(loop.i, index(_WIDE))
        columns = [
            _load_pairs(builder, right, builder.add(offset, index(n * _LANES)))
            for n in range(_COLUMNS)
        ]
        along = builder.mul(loop.i, step)
        empty = ir.Constant(_PAIRS, ir.Undefined)
        zeros = ir.Constant(_PAIRS, [0] * _LANES)
        for m in range(rows):
            place = builder.bitcast(builder.gep(starts[m], [along]), ir.PointerType(I32))
            pair = builder.load(place, typ=I32)
            pair.align = 2
            first = builder.insert_element(empty, pair, ir.Constant(I32, 0))
            splat = builder.shuffle_vector(first, empty, zeros)
            for n in range(_COLUMNS):
                at = m * _COLUMNS + n
                values[at] = _add_products(builder, values[at], splat, columns[n])
        loop.close(values)
    return [loop.carried[m * _COLUMNS : (m + 1) * _COLUMNS] for m in range(rows)]


@intrinsic  # type: ignore[untyped-decorator]
def _score_product(
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
            row = builder.add(scores_, builder.mul(first, index(_WIDE)))
            for m in range(rows):
                for n in range(_COLUMNS):
                    score = builder.fmul(found[m][n], factor)
                    most[n] = _VECTORS.maximum(builder, score, most[n])
                    to = builder.add(row, index(m * _WIDE + n * _LANES))
                    _VECTORS.store(builder, score, s, to, ALIGN)
            return most

        places = [builder.add(maximum_, index(n * _LANES)) for n in range(_COLUMNS)]
        before = [_VECTORS.load(builder, s, place, ALIGN) for place in places]
        most = row_blocks(builder, keys_, _ROWS, before, block)
        for place, value in zip(places, most, strict=True):
            _VECTORS.store(builder, value, s, place, ALIGN)
        return context.get_dummy_value()

    arguments = (key, _INT, _INT, _INT, pairs, _INT, scratch, _INT, _INT, types.float32, _INT)
    return types.void(*arguments), emit


@intrinsic  # type: ignore[untyped-decorator]
def _pair_weights(typing, scratch, weights, pairs, to, count):  # type: ignore[no-untyped-def]
    """Weights of two neighbouring keys, rounded, in each lane."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        s = builder.gep(pointer(context, builder, signature.args[0], args[0]), [args[1]])
        p = builder.gep(pointer(context, builder, signature.args[2], args[2]), [args[3]])

        def constant(value: int) -> Any:
            return ir.Constant(_PAIRS, [value] * _LANES)

        with Loop(builder, args[4], []) as loop:
            row = builder.mul(loop.i, index(2 * _WIDE))
            for n in range(_COLUMNS):
                rounded = []
                for m in (0, 1):
                    at = builder.add(row, index(m * _WIDE + n * _LANES))
                    bits = builder.bitcast(_VECTORS.load(builder, s, at, ALIGN), _PAIRS)
                    rounded.append(builder.add(bits, constant(0x8000)))
                low = builder.lshr(rounded[0], constant(16))
                pair = builder.or_(low, builder.and_(rounded[1], constant(-65536)))
                to = builder.add(builder.mul(loop.i, index(_WIDE)), index(n * _LANES))
                place = builder.bitcast(builder.gep(p, [to]), ir.PointerType(_PAIRS))
                builder.store(pair, place).align = ALIGN
            loop.close([])
        return context.get_dummy_value()

    return types.void(scratch, _INT, pairs, _INT, _INT), emit


@intrinsic  # type: ignore[untyped-decorator]
def _value_product(typing, pairs, values, size, count, weights, scratch, output, rescale):  # type: ignore[no-untyped-def]
    """output[d, lane] = output[d, lane] · rescale[lane] + Σ over pairs of values · weights."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pairs_, values_, size_, count_, weights_, scratch_, output_, rescale_ = args
        p = pointer(context, builder, signature.args[0], pairs_)
        halves = builder.bitcast(builder.gep(p, [values_]), ir.IntType(16).as_pointer())
        w = builder.gep(p, [weights_])
        s = pointer(context, builder, signature.args[5], scratch_)
        factors = [
            _VECTORS.load(builder, s, builder.add(rescale_, index(n * _LANES)), ALIGN)
            for n in range(_COLUMNS)
        ]
        step = builder.mul(size_, index(2))

        def block(first: Any, rows: int, nothing: list[Any]) -> list[Any]:
            start = builder.gep(halves, [builder.mul(first, index(2))])
            found = _multiply(builder, start, index(2), step, w, rows, count_)
            row = builder.add(output_, builder.mul(first, index(_WIDE)))
            for m in range(rows):
                for n in range(_COLUMNS):
                    to = builder.add(row, index(m * _WIDE + n * _LANES))
                    before = _VECTORS.load(builder, s, to, ALIGN)
                    total = _VECTORS.multiply_add(builder, before, factors[n], found[m][n])
                    _VECTORS.store(builder, total, s, to, ALIGN)
            return nothing

        row_blocks(builder, size_, _ROWS, [], block)
        return context.get_dummy_value()

    return types.void(pairs, _INT, _INT, _INT, _INT, scratch, _INT, _INT), emit


_SHORT = ir.VectorType(ir.IntType(16), _LANES)


@intrinsic  # type: ignore[untyped-decorator]
def _pair_rows(typing, value, at, step, pairs, to, size, last):  # type: ignore[no-untyped-def]
    """pairs[to + d] = numbers d of a row and of the next one; 0 for this where the row is last."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        value_, at_, step_, pairs_, to_, size_, last_ = args
        first = builder.gep(pointer(context, builder, signature.args[0], value_), [at_])
        second = builder.gep(first, [builder.select(last_, index(0), step_)])
        p = builder.gep(pointer(context, builder, signature.args[3], pairs_), [to_])
        keep = builder.select(last_, I32(0), I32(-1))
        whole = builder.sub(size_, builder.srem(size_, index(_LANES)))

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

        with Loop(builder, whole, [], _LANES) as loop:
            empty = ir.Constant(_PAIRS, ir.Undefined)
            one = builder.insert_element(empty, keep, ir.Constant(I32, 0))
            mask = builder.shuffle_vector(one, empty, ir.Constant(_PAIRS, [0] * _LANES))
            pair(loop.i, _SHORT, _PAIRS, mask, ir.Constant(_PAIRS, [16] * _LANES))
            loop.close([])
        with Loop(builder, size_, [], 1, whole) as loop:
            pair(loop.i, ir.IntType(16), I32, keep, I32(16))
            loop.close([])
        return context.get_dummy_value()

    return types.void(value, _INT, _INT, pairs, _INT, _INT, types.boolean), emit


@intrinsic  # type: ignore[untyped-decorator]
def _pack_block(typing, query, at, step, pairs, to):  # type: ignore[no-untyped-def]
    """pairs[to + i · wide + j] = pair i of row j, for a square of as many as there are lanes."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        query_, at_, step_, pairs_, to_ = args
        q = builder.gep(pointer(context, builder, signature.args[0], query_), [at_])
        p = builder.gep(pointer(context, builder, signature.args[3], pairs_), [to_])
        rows = []
        for j in range(_LANES):
            row = builder.gep(q, [builder.mul(step_, index(j))])
            pair = builder.load(builder.bitcast(row, ir.PointerType(_PAIRS)), typ=_PAIRS)
            pair.align = 2
            rows.append(pair)
        for i, column in enumerate(transposed(builder, rows)):
            place = builder.gep(p, [index(i * _WIDE)])
            builder.store(column, builder.bitcast(place, ir.PointerType(_PAIRS))).align = 4
        return context.get_dummy_value()

    return types.void(query, _INT, _INT, pairs, _INT), emit


@intrinsic  # type: ignore[untyped-decorator]
def _round_row(typing, rows, at, out, to, size):  # type: ignore[no-untyped-def]
    """A row of float32 to bfloat16: to nearest, ties to even; whole vectors alone."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        r = builder.gep(pointer(context, builder, signature.args[0], args[0]), [args[1]])
        o = builder.gep(pointer(context, builder, signature.args[2], args[2]), [args[3]])

        def constant(value: int) -> Any:
            return ir.Constant(_PAIRS, [value] * _LANES)

        with Loop(builder, args[4], [], _LANES) as loop:
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


@inline
def _not_finite(bits):  # type: ignore[no-untyped-def]
    return (bits & np.uint32(0x7F80)) == np.uint32(0x7F80)


@functools.cache
def halves_kernel() -> Kernel:
    """The kernel: soft-max attention of bfloat16, as 16-bit integers, with a mask.

    `plan`: queries and keys, depth of the mask program, addresses of its interpreter. `out` (batch,
    heads, queries, value size).
    """
    operations = tile_operations("float32")
    softmax_step, tile_maximum = operations.softmax_step, operations.tile_maximum
    lanes_to_rows = transpose_operations("float32").lanes_to_rows
    lowest, zero, one = np.float32(-np.inf), np.float32(0), np.float32(1)

    @inline
    def pair_values(value, b, h, first, count, pairs, to, hide):  # type: ignore[no-untyped-def]
        """Values of two neighbouring keys, pair by pair; with `hide`, 0 for what is not finite."""
        size, step = value.shape[3], value.strides[2] // 2
        base = (b * value.strides[0] + h * value.strides[1]) // 2
        finite = True
        for r in range((count + 1) // 2):
            at = to + r * size
            row = base + (first + 2 * r) * step
            _pair_rows(value, row, step, pairs, at, size, 2 * r + 1 == count)
            if hide:
                for d in range(size):
                    low = pairs[at + d] & np.uint32(0xFFFF)
                    high = pairs[at + d] >> np.uint32(16)
                    if _not_finite(low):
                        finite, low = False, np.uint32(0)
                    if _not_finite(high):
                        finite, high = False, np.uint32(0)
                    pairs[at + d] = np.uint32(low | (high << np.uint32(16)))
        return finite

    def halves(
        query, key, value, scale, plan, steps, integers, octets, sink, out, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        batches, heads, queries, size = query.shape
        keys, value_size = key.shape[2], value.shape[3]
        group = heads // key.shape[1]
        blocks = (queries + _WIDE - 1) // _WIDE
        half = size // 2
        step = key.strides[2] // 2

        scratch = np.empty((_DEEP + value_size + 4) * _WIDE + ALIGN, np.float32)
        scores = aligned_start(scratch)
        output = scores + _DEEP * _WIDE
        statistics = output + value_size * _WIDE
        pairs = np.empty((half + _DEEP // 2) * _WIDE + _DEEP // 2 * value_size + ALIGN, np.uint32)
        packed = aligned_start(pairs)
        weights = packed + half * _WIDE
        values = weights + _DEEP // 2 * _WIDE
        rows = np.empty((1, 1, _WIDE, value_size), np.float32)
        bits = rows.view(np.uint32)
        seen = np.empty(max(plan[2], 1) * _DEEP * _WIDE, np.uint8)
        stack = np.empty(2 * steps.shape[0] + 2, np.int64)
        place = np.empty(PLACE_SIZE, np.int64)

        while True:
            task = take_task(counter)
            if task >= batches * heads * blocks:
                break
            # Late blocks first: with a causal mask they are the long ones.
            b, h = task // (heads * blocks), task // blocks % heads
            q0 = (blocks - 1 - task % blocks) * _WIDE
            nq = min(_WIDE, queries - q0)
            square = half - half % _LANES
            rows_left = nq - nq % _LANES
            first = (b * query.strides[0] + h * query.strides[1]) // 2
            by_query = query.strides[2] // 2
            for j in range(0, rows_left, _LANES):
                for d in range(0, square, _LANES):
                    _pack_block(
                        query, first + (q0 + j) * by_query + 2 * d, by_query, pairs,
                        packed + d * _WIDE + j,
                    )  # fmt: skip
            for j in range(_WIDE):
                lane = q0 + min(j, nq - 1)
                for d in range(square if j < rows_left else 0, half):
                    low = np.uint32(query[b, h, lane, 2 * d])
                    high = np.uint32(query[b, h, lane, 2 * d + 1])
                    pairs[packed + d * _WIDE + j] = np.uint32(low | (high << np.uint32(16)))
            for x in range(value_size * _WIDE):
                scratch[output + x] = zero
            for j in range(_WIDE):
                scratch[statistics + j] = lowest
                scratch[statistics + _WIDE + j] = zero
                scratch[statistics + 2 * _WIDE + j] = one
                scratch[statistics + 3 * _WIDE + j] = lowest
            start, stop = 0, keys
            if plan[2] > 0:
                place[BATCH], place[HEAD], place[FIRST], place[COUNT] = b, h, q0, nq
                place[QUERY_COUNT], place[KEY_COUNT] = plan[0], plan[1]
                interpret(plan[3], steps, integers, octets, place, stack, seen)
                start, stop = max(stack[0], 0), min(stack[1], keys)
            base = (b * key.strides[0] + h // group * key.strides[1]) // 2
            for k0 in range(start, stop, _DEEP):
                nk = min(_DEEP, stop - k0)
                found = FULL
                if plan[2] > 0:
                    place[KEY], place[WIDTH], place[WIDE] = k0, nk, _WIDE
                    found = interpret(plan[4], steps, integers, octets, place, stack, seen)
                    if found == EMPTY:
                        continue
                _score_product(
                    key, base + k0 * step, step, nk, pairs, packed, scratch, scores,
                    statistics + 3 * _WIDE, scale, half,
                )  # fmt: skip
                if found == PARTIAL:
                    interpret(plan[5], steps, integers, octets, place, stack, seen)
                    for x in range(nk * _WIDE):
                        scratch[scores + x] = scratch[scores + x] if seen[x] != 0 else lowest
                    tile_maximum(scratch, scores, statistics + 3 * _WIDE, nk, _COLUMNS)
                softmax_step(scratch, scores, statistics, nk, _COLUMNS)
                # A row of weights behind the last is 0: see the soft-max step.
                count = (nk + 1) // 2
                _pair_weights(scratch, scores, pairs, weights, count)
                finite = pair_values(value, b, h // group, k0, nk, pairs, values, found == PARTIAL)
                _value_product(
                    pairs, values, value_size, count, weights, scratch, output,
                    statistics + 2 * _WIDE,
                )  # fmt: skip
                if not finite:
                    for i in range(nk):
                        for d in range(value_size):
                            number = np.uint32(value[b, h // group, k0 + i, d])
                            if _not_finite(number):
                                bits[0, 0, 0, 0] = number << np.uint32(16)
                                for j in range(_WIDE):
                                    if seen[i * _WIDE + j] != 0:
                                        scratch[output + d * _WIDE + j] += (
                                            scratch[scores + i * _WIDE + j] * rows[0, 0, 0, 0]
                                        )
            for j in range(_WIDE):
                most, total = scratch[statistics + j], scratch[statistics + _WIDE + j]
                factor = zero
                if total != total:
                    factor = total  # NaN, which no maximum sees
                elif most != lowest:
                    extra = zero
                    if sink.shape[0] > 0:
                        extra = np.exp(sink[h] - most)
                    factor = one / (total + extra)
                scratch[statistics + 2 * _WIDE + j] = factor
                if factor == zero:
                    # What lies there may not be finite: 0 times it would not be 0.
                    for d in range(value_size):
                        scratch[output + d * _WIDE + j] = zero
            lanes_to_rows(scratch, output, statistics + 2 * _WIDE, rows, 0, 0, 0, nq)
            to = (b * out.strides[0] + h * out.strides[1] + q0 * out.strides[2]) // 2
            whole = value_size - value_size % _LANES
            for j in range(nq):
                _round_row(rows, j * value_size, out, to + j * (out.strides[2] // 2), whole)
                for d in range(whole, value_size):
                    x = bits[0, 0, j, d]
                    odd = (x >> np.uint32(16)) & np.uint32(1)
                    rounded = np.uint32(x + np.uint32(0x7FFF) + odd) >> np.uint32(16)
                    number = (x & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
                    out[b, h, q0 + j, d] = np.uint16(0x7FC0) if number else np.uint16(rounded)

    def array(of, ndim, layout="C", readonly=True):  # type: ignore[no-untyped-def]
        return types.Array(of, ndim, layout, readonly=readonly)

    narrow, integers = array(types.uint16, 4, "A"), types.int64
    signature = types.void(
        narrow, narrow, narrow, types.float32, array(integers, 1), array(integers, 2),
        array(integers, 1), array(types.uint8, 1), array(types.float32, 1),
        array(types.uint16, 4, "A", False), counter_type(),
    )  # fmt: skip
    return Kernel(halves, signature, "bfloat16")


def pays(query: Array, key: Array) -> bool:
    """Are there enough queries for the tiles, and enough blocks of them for the threads?"""
    batch, heads, queries, _ = query.shape
    blocks = batch * heads * -(-queries // _WIDE)
    return queries >= _LANES and (blocks >= threads.limit() or key.shape[2] <= _FEW_KEYS)


def forward(
    query: Array, key: Array, value: Array, scale: float, mask: EncodedMask, sink: Array | None,
    limit: int | None,
) -> Array:  # fmt: skip
    """Attend with bits of bfloat16 (batch, heads, tokens, size), an even size."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    plan = np.zeros(6, np.int64)
    plan[:3] = queries, keys, mask.depth
    if mask.depth:
        code = masking.interpreter()
        plan[3:] = code.key_range.address, code.classify.address, code.fill.address
    sinks = np.zeros(0, np.float32) if sink is None else np.ascontiguousarray(sink, np.float32)
    # Written as (…, queries, heads, size), so that merging heads afterwards is a view.
    out = np.empty((batch, queries, heads, value.shape[3]), np.uint16).transpose(0, 2, 1, 3)
    tasks = batch * heads * -(-queries // _WIDE)
    workers = min(limit or threads.limit(), threads.limit())
    arguments = (
        query, key, value, np.float32(scale), plan, mask.steps, mask.integers, mask.octets, sinks,
        out,
    )  # fmt: skip
    threads.run(halves_kernel().compile(), arguments, tasks, workers)
    return out
