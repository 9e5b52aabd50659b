"""The kernel for few queries and many keys: every key is read once for all queries that share it.

Lanes run along the head, so that one query does not leave the others of a tile idle. Work is shared
over batch, key heads and chunks of the keys; the engine merges the chunks.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core import types

from . import target
from .jit import Kernel
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
    interpret,
)
from .mathematics import exp
from .rows import row_operations
from .scores import counter_type, problem_types, take_task


@functools.cache
def decode_kernel(dtype: str) -> Kernel:
    """The kernel ``(problem…, out, log_denominator, counter)`` of a dtype, for a plain soft-max.

    Without rules, bias, dropout and sink. `out` (chunks · batch, heads, queries, value size) and
    `log_denominator` (chunks · batch, heads, queries) receive the attention over each chunk.
    """
    number = np.dtype(dtype).type
    lowest, zero, one = number(-np.inf), number(0), number(1)
    key_scores, value_sum = row_operations(dtype).key_scores, row_operations(dtype).value_sum

    def decode(
        query, key, value, numbers, plan, rules, parameters, rows, columns, bias, bias_batch,
        steps, integers, octets, sink, out, log_denominator, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        batches, heads, queries, size = query.shape
        key_heads, keys, value_size = key.shape[1], key.shape[2], value.shape[3]
        group = heads // key_heads
        count = group * queries
        deep, chunks = plan[11], plan[12]
        span = (keys + chunks - 1) // chunks
        total = batches * key_heads * chunks

        scratch = np.empty(count * (size + value_size) + deep, number)
        output, scores = count * size, count * (size + value_size)
        most, sums = np.empty(count, number), np.empty(count, number)
        seen = np.empty(max(plan[4], 1) * deep, np.uint8)
        stack = np.empty(2 * steps.shape[0] + 2, np.int64)
        place = np.empty(PLACE_SIZE, np.int64)
        key_step, value_step = key.strides[2] // key.itemsize, value.strides[2] // value.itemsize

        while True:
            task = take_task(counter)
            if task >= total:
                break
            chunk = task // (batches * key_heads)
            b = task // key_heads % batches
            key_head = task % key_heads
            for r in range(count):
                h, i = key_head * group + r // queries, r % queries
                most[r], sums[r] = lowest, zero
                for d in range(size):
                    scratch[r * size + d] = query[b, h, i, d] * numbers[0]
                for d in range(value_size):
                    scratch[output + r * value_size + d] = zero
            key_base = (b * key.strides[0] + key_head * key.strides[1]) // key.itemsize
            value_base = (b * value.strides[0] + key_head * value.strides[1]) // value.itemsize
            for k0 in range(chunk * span, min((chunk + 1) * span, keys), deep):
                nk = min(deep, min((chunk + 1) * span, keys) - k0)
                for r in range(count):
                    h, i = key_head * group + r // queries, r % queries
                    found = FULL
                    if steps.shape[0] > 0:
                        place[BATCH], place[HEAD], place[FIRST], place[COUNT] = b, h, i, 1
                        place[QUERY_COUNT], place[KEY_COUNT] = plan[2], plan[3]
                        place[KEY], place[WIDTH], place[WIDE] = k0 + plan[1], nk, 1
                        found = interpret(plan[9], steps, integers, octets, place, stack, seen)
                        if found == EMPTY:
                            continue
                    key_scores(
                        key, key_base + k0 * key_step, key_step, nk, scratch, r * size, scores,
                        size,
                    )  # fmt: skip
                    if found == PARTIAL:
                        interpret(plan[10], steps, integers, octets, place, stack, seen)
                        for x in range(nk):
                            if seen[x] == 0:
                                scratch[scores + x] = lowest
                    top = most[r]
                    for x in range(nk):
                        top = max(top, scratch[scores + x])
                    base = zero if top == lowest else top
                    rescale = exp(most[r] - base)
                    part = zero
                    for x in range(nk):
                        weight = exp(scratch[scores + x] - base)
                        scratch[scores + x] = weight
                        part += weight
                    sums[r] = sums[r] * rescale + part
                    most[r] = top
                    at = output + r * value_size
                    if found == FULL:
                        value_sum(
                            value, value_base + k0 * value_step, value_step, nk, scratch, scores,
                            at, rescale, value_size,
                        )  # fmt: skip
                        continue
                    # Runs of visible keys, so that what is not finite behind the mask stays there.
                    for d in range(value_size):
                        scratch[at + d] *= rescale
                    x = 0
                    while x < nk:
                        if seen[x] == 0:
                            x += 1
                            continue
                        end = x
                        while end < nk and seen[end] != 0:
                            end += 1
                        value_sum(
                            value, value_base + (k0 + x) * value_step, value_step, end - x,
                            scratch, scores + x, at, one, value_size,
                        )  # fmt: skip
                        x = end
            to = chunk * batches + b
            for r in range(count):
                h, i = key_head * group + r // queries, r % queries
                factor = zero
                log_denominator[to, h, i] = lowest
                if sums[r] != sums[r]:
                    # NaN, which no maximum sees: a row of nothing else looks empty.
                    factor = sums[r]
                    log_denominator[to, h, i] = sums[r]
                elif most[r] != lowest:
                    factor = one / sums[r]
                    log_denominator[to, h, i] = most[r] + np.log(sums[r])
                for d in range(value_size):
                    number_out = scratch[output + r * value_size + d]
                    out[to, h, i, d] = zero if factor == zero else number_out * factor

    number_type = types.float32 if dtype == "float32" else types.float64
    signature = types.void(
        *problem_types(dtype),
        types.Array(number_type, 4, "C"),
        types.Array(number_type, 3, "C"),
        counter_type(),
    )
    return Kernel(decode, signature, f"{dtype} {target.tile(dtype)}")
