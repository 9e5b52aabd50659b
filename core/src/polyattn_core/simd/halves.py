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
from numba.core import types

from . import masking, target, threads
from .halves_emission import (
    COLUMNS,
    LANES,
    WIDE,
    pack_block,
    pair_rows,
    pair_weights,
    round_row,
    score_product,
    value_product,
)
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
    WIDTH,
    EncodedMask,
    interpret,
)
from .scores import aligned_start, counter_type, take_task
from .tile_products import ALIGN
from .tiles import tile_operations
from .transpose import transpose_operations

Array = npt.NDArray[Any]

_DEEP = 64  # keys of a tile
_FEW_KEYS = 2048  # up to which one thread is enough for a block of queries
LANE_COUNT = masking.WIDE


def supported() -> bool:
    """Does the processor that code is generated for multiply pairs of bfloat16?"""
    return "avx512bf16" in target.cpu_features() and target.vector_bytes() == 64


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
            pair_rows(value, row, step, pairs, at, size, 2 * r + 1 == count)
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
        blocks = (queries + WIDE - 1) // WIDE
        half = size // 2
        step = key.strides[2] // 2

        scratch = np.empty((_DEEP + value_size + 4) * WIDE + ALIGN, np.float32)
        scores = aligned_start(scratch)
        output = scores + _DEEP * WIDE
        statistics = output + value_size * WIDE
        pairs = np.empty((half + _DEEP // 2) * WIDE + _DEEP // 2 * value_size + ALIGN, np.uint32)
        packed = aligned_start(pairs)
        weights = packed + half * WIDE
        values = weights + _DEEP // 2 * WIDE
        rows = np.empty((1, 1, WIDE, value_size), np.float32)
        bits = rows.view(np.uint32)
        seen = np.empty(max(plan[2], 1) * _DEEP * WIDE, np.uint8)
        stack = np.empty(2 * steps.shape[0] + 2, np.int64)
        place = np.empty(PLACE_SIZE, np.int64)

        while True:
            task = take_task(counter)
            if task >= batches * heads * blocks:
                break
            # Late blocks first: with a causal mask they are the long ones.
            b, h = task // (heads * blocks), task // blocks % heads
            q0 = (blocks - 1 - task % blocks) * WIDE
            nq = min(WIDE, queries - q0)
            square = half - half % LANES
            rows_left = nq - nq % LANES
            first = (b * query.strides[0] + h * query.strides[1]) // 2
            by_query = query.strides[2] // 2
            for j in range(0, rows_left, LANES):
                for d in range(0, square, LANES):
                    pack_block(
                        query, first + (q0 + j) * by_query + 2 * d, by_query, pairs,
                        packed + d * WIDE + j,
                    )  # fmt: skip
            for j in range(WIDE):
                lane = q0 + min(j, nq - 1)
                for d in range(square if j < rows_left else 0, half):
                    low = np.uint32(query[b, h, lane, 2 * d])
                    high = np.uint32(query[b, h, lane, 2 * d + 1])
                    pairs[packed + d * WIDE + j] = np.uint32(low | (high << np.uint32(16)))
            for x in range(value_size * WIDE):
                scratch[output + x] = zero
            for j in range(WIDE):
                scratch[statistics + j] = lowest
                scratch[statistics + WIDE + j] = zero
                scratch[statistics + 2 * WIDE + j] = one
                scratch[statistics + 3 * WIDE + j] = lowest
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
                    place[KEY], place[WIDTH], place[LANE_COUNT] = k0, nk, WIDE
                    found = interpret(plan[4], steps, integers, octets, place, stack, seen)
                    if found == EMPTY:
                        continue
                score_product(
                    key, base + k0 * step, step, nk, pairs, packed, scratch, scores,
                    statistics + 3 * WIDE, scale, half,
                )  # fmt: skip
                if found == PARTIAL:
                    interpret(plan[5], steps, integers, octets, place, stack, seen)
                    for x in range(nk * WIDE):
                        scratch[scores + x] = scratch[scores + x] if seen[x] != 0 else lowest
                    tile_maximum(scratch, scores, statistics + 3 * WIDE, nk, COLUMNS)
                softmax_step(scratch, scores, statistics, nk, COLUMNS)
                # A row of weights behind the last is 0: see the soft-max step.
                count = (nk + 1) // 2
                pair_weights(scratch, scores, pairs, weights, count)
                finite = pair_values(value, b, h // group, k0, nk, pairs, values, found == PARTIAL)
                value_product(
                    pairs, values, value_size, count, weights, scratch, output,
                    statistics + 2 * WIDE,
                )  # fmt: skip
                if not finite:
                    for i in range(nk):
                        for d in range(value_size):
                            number = np.uint32(value[b, h // group, k0 + i, d])
                            if _not_finite(number):
                                bits[0, 0, 0, 0] = number << np.uint32(16)
                                for j in range(WIDE):
                                    if seen[i * WIDE + j] != 0:
                                        scratch[output + d * WIDE + j] += (
                                            scratch[scores + i * WIDE + j] * rows[0, 0, 0, 0]
                                        )
            for j in range(WIDE):
                most, total = scratch[statistics + j], scratch[statistics + WIDE + j]
                factor = zero
                if total != total:
                    factor = total  # NaN, which no maximum sees
                elif most != lowest:
                    extra = zero
                    if sink.shape[0] > 0:
                        extra = np.exp(sink[h] - most)
                    factor = one / (total + extra)
                scratch[statistics + 2 * WIDE + j] = factor
                if factor == zero:
                    # What lies there may not be finite: 0 times it would not be 0.
                    for d in range(value_size):
                        scratch[output + d * WIDE + j] = zero
            lanes_to_rows(scratch, output, statistics + 2 * WIDE, rows, 0, 0, 0, nq)
            to = (b * out.strides[0] + h * out.strides[1] + q0 * out.strides[2]) // 2
            whole = value_size - value_size % LANES
            for j in range(nq):
                round_row(rows, j * value_size, out, to + j * (out.strides[2] // 2), whole)
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
    blocks = batch * heads * -(-queries // WIDE)
    return queries >= LANES and (blocks >= threads.limit() or key.shape[2] <= _FEW_KEYS)


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
    tasks = batch * heads * -(-queries // WIDE)
    workers = min(limit or threads.limit(), threads.limit())
    arguments = (
        query, key, value, np.float32(scale), plan, mask.steps, mask.integers, mask.octets, sinks,
        out,
    )  # fmt: skip
    threads.run(halves_kernel().compile(), arguments, tasks, workers)
    return out
