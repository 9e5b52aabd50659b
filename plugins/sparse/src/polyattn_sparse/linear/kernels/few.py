"""The kernel for few rows and many items, as in decoding: no state, weights instead.

Adding an item to the state costs features · payload size, and reading it costs a row as much. A row
alone is served by its weights for features + payload size an item. All rows that share a unit's
items lie in the lanes of one block.
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
    EXP_ROWS,
    EXPONENTIAL,
    ONE,
    PRODUCT,
    SCALE_ROW,
    TRANSPOSE,
    ZERO,
    Problem,
    State,
    problem_types,
)
from .steps import scan_operations

Work = namedtuple("Work", "tokens logs features pairs peak lift normaliser seen result probe")


@functools.cache
def few_kernel(dtype: str) -> Kernel:
    """The kernel ``(problem…, out, log_normaliser, counter)``, for at most `wide` rows a unit."""
    ops = scan_operations(dtype)
    wide, lanes, padded, room, clear = ops.wide, ops.lanes, ops.padded, ops.room, ops.clear
    new_block = ops.new_block
    load_block, logarithms, plain_features = ops.load_block, ops.logarithms, ops.plain_features
    place, step = ops.place, ops.step
    number = np.dtype(dtype).type
    zero, one, lowest = number(0), number(1), number(-np.inf)

    @inline
    def load_rows(p, b, unit, group, work):  # type: ignore[no-untyped-def]
        """All rows of the unit, head by head, in the lanes."""
        rows, size = p.row.shape[2], p.row.shape[3]
        clear(work.tokens, ZERO, size * wide)
        for g in range(group):
            call(
                p.plan[TRANSPOSE], p.row, place(p.row, b, unit * group + g, ZERO), step(p.row),
                work.tokens, g * rows, wide, rows, size,
            )  # fmt: skip
        if p.plan[0] == EXPONENTIAL:
            clear(work.peak, ZERO, wide)
            logarithms(p, work.tokens, work.peak, group * rows, work.logs)
            for j in range(wide):
                work.peak[j] = lowest
        else:
            for j in range(wide):
                work.peak[j] = one
            plain_features(p, work.tokens, work.peak, work.features)
            clear(work.peak, ZERO, wide)
        clear(work.normaliser, ZERO, wide)
        clear(work.result, ZERO, work.result.size)

    @inline
    def rise(p, count, block, work):  # type: ignore[no-untyped-def]
        """Features against a block; what was found before is measured from the new peaks."""
        features, across = p.plan[1], padded(p.payload.shape[3])
        for j in range(wide):
            work.lift[j] = work.peak[j]
        for r in range(features):
            top = block.top[r]
            for j in range(wide):
                log = work.logs[r * wide + j] + top
                work.lift[j] = log if log > work.lift[j] else work.lift[j]
        for j in range(wide):
            # Rows that do not see the block, and those that never saw anything, stay as they are.
            top = work.lift[j] if work.seen[j] > zero else work.peak[j]
            work.lift[j] = exp(work.peak[j] - top) if work.peak[j] < top else one
            work.peak[j] = top
            work.normaliser[j] *= work.lift[j]
        for j in range(count):
            if work.lift[j] != one:
                for d in range(j * across, j * across + across):
                    work.result[d] *= work.lift[j]
        call(p.plan[EXP_ROWS], work.logs, 0, block.top, 0, work.peak, 0, work.features, 0, features)

    @inline
    def add_block(p, b, unit, first, width, count, state, block, work):  # type: ignore[no-untyped-def]
        """What rows get from some items, of which a row sees all or none."""
        across = padded(p.payload.shape[3])
        load_block(p, b, unit, first, width, state, block)
        if p.plan[0] == EXPONENTIAL:
            rise(p, count, block, work)
        active = (count + lanes - 1) // lanes
        clear(work.pairs, ZERO, width * wide)
        call(
            p.plan[PRODUCT], work.pairs, 0, wide, block.features, 0, 1, wide, work.features, 0,
            wide, width, active, p.plan[1],
        )  # fmt: skip
        for i in range(width):
            for j in range(wide):
                x = work.pairs[i * wide + j]
                work.normaliser[j] += x if work.seen[j] > zero else zero
        # Not by a product with zeros, in which what is not finite would reach all rows.
        j = ZERO
        while j < count:
            start = j
            while j < count and work.seen[j] > zero:
                j += 1
            if j > start:
                call(
                    p.plan[PRODUCT], work.result, start * across, across, work.pairs, start, 1,
                    wide, block.payload, 0, across, j - start, across // lanes, width,
                )  # fmt: skip
            else:
                j += 1

    @inline
    def find_seen(p, b, group, first, work):  # type: ignore[no-untyped-def]
        """Which rows see item `first`."""
        rows = p.row.shape[2]
        clear(work.seen, ZERO, wide)
        for g in range(group):
            for n in range(rows):
                work.seen[g * rows + n] = one if p.counts[b, n] > first else zero

    def few(
        item, shift, payload, weight, row, counts, projection, numbers, plan, pieces, out,
        log_normaliser, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        p = Problem(item, shift, payload, weight, row, counts, projection, numbers, plan, pieces)
        units, features, size = item.shape[1], plan[1], item.shape[3]
        rows, across = row.shape[2], padded(payload.shape[3])
        group = row.shape[1] // units
        count = group * rows
        # Only its maxima are looked at: of nothing, so that each block is measured from its own.
        state = State(room(ONE), room(ONE), room(features))
        for r in range(features):
            state.most[r] = lowest
        block = new_block(features, size, payload.shape[3])
        work = Work(
            room((size + ONE) * wide), room(features * wide), room(features * wide),
            room(wide * wide), room(wide), room(wide), room(wide), room(wide), room(wide * across),
            room(ONE),
        )  # fmt: skip
        while True:
            task = take_task(counter)
            if task >= row.shape[0] * units:
                break
            b, unit = task // units, task % units
            load_rows(p, b, unit, group, work)
            low, high = counts[b, 0], counts[b, rows - 1]
            first = ZERO
            while first < high:
                # What only some rows see goes item by item.
                width = min(wide, low - first) if first < low else ONE
                find_seen(p, b, group, first, work)
                add_block(p, b, unit, first, width, count, state, block, work)
                first += width
            for j in range(count):
                h, n = unit * group + j // rows, j % rows
                total, factor = work.normaliser[j] + numbers[2], zero
                log_normaliser[b, h, n] = lowest
                if counts[b, n] == 0 or total == zero:
                    clear(work.result, j * across, across)
                else:
                    factor = one / total
                    log_normaliser[b, h, n] = work.peak[j] + np.log(total)
                call(
                    plan[SCALE_ROW], work.result, j * across, out, place(out, b, h, n),
                    out.shape[3], factor, work.probe, 0,
                )  # fmt: skip

    number_type = types.float32 if dtype == "float32" else types.float64
    signature = types.void(
        *problem_types(dtype),
        types.Array(number_type, 4, "A"),
        types.Array(number_type, 3, "C"),
        counter_type(),
    )
    return Kernel(few, signature, f"{dtype} {target.tile(dtype)}")
