"""Weights recomputed a tile at a time, and what is gathered from them."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
from numba.core import types

from . import target
from .jit import Kernel, embed, inline
from .masking import EMPTY, PARTIAL, PLACE_SIZE
from .mathematics import exp, expm1
from .scores import (
    COMPONENT_COUNT,
    ELEMENTWISE,
    ENTMAX15,
    SOFTMAX,
    SOFTPICK,
    SPARSEMAX,
    TOP_K,
    Problem,
    aligned_start,
    counter_type,
    problem_types,
    score_operations,
    take_task,
)
from .tiles import tile_operations
from .vector import hold, raw


@functools.cache
def weight_operations(dtype: str) -> SimpleNamespace:
    """Operations that recompute weights, for use inside kernels of this dtype."""
    tile = target.tile(dtype)
    wide, lanes = tile.queries, tile.lanes
    number = np.dtype(dtype).type
    lowest, infinite, zero, half = number(-np.inf), number(np.inf), number(0), number(0.5)
    one = number(1)
    exp_shifted = tile_operations(dtype).exp_shifted
    weigh = score_operations(dtype).weigh

    @embed
    def pack_state(normaliser, first, second, b, h, q0, nq, scratch, to):  # type: ignore[no-untyped-def]
        """What the forward kernel left for each query: two rows; neutral in empty rows.

        The third is what a soft-max has to take from its exponents besides the first, and for
        soft-pick the 1 of eˢ − 1 after its shift.

        Lanes without a query have +inf, from which every soft-max makes weights 0: their scores
        are what biases and rules say, and a weight that overflowed would be NaN times 0.
        """
        for j in range(wide):
            x, y = infinite, infinite
            if j < nq:
                x, y = first[b, h, q0 + j], second[b, h, q0 + j]
            scratch[to + j] = zero if x == lowest else x
            scratch[to + wide + j] = y
            third = y if normaliser == SOFTMAX and j < nq else zero
            scratch[to + 2 * wide + j] = exp(-y) if normaliser == SOFTPICK else third

    @embed
    def recompute(
        p, found, b, h, q0, nq, k0, nk, scratch, scores, state, rowed, stages, seen, meta
    ):  # type: ignore[no-untyped-def]
        """Normalised weights in place of the scores of a tile."""
        normaliser = p.plan[0]
        first, second = state, state + wide
        if normaliser == ELEMENTWISE:
            weigh(p, found, b, h, q0, k0, nk, scratch, scores, rowed, stages, seen, meta)
            return
        if normaliser == SPARSEMAX or normaliser == ENTMAX15:
            for i in range(nk):
                at = scores + i * wide
                for j in range(wide):
                    # The second row is the row's maximum; see panel.
                    most = scratch[second + j]
                    score = scratch[at + j] - (zero if most == lowest else most)
                    # Never above 0; said so, as the compiler would else take the threshold from
                    # the maximum first, and lose it.
                    score = zero if score > zero else score
                    if normaliser == SPARSEMAX:
                        weight = score - scratch[first + j]
                        scratch[at + j] = zero if weight < zero else weight
                    else:
                        weight = half * score - scratch[first + j]
                        scratch[at + j] = zero if weight < zero else weight * weight
            return
        if normaliser == SOFTPICK:
            for i in range(nk):
                at = scores + i * wide
                for j in range(wide):
                    # The second row is the shift; see forward. Both sides are taken of every
                    # score, so that no vector waits for a branch.
                    score, unit = scratch[at + j], scratch[state + 2 * wide + j]
                    small = expm1(score) * unit
                    less = exp(score - scratch[second + j]) - unit
                    less = small if abs(score) < one else less
                    scratch[at + j] = zero if less < zero else less / scratch[first + j]
            return
        if normaliser == TOP_K:
            for i in range(nk):
                at = scores + i * wide
                for j in range(wide):
                    kept = not scratch[at + j] < scratch[second + j]
                    scratch[at + j] = scratch[at + j] if kept else lowest
        exp_shifted(scratch, scores, first, state + 2 * wide, nk, (nq + lanes - 1) // lanes)

    return SimpleNamespace(pack_state=pack_state, recompute=recompute)


@functools.cache
def weights_kernel(dtype: str) -> Kernel:
    """The kernel that recomputes weights, of a dtype.

    Its arguments after the problem: `first`, `second`, `weights`, `entropy`, `column_mass`,
    `top_weights`, `top_keys` and the counter. The first two (batch, heads, queries) are what the
    forward kernel left. `weights` (batch, heads, queries, keys), `entropy` (batch, heads, queries),
    `column_mass` (batch, heads, keys) and `top_weights` (batch, heads, queries, k) are filled where
    they are not empty; pass them filled with zeros, and `top_keys`, of the same shape, with −1.
    """
    tile = target.tile(dtype)
    wide = tile.queries
    number = np.dtype(dtype).type
    zero, infinite = number(0), number(np.inf)
    scores_of, weights_of = score_operations(dtype), weight_operations(dtype)
    pack_query, pack_rows = scores_of.pack_query, scores_of.pack_rows
    score_tile = scores_of.score_tile
    visible_keys = scores_of.visible_keys
    pack_state, recompute = weights_of.pack_state, weights_of.recompute

    @inline
    def exceeds(weight, other):  # type: ignore[no-untyped-def]
        """Is a weight larger? NaN is the largest of all, so that it is seen."""
        return weight > other or (weight != weight and other == other)

    @embed
    def keep_largest(  # type: ignore[no-untyped-def]
        b, h, q0, nq, first_key, nk, scratch, weights, least, top_weights, top_keys
    ):
        """Sort weights of a tile into the lists of the largest; of equal ones the first key first.

        The row `least` holds the last of each list: few weights are above it.
        """
        count = top_weights.shape[3]
        for i in range(nk):
            at = weights + i * wide
            above = 0
            for j in range(wide):
                above += 0 if scratch[at + j] <= scratch[least + j] else 1
            if above == 0:
                continue
            for j in range(nq):
                weight = scratch[at + j]
                row, keys = top_weights[b, h, q0 + j], top_keys[b, h, q0 + j]
                if not exceeds(weight, row[count - 1]):
                    continue
                place = count - 1
                while place > 0 and exceeds(weight, row[place - 1]):
                    row[place], keys[place] = row[place - 1], keys[place - 1]
                    place -= 1
                row[place], keys[place] = weight, first_key + i
                scratch[least + j] = row[count - 1]

    def gather(
        query, key, value, numbers, plan, rules, parameters, rows, columns, bias, bias_batch,
        steps, integers, octets, sink, first, second, weights, entropy, column_mass,
        top_weights, top_keys, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        p = Problem(
            query, key, value, numbers, plan, rules, parameters, rows, columns, bias, bias_batch,
            steps, integers, octets, sink,
        )  # fmt: skip
        batches, heads, queries, size = query.shape
        deep = plan[11]
        parts = deep if plan[COMPONENT_COUNT] > 1 else 0
        length = (size + deep + parts + 5 + rows.shape[0]) * wide
        memory = np.empty(length + 64, number)
        scratch, packed = raw(memory), aligned_start(memory)
        scores = packed + size * wide
        part = scores + deep * wide
        state = part + parts * wide
        least, dummy = state + 3 * wide, state + 4 * wide
        rowed = dummy + wide
        octet_memory = np.empty(max(plan[4], 1) * deep * wide, np.uint8)
        seen = raw(octet_memory)
        integer_memory = np.empty(2 * steps.shape[0] + PLACE_SIZE + 8, np.int64)
        place = raw(integer_memory[2 * steps.shape[0] :])
        stack, meta = raw(integer_memory), raw(integer_memory[2 * steps.shape[0] + PLACE_SIZE :])
        # One task owns a head: its column masses are summed by nobody else.
        while True:
            task = take_task(counter)
            if task >= batches * heads:
                break
            b, h = task // heads, task % heads
            for q0 in range(0, queries, wide):
                nq = min(wide, queries - q0)
                pack_query(p, b, h, q0, nq, scratch, packed)
                pack_rows(rows, b, h, q0, nq, scratch, rowed)
                pack_state(plan[0], first, second, b, h, q0, nq, scratch, state)
                for j in range(wide):
                    scratch[least + j] = zero if j < nq else infinite
                start, stop = visible_keys(p, b, h, q0, nq, place, stack, seen)
                for k0 in range(start, stop, deep):
                    nk = min(deep, stop - k0)
                    found = score_tile(
                        p, b, h, q0, nq, k0, nk, scratch, packed, scores, part, dummy, rowed,
                        -1, place, stack, seen, meta, False,
                    )  # fmt: skip
                    if found == EMPTY:
                        continue
                    recompute(
                        p, found, b, h, q0, nq, k0, nk, scratch, scores, state, rowed, -1, seen,
                        meta,
                    )  # fmt: skip
                    if found == PARTIAL:
                        for x in range(nk * wide):
                            if seen[x] == 0:
                                scratch[scores + x] = zero
                    if weights.size > 0:
                        for j in range(nq):
                            for i in range(nk):
                                weights[b, h, q0 + j, k0 + i] = scratch[scores + i * wide + j]
                    if column_mass.size > 0:
                        for i in range(nk):
                            for j in range(nq):
                                column_mass[b, h, k0 + i] += scratch[scores + i * wide + j]
                    if entropy.size > 0:
                        for i in range(nk):
                            for j in range(nq):
                                weight = scratch[scores + i * wide + j]
                                if weight > zero:
                                    entropy[b, h, q0 + j] -= weight * np.log(weight)
                    if top_weights.size > 0:
                        first_key = plan[1] + k0
                        keep_largest(
                            b, h, q0, nq, first_key, nk, scratch, scores, least, top_weights,
                            top_keys,
                        )  # fmt: skip
        hold(memory, octet_memory, integer_memory)

    number_type = types.float32 if dtype == "float32" else types.float64
    state_type = types.Array(number_type, 3, "C", readonly=True)
    signature = types.void(
        *problem_types(dtype),
        state_type,
        state_type,
        types.Array(number_type, 4, "C"),
        types.Array(number_type, 3, "C"),
        types.Array(number_type, 3, "C"),
        types.Array(number_type, 4, "C"),
        types.Array(types.int64, 4, "C"),
        counter_type(),
    )
    return Kernel(gather, signature, f"{dtype} {tile}")
