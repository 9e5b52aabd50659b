"""Kernels: the output and the logarithm of its normaliser, and states of pieces of the items."""

from __future__ import annotations

import functools
from collections import namedtuple

import numpy as np
from numba.core import types

from polyattn_core.simd import target
from polyattn_core.simd.jit import Kernel, inline
from polyattn_core.simd.scores import counter_type, take_task

from .blocks import call
from .state import (
    EXP_ROWS,
    EXPONENTIAL,
    ONE,
    PRODUCT,
    SCALE_ROW,
    ZERO,
    Problem,
    problem_types,
)
from .steps import scan_operations

Work = namedtuple("Work", "tokens logs features pairs peak normaliser seen result probe")


@functools.cache
def summary_kernel(dtype: str) -> Kernel:
    """The kernel ``(problem…, sums, counter)`` that writes the state of each piece alone to `sums`.

    `sums` has the shape of the problem's `pieces`, which are not read.
    """
    ops = scan_operations(dtype)
    new_state, new_block, load_state = ops.new_state, ops.new_block, ops.load_state
    absorb_range = ops.absorb_range

    def summarise(
        item, shift, payload, weight, row, counts, projection, numbers, plan, pieces, sums, counter
    ):  # type: ignore[no-untyped-def]
        p = Problem(item, shift, payload, weight, row, counts, projection, numbers, plan, pieces)
        units = min(item.shape[1], row.shape[1])
        heads = item.shape[1] // units
        features, count = plan[1], plan[4]
        state = new_state(features, payload.shape[3])
        block = new_block(features, item.shape[3], payload.shape[3])
        length = state.total.size
        while True:
            task = take_task(counter)
            if task >= item.shape[0] * units * count:
                break
            unit, piece = task // count, task % count
            b, h = unit // units, unit % units
            seen = counts[b, counts.shape[1] - 1]
            start = min(piece * plan[3], seen)
            load_state(p, unit, ZERO, state)
            absorb_range(p, b, h * heads, heads, start, min(start + plan[3], seen), state, block)
            for x in range(length):
                sums[unit, piece, x] = state.total[x]
            for r in range(features):
                sums[unit, piece, length + r] = state.mass[r]
                sums[unit, piece, length + features + r] = state.most[r]

    number = types.float32 if dtype == "float32" else types.float64
    signature = types.void(*problem_types(dtype), types.Array(number, 3, "C"), counter_type())
    return Kernel(summarise, signature, f"{dtype} {target.tile(dtype)}")


@functools.cache
def forward_kernel(dtype: str) -> Kernel:
    """The kernel ``(problem…, out, log_normaliser, counter)`` of a dtype.

    `out` (batch, heads, rows, payload size) receives the weighted means of the payloads, and
    `log_normaliser` (batch, heads, rows) the logarithms of the sums of the weights.
    """
    ops = scan_operations(dtype)
    wide, lanes, padded, room, clear = ops.wide, ops.lanes, ops.padded, ops.room, ops.clear
    place = ops.place
    load_tokens, logarithms, plain_features = ops.load_tokens, ops.logarithms, ops.plain_features
    load_state, load_block, absorb, advance = (
        ops.load_state,
        ops.load_block,
        ops.absorb,
        ops.advance,
    )
    begin, find_limits, pair, apply_pairs = ops.begin, ops.find_limits, ops.pair, ops.apply_pairs
    new_state, new_block = ops.new_state, ops.new_block
    number = np.dtype(dtype).type
    zero, one, lowest = number(0), number(1), number(-np.inf)
    # Below, products of features may have been lost to underflow.
    least = number(np.sqrt(np.finfo(dtype).tiny))

    @inline
    def load_row(p, b, h, first, count, done, state, tops, work):  # type: ignore[no-untyped-def]
        """Features of rows against the state; `peak` is the log of what each is measured from."""
        features, peak = p.plan[1], work.peak
        load_tokens(p, p.row, b, h, first, count, work.tokens)
        if p.plan[0] != EXPONENTIAL:
            for j in range(wide):
                peak[j] = one
            plain_features(p, work.tokens, peak, work.features)
            clear(peak, ZERO, wide)
            return
        clear(peak, ZERO, wide)
        logarithms(p, work.tokens, peak, count, work.logs)
        for j in range(wide):
            peak[j] = lowest
        for r in range(features):
            top = tops[r]
            for j in range(wide):
                log = work.logs[r * wide + j] + top
                peak[j] = log if log > peak[j] else peak[j]
        for j in range(wide):
            peak[j] = zero if peak[j] == lowest else peak[j]
        if done > 0:
            call(p.plan[EXP_ROWS], work.logs, 0, state.most, 0, peak, 0, work.features, 0, features)

    @inline
    def from_state(p, count, state, work):  # type: ignore[no-untyped-def]
        """What rows get from the items in the state."""
        features, across = p.plan[1], padded(p.payload.shape[3])
        for r in range(features):
            mass = state.mass[r]
            for j in range(wide):
                work.normaliser[j] += mass * work.features[r * wide + j]
        call(
            p.plan[PRODUCT], work.result, 0, across, work.features, 0, 1, wide, state.total, 0,
            across, count, across // lanes, features,
        )  # fmt: skip

    @inline
    def from_block(p, count, done, width, state, block, work):  # type: ignore[no-untyped-def]
        """What rows get from the items of a block."""
        if p.plan[0] == EXPONENTIAL:
            for r in range(p.plan[1]):
                if done == 0 or block.top[r] > state.most[r]:
                    call(
                        p.plan[EXP_ROWS], work.logs, r * wide, block.top, r, work.peak, 0,
                        work.features, r * wide, 1,
                    )  # fmt: skip
        pair(p, count, width, block, work.features, work.seen, work.pairs)
        for i in range(width):
            for j in range(wide):
                work.normaliser[j] += work.pairs[i * wide + j]
        apply_pairs(p, count, width, block, work.pairs, work.seen, work.result, ZERO)

    @inline
    def finish_row(p, b, h, first, count, work, out, log_normaliser):  # type: ignore[no-untyped-def]
        """Divide, and write; False where the rows must go one by one."""
        across = padded(p.payload.shape[3])
        for j in range(count):
            n, total, factor = first + j, work.normaliser[j], zero
            if p.counts[b, n] > 0 and count > 1 and p.plan[0] == EXPONENTIAL and total < least:
                return False
            log_normaliser[b, h, n] = lowest
            total += p.numbers[2]
            if p.counts[b, n] == 0 or total == zero:
                clear(work.result, j * across, across)
            else:
                factor = one / total
                log_normaliser[b, h, n] = work.peak[j] + np.log(total)
            call(
                p.plan[SCALE_ROW], work.result, j * across, out, place(out, b, h, n), out.shape[3],
                factor, work.probe, 0,
            )  # fmt: skip
        return True

    @inline
    def attempt(p, b, unit, first, count, at, state, block, work, out, log_normaliser, last):  # type: ignore[no-untyped-def]
        """Rows first … first + count − 1 of all heads; False where they must go one by one."""
        group = p.row.shape[1] // p.item.shape[1]
        width = advance(p, b, unit, ONE, first, count, at, state, block)
        if width < 0:
            return False
        tops = state.most
        if width > 0:
            finite = load_block(p, b, unit, at[0], width, state, block)
            if not finite and p.counts[b, first] < p.counts[b, first + count - 1]:
                return False
            tops = block.top
        find_limits(p, b, first, count, at[0], work.seen)
        for h in range(unit * group, unit * group + group):
            load_row(p, b, h, first, count, at[0], state, tops, work)
            clear(work.result, ZERO, work.result.size)
            clear(work.normaliser, ZERO, wide)
            if at[0] > 0:
                from_state(p, count, state, work)
            if width > 0:
                from_block(p, count, at[0], width, state, block, work)
            if not finish_row(p, b, h, first, count, work, out, log_normaliser):
                return False
        if width > 0 and not last:
            absorb(p, block, width, state)
            at[0] += width
        return True

    def forward(
        item, shift, payload, weight, row, counts, projection, numbers, plan, pieces, out,
        log_normaliser, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        p = Problem(item, shift, payload, weight, row, counts, projection, numbers, plan, pieces)
        units, features, size = item.shape[1], plan[1], item.shape[3]
        segments = (row.shape[2] + plan[2] - 1) // plan[2]
        state = new_state(features, payload.shape[3])
        block = new_block(features, size, payload.shape[3])
        work = Work(
            room((size + ONE) * wide), room(features * wide), room(features * wide),
            room(wide * wide), room(wide), room(wide), room(wide),
            room(wide * padded(payload.shape[3])), room(ONE),
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
                last = n + count == stop
                if not attempt(
                    p, b, unit, n, count, at, state, block, work, out, log_normaliser, last
                ):
                    for single in range(n, n + count):
                        attempt(
                            p, b, unit, single, ONE, at, state, block, work, out, log_normaliser,
                            last,
                        )  # fmt: skip
                n += count

    number_type = types.float32 if dtype == "float32" else types.float64
    signature = types.void(
        *problem_types(dtype),
        types.Array(number_type, 4, "A"),
        types.Array(number_type, 3, "C"),
        counter_type(),
    )
    return Kernel(forward, signature, f"{dtype} {target.tile(dtype)}")
