"""The kernel of gradients: one scan for queries, and the same with roles exchanged for keys.

With ĝ = (g, −g·o) and v̂ = (v, 1), and ℓ the logarithm of the normaliser, the gradient by the
logarithm of feature r of query i is

    φ_r(q_i) e^(−ℓ_i) Σ_j φ_r(k_j) v̂_j · ĝ_i

in which the sum is the state of the forward scan. By that of key j it is

    φ_r(k_j) Σ_i φ_r(q_i) e^(−ℓ_i) ĝ_i · v̂_j

over the queries i that see j: the state of a scan over queries, last first, from which the
gradient of the value, Σ_i φ(k_j)·φ(q_i) e^(−ℓ_i) g_i, is read like an output.
"""

from __future__ import annotations

import functools
from collections import namedtuple

import numpy as np
from numba.core import types

from polyattn_core.simd import target
from polyattn_core.simd.jit import Kernel, inline
from polyattn_core.simd.mathematics import exp
from polyattn_core.simd.scores import counter_type, take_task

from .blocks import call
from .state import (
    ELU,
    EXP_ROWS,
    EXPONENTIAL,
    ONE,
    PRODUCT,
    SCALE_ROW,
    TRANSPOSE,
    ZERO,
    Problem,
    problem_types,
)
from .steps import scan_operations

# The vectors that rows bring along, (batch, heads, rows, payload size) and (batch, heads, rows),
# what is subtracted from the logarithms of their features, and where the gradient and the sum of
# payloads go; an array of size 0 is not written.
Rows = namedtuple("Rows", "vector weight shift gradient result")
Work = namedtuple(
    "Work", "tokens logs features slopes found total vector pairs limit line seen probe"
)


@functools.cache
def backward_kernel(dtype: str) -> Kernel:
    """The kernel ``(problem…, rows…, counter)`` of a dtype."""
    ops = scan_operations(dtype)
    wide, lanes, padded, room, clear = ops.wide, ops.lanes, ops.padded, ops.room, ops.clear
    place, load_tokens, logarithms = ops.place, ops.load_tokens, ops.logarithms
    plain_features, load_block, absorb = ops.plain_features, ops.load_block, ops.absorb
    load_state, advance, begin, pair = ops.load_state, ops.advance, ops.begin, ops.pair
    find_limits = ops.find_limits
    new_state, new_block, apply_pairs = ops.new_state, ops.new_block, ops.apply_pairs
    hide = ops.hide
    number = np.dtype(dtype).type
    zero, one, lowest = number(0), number(1), number(-np.inf)
    # An invisible item further than this above all visible ones could overflow.
    farthest = number(-0.5 * np.log(np.finfo(dtype).tiny))

    @inline
    def load_row(p, rows, b, h, first, count, work):  # type: ignore[no-untyped-def]
        """Logarithms of features, or features and their slopes, and the vectors of some rows."""
        load_tokens(p, p.row, b, h, first, count, work.tokens)
        load_tokens(p, rows.vector, b, h, first, count, work.vector)
        for j in range(wide):
            work.line[j] = rows.shift[b, h, first + j] if j < count else zero
            work.line[wide + j] = rows.weight[b, h, first + j] if j < count else zero
        features = p.plan[1]
        clear(work.total, ZERO, features * wide)
        if p.plan[0] == EXPONENTIAL:
            logarithms(p, work.tokens, work.line, count, work.logs)
            return
        for j in range(wide):
            work.line[j] = exp(-work.line[j])
        plain_features(p, work.tokens, work.line, work.features)
        elu = p.plan[0] == ELU
        for d in range(features):
            at = d * wide
            for j in range(wide):
                # The slope of elu is 1 where elu + 1 > 1, and elu + 1 itself below.
                feature, least = work.features[at + j], work.line[j] if elu else zero
                below = feature if elu else zero
                work.slopes[at + j] = work.line[j] if feature > least else below

    @inline
    def accumulate(p, work):  # type: ignore[no-untyped-def]
        """Add what was found to the gradient by logarithms of features, or by x of plain ones."""
        slopes = work.features if p.plan[0] == EXPONENTIAL else work.slopes
        for x in range(p.plan[1] * wide):
            work.total[x] += work.found[x] * slopes[x]

    @inline
    def from_state(p, rows, count, state, work):  # type: ignore[no-untyped-def]
        """What rows get from the items in the state."""
        features, size = p.plan[1], p.payload.shape[3]
        across = padded(size)
        if p.plan[0] == EXPONENTIAL:
            for j in range(wide):
                work.limit[j] = zero
            call(
                p.plan[EXP_ROWS], work.logs, 0, state.most, 0, work.limit, 0, work.features, 0,
                features,
            )  # fmt: skip
        if rows.gradient.size > 0:
            for r in range(features):
                mass = state.mass[r]
                for j in range(wide):
                    work.found[r * wide + j] = mass * work.line[wide + j]
            call(
                p.plan[PRODUCT], work.found, 0, wide, state.total, 0, across, 1, work.vector, 0,
                wide, features, wide // lanes, size,
            )  # fmt: skip
            accumulate(p, work)
        if rows.result.size > 0:
            call(
                p.plan[PRODUCT], work.pairs, wide * wide, across, work.features, 0, 1, wide,
                state.total, 0, across, count, across // lanes, features,
            )  # fmt: skip

    @inline
    def from_block(p, rows, count, width, some, block, work):  # type: ignore[no-untyped-def]
        """What rows get from a block of items; False where they must go one by one."""
        features, size = p.plan[1], p.payload.shape[3]
        across = padded(size)
        if p.plan[0] == EXPONENTIAL:
            if some:
                for j in range(wide):
                    work.limit[j] = lowest
                for r in range(features):
                    top = block.top[r]
                    for j in range(wide):
                        log = work.logs[r * wide + j] + top
                        work.limit[j] = log if log > work.limit[j] else work.limit[j]
                for j in range(count):
                    if work.limit[j] > farthest:
                        return False
            for j in range(wide):
                work.limit[j] = zero
            call(
                p.plan[EXP_ROWS], work.logs, 0, block.top, 0, work.limit, 0, work.features, 0,
                features,
            )  # fmt: skip
        if rows.gradient.size > 0:
            for i in range(width):
                for j in range(wide):
                    work.pairs[i * wide + j] = block.weight[i] * work.line[wide + j]
            call(
                p.plan[PRODUCT], work.pairs, 0, wide, block.payload, 0, across, 1, work.vector, 0,
                wide, width, wide // lanes, size,
            )  # fmt: skip
            hide(width, work.seen, work.pairs)
            clear(work.found, ZERO, features * wide)
            call(
                p.plan[PRODUCT], work.found, 0, wide, block.features, 0, wide, 1, work.pairs, 0,
                wide, features, wide // lanes, width,
            )  # fmt: skip
            accumulate(p, work)
        if rows.result.size > 0:
            pair(p, count, width, block, work.features, work.seen, work.pairs)
            apply_pairs(p, count, width, block, work.pairs, work.seen, work.pairs, wide * wide)
        return True

    @inline
    def finish_row(p, rows, b, h, first, count, work):  # type: ignore[no-untyped-def]
        """From gradients by features to those by tokens, and out."""
        size, across = p.row.shape[3], padded(p.payload.shape[3])
        start = wide * wide
        if rows.result.size > 0:
            for j in range(count):
                at = start + j * across
                if p.counts[b, first + j] == 0:
                    clear(work.pairs, at, across)
                call(
                    p.plan[SCALE_ROW], work.pairs, at, rows.result,
                    place(rows.result, b, h, first + j), rows.result.shape[3], one, work.probe, 0,
                )  # fmt: skip
        if rows.gradient.size == 0:
            return
        scale = p.numbers[0]
        if p.plan[0] == EXPONENTIAL:
            # The logarithms are linear in the tokens and in −scale·‖x‖²/2.
            clear(work.found, ZERO, (size + 1) * wide)
            call(
                p.plan[PRODUCT], work.found, 0, wide, p.projection, 0, 1, size + 1, work.total, 0,
                wide, size + 1, wide // lanes, p.plan[1],
            )  # fmt: skip
            for d in range(size):
                for j in range(wide):
                    x = work.tokens[d * wide + j]
                    work.found[d * wide + j] -= scale * x * work.found[size * wide + j]
        else:
            for x in range(size * wide):
                work.found[x] = work.total[x] * scale
        length = padded(size)
        call(p.plan[TRANSPOSE], work.found, 0, wide, work.total, 0, length, size, count)
        for j in range(count):
            # What is not a number in a token that meets no other must not be seen: 0 · NaN is NaN.
            if p.counts[b, first + j] == 0:
                clear(work.total, j * length, size)
            call(
                p.plan[SCALE_ROW], work.total, j * length, rows.gradient,
                place(rows.gradient, b, h, first + j), size, one, work.probe, 0,
            )  # fmt: skip

    @inline
    def attempt(p, rows, b, unit, first, count, at, state, block, work):  # type: ignore[no-untyped-def]
        """Rows first … first + count − 1; False where they must go one by one."""
        units = min(p.item.shape[1], p.row.shape[1])
        items, group = p.item.shape[1] // units, p.row.shape[1] // units
        item_head, across = unit * items, padded(p.payload.shape[3])
        some = p.counts[b, first] < p.counts[b, first + count - 1]
        width = advance(p, b, item_head, items, first, count, at, state, block)
        if width < 0:
            return False
        done = at[0]
        find_limits(p, b, first, count, done, work.seen)
        for h in range(unit * group, unit * group + group):
            load_row(p, rows, b, h, first, count, work)
            clear(work.pairs, wide * wide, wide * across)
            if done > 0:
                from_state(p, rows, count, state, work)
            if width > 0:
                for head in range(item_head, item_head + items):
                    if items > 1 or h == unit * group:
                        finite = load_block(p, b, head, done, width, state, block)
                        if some and not finite:
                            return False
                    if not from_block(p, rows, count, width, some, block, work):
                        return False
            finish_row(p, rows, b, h, first, count, work)
        if width > 0:
            for head in range(item_head, item_head + items):
                if items > 1:
                    load_block(p, b, head, done, width, state, block)
                absorb(p, block, width, state)
            at[0] = done + width
        return True

    def backward(
        item, shift, payload, weight, row, counts, projection, numbers, plan, pieces, vector,
        row_weight, row_shift, gradient, result, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        p = Problem(item, shift, payload, weight, row, counts, projection, numbers, plan, pieces)
        rows = Rows(vector, row_weight, row_shift, gradient, result)
        units = min(item.shape[1], row.shape[1])
        features, size, value_size = plan[1], item.shape[3], payload.shape[3]
        segments = (row.shape[2] + plan[2] - 1) // plan[2]
        state = new_state(features, value_size)
        block = new_block(features, size, value_size)
        tall = max(features, padded(size) + ONE) * wide
        work = Work(
            room((size + ONE) * wide), room(features * wide), room(features * wide),
            room(features * wide), room(tall), room(tall), room(value_size * wide),
            room(wide * (wide + padded(value_size))), room(wide), room(wide + wide),
            room(wide), room(ONE),
        )  # fmt: skip
        at = np.zeros(1, np.int64)
        while True:
            task = take_task(counter)
            if task >= row.shape[0] * units * segments:
                break
            b, unit, segment = task // segments // units, task // segments % units, task % segments
            first, stop = segment * plan[2], min((segment + 1) * plan[2], row.shape[2])
            used = begin(p, b, first, at)
            load_state(p, b * units + unit, used, state)
            n = first
            while n < stop:
                count = min(wide, stop - n)
                if not attempt(p, rows, b, unit, n, count, at, state, block, work):
                    for single in range(n, n + count):
                        attempt(p, rows, b, unit, single, ONE, at, state, block, work)
                n += count

    number_type = types.float32 if dtype == "float32" else types.float64

    def array(ndim, readonly=False):  # type: ignore[no-untyped-def]
        return types.Array(number_type, ndim, "A", readonly=readonly)

    signature = types.void(
        *problem_types(dtype), array(4, True), array(3, True), array(3, True), array(4), array(4),
        counter_type(),
    )  # fmt: skip
    return Kernel(backward, signature, f"{dtype} {target.tile(dtype)}")
