"""The kernel of normalisers that need all scores of a row before the first weight.

Scores of one block of queries against all keys are held as a panel in scratch memory, O(n) a
thread, and each row's threshold is found in it, for all lanes at once.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import target
from .jit import Kernel, embed
from .masking import PARTIAL, PLACE_SIZE
from .mathematics import exp
from .scores import (
    COMPONENT_COUNT,
    ENTMAX15,
    SPARSEMAX,
    Problem,
    aligned_start,
    counter_type,
    problem_types,
    score_operations,
    take_task,
)
from .transpose import transpose_operations
from .vector import hold, raw

_NEWTON_STEPS = 100  # never reached: sparsemax ends after finitely many, entmax quadratically


@intrinsic  # type: ignore[untyped-decorator]
def _ordered(typing, bits):  # type: ignore[no-untyped-def]
    """The float that has a place in the order of whole numbers: monotone, from int32 or int64."""
    result = types.float32 if bits is types.int32 else types.float64

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        width = args[0].type.width
        sign = builder.ashr(args[0], ir.Constant(args[0].type, width - 1))
        magnitude = builder.lshr(sign, ir.Constant(args[0].type, 1))
        return builder.bitcast(
            builder.xor(args[0], magnitude), context.get_value_type(signature.return_type)
        )

    return result(bits), emit


@functools.cache
def panel_kernel(dtype: str) -> Kernel:
    """The kernel ``(problem…, out, threshold, log_denominator, counter)`` of a dtype.

    `threshold` receives τ of sparsemax and entmax, less the row's maximum, or the least score among
    the top k; `log_denominator` that of the soft-max over the top k, or the row's maximum, and −inf
    for empty rows of all.
    """
    tile = target.tile(dtype)
    wide = tile.queries
    number = np.dtype(dtype).type
    bits = np.int32 if dtype == "float32" else np.int64
    # Ordered whole numbers of −inf and +inf.
    ordered_lowest = bits(int(np.array(-np.inf, dtype).view(bits)) ^ int(np.iinfo(bits).max))
    ordered_highest = bits(np.array(np.inf, dtype).view(bits))
    lowest, zero, one, half = number(-np.inf), number(0), number(1), number(0.5)
    tolerance = number(np.finfo(dtype).eps)
    bit_count = 8 * np.dtype(dtype).itemsize
    scores_of = score_operations(dtype)
    pack_query, pack_rows = scores_of.pack_query, scores_of.pack_rows
    score_tile = scores_of.score_tile
    lanes_to_rows = transpose_operations(dtype).lanes_to_rows
    drop, accumulate, visible_keys = scores_of.drop, scores_of.accumulate, scores_of.visible_keys

    @embed
    def solve_threshold(scratch, panel, count, nq, most, threshold, total, moment, squared):  # type: ignore[no-untyped-def]
        """Newton steps from the left, where they rise monotonically to the root.

        Scores are relative to their maximum, so that thresholds lie between −1 and 0 and lose no
        digits however large the scores are.
        """
        for j in range(wide):
            scratch[threshold + j] = -one
        for _ in range(_NEWTON_STEPS):
            for j in range(wide):
                scratch[total + j] = zero
                scratch[moment + j] = zero
            for i in range(count):
                at = panel + i * wide
                for j in range(wide):
                    score = scratch[at + j]
                    above = (half * score if squared else score) - scratch[threshold + j]
                    above = max(above, zero)
                    if squared:
                        scratch[total + j] += above * above
                        scratch[moment + j] += number(2) * above
                    else:
                        scratch[total + j] += above
                        scratch[moment + j] += one if above > zero else zero
            moving = False
            for j in range(nq):
                if scratch[most + j] == lowest:
                    continue
                step = (scratch[total + j] - one) / scratch[moment + j]
                scratch[threshold + j] += max(step, zero)
                scale = max(abs(scratch[threshold + j]), one)
                moving = moving or step > number(2) * tolerance * scale
            if not moving:
                break

    @embed
    def solve_rank(scratch, panel, count, k, threshold, low, high, counts):  # type: ignore[no-untyped-def]
        """The k-th largest score, by bisection over the ordered whole numbers of floats."""
        for j in range(wide):
            low[j] = ordered_lowest
            high[j] = ordered_highest
        for _ in range(bit_count):
            for j in range(wide):
                # Rounded up; written so that it cannot overflow.
                middle = (low[j] & high[j]) + ((low[j] ^ high[j]) >> 1) + ((low[j] ^ high[j]) & 1)
                scratch[threshold + j] = _ordered(bits(middle))
            for j in range(wide):
                counts[j] = bits(0)
            for i in range(count):
                at = panel + i * wide
                for j in range(wide):
                    counts[j] += bits(1) if scratch[at + j] >= scratch[threshold + j] else bits(0)
            for j in range(wide):
                middle = (low[j] & high[j]) + ((low[j] ^ high[j]) >> 1) + ((low[j] ^ high[j]) & 1)
                if counts[j] >= k:
                    low[j] = bits(middle)
                elif low[j] < high[j]:
                    high[j] = bits(middle - 1)
        for j in range(wide):
            scratch[threshold + j] = _ordered(bits(low[j]))

    def panel_forward(
        query, key, value, numbers, plan, rules, parameters, rows, columns, bias, bias_batch,
        steps, integers, octets, sink, out, thresholds, log_denominator, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        p = Problem(
            query, key, value, numbers, plan, rules, parameters, rows, columns, bias, bias_batch,
            steps, integers, octets, sink,
        )  # fmt: skip
        batches, heads, queries, size = query.shape
        deep = plan[11]
        keys, value_size = key.shape[2], value.shape[3]
        blocks = (queries + wide - 1) // wide
        total = batches * heads * blocks
        normaliser = plan[0]

        parts = deep if plan[COMPONENT_COUNT] > 1 else 0
        length = (size + keys + parts + value_size + 8 + rows.shape[0]) * wide
        length += deep * value_size
        memory = np.empty(length + 64, number)
        scratch, packed = raw(memory), aligned_start(memory)
        panel = packed + size * wide
        part = panel + keys * wide
        output = part + parts * wide
        most = output + value_size * wide
        dummy, threshold, sums = most + wide, most + 2 * wide, most + 3 * wide
        ones, moment = most + 4 * wide, most + 5 * wide
        rowed = most + 8 * wide
        safe = rowed + rows.shape[0] * wide
        octet_memory = np.empty(max(plan[4], 1) * deep * wide, np.uint8)
        seen = raw(octet_memory)
        integer_memory = np.empty(2 * steps.shape[0] + PLACE_SIZE + 8, np.int64)
        place = raw(integer_memory[2 * steps.shape[0] :])
        stack, meta = raw(integer_memory), raw(integer_memory[2 * steps.shape[0] + PLACE_SIZE :])
        rank_memory = np.empty(3 * wide, bits)
        low, high = raw(rank_memory), raw(rank_memory[wide:])
        counts = raw(rank_memory[2 * wide :])

        while True:
            task = take_task(counter)
            if task >= total:
                break
            b = task // (heads * blocks)
            h = task // blocks % heads
            q0 = (blocks - 1 - task % blocks) * wide
            nq = min(wide, queries - q0)
            pack_query(p, b, h, q0, nq, scratch, packed)
            pack_rows(rows, b, h, q0, nq, scratch, rowed)
            start, stop = visible_keys(p, b, h, q0, nq, place, stack, seen)
            stop = max(stop, start)
            count = stop - start
            for k0 in range(start, stop, deep):
                nk = min(deep, stop - k0)
                score_tile(
                    p, b, h, q0, nq, k0, nk, scratch, packed, panel + (k0 - start) * wide, part,
                    dummy, rowed, -1, place, stack, seen, meta, True,
                )  # fmt: skip
            for j in range(wide):
                scratch[most + j] = lowest
                scratch[ones + j] = one
                scratch[sums + j] = zero
            for x in range(value_size * wide):
                scratch[output + x] = zero
            for i in range(count):
                at = panel + i * wide
                for j in range(wide):
                    scratch[most + j] = max(scratch[most + j], scratch[at + j])
            if normaliser == SPARSEMAX or normaliser == ENTMAX15:
                for i in range(count):
                    at = panel + i * wide
                    for j in range(wide):
                        if scratch[most + j] != lowest:
                            scratch[at + j] -= scratch[most + j]
                solve_threshold(
                    scratch,
                    panel,
                    count,
                    nq,
                    most,
                    threshold,
                    sums,
                    moment,
                    normaliser == ENTMAX15,
                )
                for i in range(count):
                    at = panel + i * wide
                    for j in range(wide):
                        score = scratch[at + j]
                        if normaliser == ENTMAX15:
                            weight = half * score - scratch[threshold + j]
                            scratch[at + j] = zero if weight < zero else weight * weight
                        else:
                            weight = score - scratch[threshold + j]
                            # max(NaN, 0) would hide a score that is not a number.
                            scratch[at + j] = zero if weight < zero else weight
            else:
                solve_rank(scratch, panel, count, plan[6], threshold, low, high, counts)
                for j in range(wide):
                    if scratch[most + j] == lowest:
                        scratch[most + j] = zero
                        scratch[dummy + j] = lowest
                    else:
                        scratch[dummy + j] = zero
                for i in range(count):
                    at = panel + i * wide
                    for j in range(wide):
                        score = scratch[at + j]
                        weight = exp(score - scratch[most + j])
                        weight = zero if score < scratch[threshold + j] else weight
                        scratch[at + j] = weight
                        scratch[sums + j] += weight
                for j in range(wide):
                    if scratch[dummy + j] == lowest:
                        scratch[most + j] = lowest
            for k0 in range(0, count, deep):
                nk = min(deep, count - k0)
                at = panel + k0 * wide
                for x in range(nk * wide):
                    seen[x] = np.uint8(scratch[at + x] != zero)
                if plan[5] >= 0:
                    drop(p, b, h, q0, start + k0, nk, scratch, at)
                accumulate(
                    p, PARTIAL, b, h, q0, nq, start + k0, nk, scratch, at, output, ones, safe, seen
                )
            for j in range(nq):
                factor = one
                thresholds[b, h, q0 + j] = scratch[threshold + j]
                log_denominator[b, h, q0 + j] = scratch[most + j]
                if normaliser != SPARSEMAX and normaliser != ENTMAX15:
                    if scratch[most + j] > lowest:
                        factor = one / scratch[sums + j]
                        log_denominator[b, h, q0 + j] += np.log(scratch[sums + j])
                scratch[ones + j] = factor
            lanes_to_rows(scratch, output, ones, out, b, h, q0, nq)
        hold(memory, octet_memory, integer_memory, rank_memory)

    number_type = types.float32 if dtype == "float32" else types.float64
    signature = types.void(
        *problem_types(dtype),
        types.Array(number_type, 4, "A"),
        types.Array(number_type, 3, "C"),
        types.Array(number_type, 3, "C"),
        counter_type(),
    )
    return Kernel(panel_forward, signature, f"{dtype} {tile}")
