"""The cheap stage: for each query, the keys with the highest scores.

Scores of a block of queries against all keys are a panel in scratch memory, O(n) a thread. The
least score that counts is bisected for all lanes at once, until a few too many pass it. Which do is
a row of bits for each query, of which those that are set are visited.
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
from polyattn_core.simd.vector import hold, raw

from .emission import lowest_bit, operations

_SURPLUS = 4  # keys too many with which bisection ends
_STEPS = 200  # never reached: an interval of floats is empty before
_WORD = 64


@functools.cache
def candidates_kernel(dtype: str) -> Kernel:
    """The kernel ``(problem…, index, counter)`` of a dtype.

    `index` (batch, heads, queries, candidates) receives keys in ascending order, and −1 where there
    are fewer. Of keys with equal scores the first are taken.
    """
    wide, lanes = target.tile(dtype).queries, target.tile(dtype).lanes
    number = np.dtype(dtype).type
    least, half = np.finfo(dtype).min, number(0.5)
    ops = operations(dtype)
    extremes, counts, passing_block = ops.extremes, ops.counts, ops.passing_block
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
    def passing(scratch, panel, count, bar, words):  # type: ignore[no-untyped-def]
        """Bit i % 64 of words[i // 64 · wide + j]: number i of lane j is not below its bar."""
        for i in range(0, count, _WORD):
            at = i // _WORD * wide
            for j in range(wide):
                words[at + j] = 0
            for r in range(i, min(i + _WORD, count), lanes):
                for g in range(0, wide, lanes):
                    block = panel + r * wide + g
                    passing_block(scratch, block, bar + g, words, at + g, r - i)
            for j in range(wide if count - i < _WORD else 0):
                words[at + j] &= (1 << (count - i)) - 1

    @inline
    def replace(kept, to, room, scratch, lane, found, key):  # type: ignore[no-untyped-def]
        """Where the key's score is above the least of those kept, the last of equals: exchange."""
        least = room - 1
        for c in range(room - 2, -1, -1):
            if found[c] < found[least]:
                least = c
        score = scratch[lane + key * wide]
        if score > found[least]:
            for c in range(least, room - 1):
                found[c] = found[c + 1]
                kept[to + c] = kept[to + c + 1]
            found[room - 1] = score
            kept[to + room - 1] = key

    @inline
    def pick(kept, to, room, scratch, lane, words, j, count, found):  # type: ignore[no-untyped-def]
        """The keys of lane j whose bits are set, in order; of more than `room`, the highest."""
        n = 0
        for i in range(0, count, _WORD):
            bits = words[i // _WORD * wide + j]
            while bits != 0:
                key = i + lowest_bit(bits)
                bits &= bits - 1
                if n < room:
                    kept[to + n] = key
                else:
                    if n == room:
                        for c in range(room):
                            found[c] = scratch[lane + kept[to + c] * wide]
                    replace(kept, to, room, scratch, lane, found, key)
                n += 1
        return min(n, room)

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
        memory = np.empty((size + keys + lanes + 5) * wide + 64, number)
        scratch, packed = raw(memory), aligned_start(memory)
        panel = packed + size * wide
        dummy = panel + (keys + lanes) * wide  # blocks of so many keys may end beyond the last
        low, high, middle = dummy + wide, dummy + 2 * wide, dummy + 3 * wide
        number_found = dummy + 4 * wide
        octet_memory = np.empty(max(plan[4], 1) * deep * wide, np.uint8)
        seen = raw(octet_memory)
        integer_memory = np.empty(2 * steps.shape[0] + PLACE_SIZE + 8, np.int64)
        place = raw(integer_memory[2 * steps.shape[0] :])
        stack, meta = raw(integer_memory), raw(integer_memory[2 * steps.shape[0] + PLACE_SIZE :])
        done = np.empty(wide, np.bool_)
        word_memory = np.empty((keys + _WORD - 1) // _WORD * wide, np.int64)
        number_memory = np.empty(wanted, number)
        words, found, kept = raw(word_memory), raw(number_memory), raw(index)
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
                    scratch[low + j] = least
            passing(scratch, panel, count, low, words)
            for j in range(nq):
                to = ((b * heads + h) * queries + q0 + j) * wanted
                n = pick(kept, to, wanted, scratch, panel + j, words, j, count, found)
                for c in range(n):
                    kept[to + c] += start
                for c in range(n, wanted):
                    kept[to + c] = -1
        hold(memory, index, octet_memory, integer_memory, word_memory, number_memory)

    signature = types.void(*problem_types(dtype), types.Array(types.int32, 4, "C"), counter_type())
    return Kernel(candidates, signature, f"{dtype} {target.tile(dtype)}")
