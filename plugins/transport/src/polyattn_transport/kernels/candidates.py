"""The cheap stage: for each query, the keys with the highest scores.

Scores of a block of queries against all keys are a panel in scratch memory, O(n) a thread. The
least score that counts is bisected for all lanes at once, until a few too many pass it; only these
are looked at one by one.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core import types

from polyattn_core.simd import target
from polyattn_core.simd.jit import Kernel, inline
from polyattn_core.simd.masking import PLACE_SIZE
from polyattn_core.simd.scores import (
    Problem,
    aligned_start,
    counter_type,
    problem_types,
    score_operations,
    take_task,
)

from .emission import lowest_bit, operations

_SURPLUS = 4  # keys too many with which bisection ends
_STEPS = 200  # never reached: an interval of floats is empty before


@functools.cache
def candidates_kernel(dtype: str) -> Kernel:
    """The kernel ``(problem…, index, counter)`` of a dtype.

    `index` (batch, heads, queries, candidates) receives keys in ascending order, and −1 where there
    are fewer. Of keys with equal scores the first are taken.
    """
    wide, lanes = target.tile(dtype).queries, target.tile(dtype).lanes
    number = np.dtype(dtype).type
    lowest, half = number(-np.inf), number(0.5)
    ops = operations(dtype)
    extremes, counts, passing = ops.extremes, ops.counts, ops.passing
    scores_of = score_operations(dtype)
    pack_query, score_tile = scores_of.pack_query, scores_of.score_tile
    visible_keys = scores_of.visible_keys

    @inline
    def bisect(scratch, panel, count, wanted, low, high, middle, found, done):  # type: ignore[no-untyped-def]
        """A score in `low` that at least `wanted` of each lane reach, few more if possible."""
        extremes(scratch, panel, count, low, high, found)
        for j in range(wide):
            done[j] = scratch[found + j] <= wanted + _SURPLUS
        for _ in range(_STEPS):
            running = False
            for j in range(wide):
                low_, high_ = scratch[low + j], scratch[high + j]
                scratch[middle + j] = low_ + half * (high_ - low_)
                if scratch[middle + j] <= low_ or scratch[middle + j] >= high_:
                    done[j] = True
                running = running or not done[j]
            if not running:
                break
            counts(scratch, panel, count, middle, found)
            for j in range(wide):
                if not done[j]:
                    if scratch[found + j] >= wanted:
                        scratch[low + j] = scratch[middle + j]
                        done[j] = scratch[found + j] <= wanted + _SURPLUS
                    else:
                        scratch[high + j] = scratch[middle + j]

    @inline
    def keep(place, found, kept, j, room, score, key):  # type: ignore[no-untyped-def]
        """Append to lane j; where there is no room left, the lowest goes, the last of equals."""
        n = place[j]
        if n < room:
            found[j, n] = score
            kept[j, n] = key
            place[j] = n + 1
            return
        least = n - 1
        for c in range(n - 2, -1, -1):
            if found[j, c] < found[j, least]:
                least = c
        if score > found[j, least]:
            for c in range(least, n - 1):
                found[j, c] = found[j, c + 1]
                kept[j, c] = kept[j, c + 1]
            found[j, n - 1] = score
            kept[j, n - 1] = key

    def candidates(
        query, key, value, numbers, plan, rules, parameters, rows, columns, bias, bias_batch,
        steps, integers, octets, sink, index, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        p = Problem(
            query, key, value, numbers, plan, rules, parameters, rows, columns, bias, bias_batch,
            steps, integers, octets, sink,
        )  # fmt: skip
        batches, heads, queries, size = query.shape
        deep, keys, wanted = plan[11], key.shape[2], index.shape[3]
        blocks = (queries + wide - 1) // wide
        scratch = np.empty((size + keys + 5) * wide + 64, number)
        packed = aligned_start(scratch)
        panel = packed + size * wide
        dummy = panel + keys * wide
        low, high, middle = dummy + wide, dummy + 2 * wide, dummy + 3 * wide
        number_found = dummy + 4 * wide
        seen = np.empty(max(plan[4], 1) * deep * wide, np.uint8)
        stack = np.empty(2 * steps.shape[0] + 2, np.int64)
        place = np.empty(PLACE_SIZE, np.int64)
        meta = np.empty(5, np.int64)
        done = np.empty(wide, np.bool_)
        taken = np.empty(wide, np.int64)
        found = np.empty((wide, wanted), number)
        kept = np.empty((wide, wanted), np.int32)
        while True:
            task = take_task(counter)
            if task >= batches * heads * blocks:
                break
            b = task // (heads * blocks)
            h = task // blocks % heads
            q0 = (blocks - 1 - task % blocks) * wide
            nq = min(wide, queries - q0)
            pack_query(p, b, h, q0, nq, scratch, packed)
            start, stop = visible_keys(p, b, h, q0, nq, place, stack, seen)
            stop = max(stop, start)
            for k0 in range(start, stop, deep):
                nk = min(deep, stop - k0)
                score_tile(
                    p, b, h, q0, nq, k0, nk, scratch, packed, panel + (k0 - start) * wide, dummy,
                    dummy, dummy, -1, place, stack, seen, meta, True,
                )  # fmt: skip
            count = stop - start
            if count > wanted:
                bisect(scratch, panel, count, wanted, low, high, middle, number_found, done)
            else:
                for j in range(wide):
                    scratch[low + j] = lowest
            for j in range(wide):
                taken[j] = 0
            for i in range(count):
                for g in range(0, wide, lanes):
                    bits = passing(scratch, panel + i * wide + g, low + g)
                    while bits != 0:
                        j = g + lowest_bit(bits)
                        bits &= bits - 1
                        score = scratch[panel + i * wide + j]
                        if score != lowest and j < nq:
                            keep(taken, found, kept, j, wanted, score, start + i)
            for j in range(nq):
                n = taken[j]
                for c in range(n):
                    index[b, h, q0 + j, c] = kept[j, c]
                for c in range(n, wanted):
                    index[b, h, q0 + j, c] = -1

    signature = types.void(*problem_types(dtype), types.Array(types.int32, 4, "C"), counter_type())
    return Kernel(candidates, signature, f"{dtype} {target.tile(dtype)}")
