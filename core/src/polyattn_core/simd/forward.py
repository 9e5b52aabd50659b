"""The streaming kernel: scores and values a tile at a time, nothing of size queries × keys."""

from __future__ import annotations

import functools

import numba
import numpy as np
from numba.core import types

from . import target
from .jit import Kernel, embed
from .masking import EMPTY, PARTIAL, PLACE_SIZE
from .mathematics import IN_ORDER, exp, expm1
from .scores import (
    COMPONENT_COUNT,
    ELEMENTWISE,
    SOFTPICK,
    Problem,
    aligned_start,
    counter_type,
    problem_types,
    score_operations,
    take_task,
)
from .tiles import tile_operations
from .transpose import transpose_operations
from .vector import hold, raw


@numba.njit(**IN_ORDER)
def lost(large, small, total):  # type: ignore[no-untyped-def]
    """What rounding took from the sum of two numbers, the larger one first."""
    return small - (total - large)


@functools.cache
def forward_kernel(dtype: str) -> Kernel:
    """The kernel ``(problem…, out, log_denominator, shift, entropy, counter)`` of a dtype.

    `out` (chunks · batch, heads, queries, value size) receives the output over each chunk of the
    keys, `log_denominator` and `shift` (chunks · batch, heads, queries) what :mod:`backward` and
    :mod:`weights` need to recompute weights: the logarithm of the soft-max denominator, and what
    rounding took from it; or the denominator of soft-pick and the shift of its exponents.
    `entropy`, of the same shape, receives that of soft-max weights where it is not empty.
    """
    tile = target.tile(dtype)
    wide, lanes = tile.queries, tile.lanes
    number = np.dtype(dtype).type
    lowest, zero, one = number(-np.inf), number(0), number(1)
    log_two = number(np.log(2))
    softmax_step = tile_operations(dtype).softmax_step
    entropy_step = tile_operations(dtype).entropy_step
    scores_of = score_operations(dtype)
    pack_query, pack_rows = scores_of.pack_query, scores_of.pack_rows
    score_tile = scores_of.score_tile
    visible_keys = scores_of.visible_keys
    lanes_to_rows = transpose_operations(dtype).lanes_to_rows
    weigh, drop, accumulate = scores_of.weigh, scores_of.drop, scores_of.accumulate

    @embed
    def softpick_step(scratch, scores, kept, statistics, nk, active, found, seen):  # type: ignore[no-untyped-def]
        """Soft-max step, then weights max(eˢ − 1, 0) with denominator Σ|eˢ − 1|, shifted alike.

        `kept` is room for the scores and one row more: near 0, eˢ − 1 is taken from the score.
        """
        unit, total, before = statistics + 3 * wide, statistics + wide, kept + nk * wide
        for x in range(nk * wide):
            scratch[kept + x] = scratch[scores + x]
        for j in range(wide):
            scratch[before + j] = scratch[total + j]
        softmax_step(scratch, scores, statistics, nk, active)
        for j in range(wide):
            scratch[unit + j] = exp(-scratch[statistics + j])
            scratch[total + j] = scratch[before + j] * scratch[statistics + 2 * wide + j]
        for i in range(nk):
            at = i * wide
            for j in range(wide):
                score = scratch[kept + at + j]
                small = expm1(score) * scratch[unit + j]
                less = scratch[scores + at + j] - scratch[unit + j]
                less = small if abs(score) < one else less
                visible = found != PARTIAL or seen[at + j] != 0
                scratch[total + j] += abs(less) if visible else zero
                scratch[scores + at + j] = max(less, zero) if visible else zero
        for j in range(wide):
            scratch[unit + j] = lowest

    def forward(
        query, key, value, numbers, plan, rules, parameters, rows, columns, bias, bias_batch,
        steps, integers, octets, sink, out, log_denominator, shift, entropy, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        p = Problem(
            query, key, value, numbers, plan, rules, parameters, rows, columns, bias, bias_batch,
            steps, integers, octets, sink,
        )  # fmt: skip
        batches, heads, queries, size = query.shape
        deep = plan[11]
        value_size = value.shape[3]
        blocks = (queries + wide - 1) // wide
        total = batches * heads * blocks
        chunks = plan[12]
        span = (key.shape[2] + chunks - 1) // chunks
        span = (span + deep - 1) // deep * deep
        depth = max(plan[4], 1)
        normaliser = plan[0]

        parts = deep + 1 if plan[COMPONENT_COUNT] > 1 or plan[0] == SOFTPICK else 0
        length = (size + deep + parts + value_size + 5 + rows.shape[0]) * wide
        length += deep * value_size
        memory = np.empty(length + 64, number)
        scratch, packed = raw(memory), aligned_start(memory)
        scores = packed + size * wide
        part = scores + deep * wide
        output = part + parts * wide
        statistics = output + value_size * wide
        rowed = statistics + 5 * wide
        safe = rowed + rows.shape[0] * wide
        octet_memory = np.empty(depth * deep * wide, np.uint8)
        seen = raw(octet_memory)
        integer_memory = np.empty(2 * steps.shape[0] + PLACE_SIZE + 8, np.int64)
        place = raw(integer_memory[2 * steps.shape[0] :])
        stack, meta = raw(integer_memory), raw(integer_memory[2 * steps.shape[0] + PLACE_SIZE :])

        while True:
            task = take_task(counter)
            if task >= total * chunks:
                break
            chunk = task // total
            task -= chunk * total
            # Late blocks first: with a causal mask they are the long ones.
            b = task // (heads * blocks)
            to = chunk * batches + b
            h = task // blocks % heads
            q0 = (blocks - 1 - task % blocks) * wide
            nq = min(wide, queries - q0)
            active = (nq + lanes - 1) // lanes
            pack_query(p, b, h, q0, nq, scratch, packed)
            pack_rows(rows, b, h, q0, nq, scratch, rowed)
            for d in range(value_size):
                for j in range(active * lanes):
                    scratch[output + d * wide + j] = zero
            for j in range(wide):
                scratch[statistics + j] = zero if normaliser == SOFTPICK else lowest
                scratch[statistics + wide + j] = zero
                scratch[statistics + 2 * wide + j] = one
                scratch[statistics + 3 * wide + j] = lowest
                scratch[statistics + 4 * wide + j] = zero
            start, stop = visible_keys(p, b, h, q0, nq, place, stack, seen)
            start, stop = max(start, chunk * span), min(stop, (chunk + 1) * span)
            for k0 in range(start, stop, deep):
                nk = min(deep, stop - k0)
                found = score_tile(
                    p, b, h, q0, nq, k0, nk, scratch, packed, scores, part,
                    statistics + 3 * wide, rowed, -1, place, stack, seen, meta, False,
                )  # fmt: skip
                if found == EMPTY:
                    continue
                if normaliser == ELEMENTWISE:
                    weigh(p, found, b, h, q0, k0, nk, scratch, scores, rowed, -1, seen, meta)
                elif normaliser == SOFTPICK:
                    softpick_step(scratch, scores, part, statistics, nk, active, found, seen)
                elif entropy.size > 0:
                    entropy_step(scratch, scores, statistics, nk, active)
                else:
                    softmax_step(scratch, scores, statistics, nk, active)
                if plan[5] >= 0:
                    drop(p, b, h, q0, k0, nk, scratch, scores)
                accumulate(
                    p, found, b, h, q0, nq, k0, nk, scratch, scores, output, statistics + 2 * wide,
                    safe, seen,
                )  # fmt: skip
            for j in range(nq):
                most = scratch[statistics + j]
                total_weight = scratch[statistics + wide + j]
                factor = one
                if normaliser == SOFTPICK:
                    denominator = total_weight + numbers[2] * np.exp(-most)
                    # Asked this way round, NaN is not taken for nothing.
                    factor = zero if denominator <= zero else one / denominator
                    log_denominator[to, h, q0 + j] = denominator
                    shift[to, h, q0 + j] = most
                elif normaliser != ELEMENTWISE:
                    logarithm, rest = zero, zero
                    if total_weight != total_weight:
                        # NaN, which no maximum sees: a row of nothing else looks empty.
                        factor = total_weight
                        log_denominator[to, h, q0 + j] = total_weight
                    elif most == lowest:
                        factor = zero
                        log_denominator[to, h, q0 + j] = lowest
                    else:
                        denominator = total_weight
                        extra = zero
                        if sink.shape[0] > 0:
                            extra = np.exp(sink[h] - most)
                        if extra < number(1e30):
                            denominator += extra
                            factor = one / denominator
                            logarithm = np.log(denominator)
                            whole = most + logarithm
                            rest = lost(most, logarithm, whole)
                            log_denominator[to, h, q0 + j] = whole
                        else:
                            # The sink outweighs all scores by more than the range of numbers.
                            factor = np.exp(most - sink[h])
                            logarithm = sink[h] - most
                            log_denominator[to, h, q0 + j] = sink[h]
                    shift[to, h, q0 + j] = rest
                    if entropy.size > 0:
                        # −Σ w ln w of w = factor · eˢ⁻ᵐ, whose logarithm is s − m − logarithm.
                        below = log_two * scratch[statistics + 4 * wide + j]
                        entropy[to, h, q0 + j] = factor * (total_weight * logarithm - below)
                scratch[statistics + 2 * wide + j] = factor
                if factor == zero:
                    # What lies there may not be finite: 0 times it would not be 0.
                    for d in range(value_size):
                        scratch[output + d * wide + j] = zero
            lanes_to_rows(scratch, output, statistics + 2 * wide, out, to, h, q0, nq)
        hold(memory, octet_memory, integer_memory)

    number_type = types.float32 if dtype == "float32" else types.float64
    signature = types.void(
        *problem_types(dtype),
        types.Array(number_type, 4, "A"),
        types.Array(number_type, 3, "C"),
        types.Array(number_type, 3, "C"),
        types.Array(number_type, 3, "C"),
        counter_type(),
    )
    return Kernel(forward, signature, f"{dtype} {tile}")
