"""The kernel for few queries and many keys: every key is read from memory once.

Lanes run along the head, so that one query does not leave the others of a tile idle. Keys and
values may be packed (:mod:`formats`) and lie in several places: a sequence is a list of runs, each
of so many keys that follow each other both in memory and in position. Work is shared over
sequences, key heads and chunks of the keys; who finishes the last chunk merges them.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from . import target
from .formats import BLOCK, FORMATS
from .jit import Kernel, inline
from .key_rules import call_rule
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
from .scores import counter_type, take_task
from .vector import I64, pointer

DEEP = 256  # keys whose scores are held at a time
UNIT, ROW, POSITION, LENGTH, BEFORE = range(5)
"""Columns of a run: where it lies, position of its first key, number of keys, that of earlier runs
of the sequence."""
(
    CHUNKS,
    DEPTH,
    CLASSIFY,
    FILL,
    BIASED,
    KEY_WIDTH,
    VALUE_WIDTH,
    KEY_GROUP,
    VALUE_GROUP,
    RULES,
) = range(10)
"""Fields of a plan: chunks of the keys; depth of the mask program, addresses of its interpreter; is
there a bias; numbers in a stored key and value, in a group of each; rules."""
PLAN_SIZE = 10


@intrinsic  # type: ignore[untyped-decorator]
def _finished(typing, done, unit):  # type: ignore[no-untyped-def]
    """Counts a finished chunk of a unit; what others wrote before theirs is visible afterwards."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        place = builder.gep(pointer(context, builder, signature.args[0], args[0]), [args[1]])
        return builder.atomic_rmw("add", place, I64(1), "acq_rel")

    return types.int64(done, types.intp), emit


@functools.cache
def decode_kernel(name: str) -> Kernel:
    """The kernel of a format, for a soft-max.

    Arguments: query (batch, heads, queries, size); key and value (units, key heads, rows, elements)
    and their scales (units, key heads, groups, rows); scale, plan; runs, where those of each
    sequence start, and the keys of its mask's shape; rules, the offsets of their parameters, and
    parameters (1 or batch, heads, all); bias, its batches, and the shift of key positions in it;
    the mask's steps (1 or batch, steps, …) and tables; sink; parts (chunks · batch, heads, queries,
    value size) with their log-sum-exp, and how many are done; output and log-sum-exp; counter.
    """
    form = FORMATS[name]
    number = np.dtype(form.dtype).type
    lowest, zero, one = number(-np.inf), number(0), number(1)
    operations = row_operations(form)
    key_scores, value_sum = operations.key_scores, operations.value_sum
    lanes = target.tile(form.dtype).lanes
    room = DEEP + 2 * lanes

    @inline
    def weigh(scratch, scores, count, row, most, sums):  # type: ignore[no-untyped-def]
        """Scores become weights relative to the row's new maximum; returns the rescaling factor."""
        top = most[row]
        for x in range(count):
            top = max(top, scratch[scores + x])
        base = zero if top == lowest else top
        rescale = exp(most[row] - base)
        part = zero
        for x in range(count):
            weight = exp(scratch[scores + x] - base)
            scratch[scores + x] = weight
            part += weight
        sums[row] = sums[row] * rescale + part
        most[row] = top
        return rescale

    @inline
    def merge(parts, part_logs, sink, out, logs, b, h, i, chunks):  # type: ignore[no-untyped-def]
        """The output of a row from that over each chunk."""
        batches, size = out.shape[0], out.shape[3]
        most = lowest
        for c in range(chunks):
            most = max(most, part_logs[c * batches + b, h, i])
        anything = most != lowest
        if sink.shape[0] > 0:
            most = max(most, sink[h])
        base = most if most > lowest else zero
        total = zero
        for d in range(size):
            out[b, h, i, d] = zero
        for c in range(chunks):
            log = part_logs[c * batches + b, h, i]
            weight = exp(log - base)
            # Asked this way round, NaN is not taken for nothing.
            if weight == zero:
                continue
            anything = True
            total += weight
            for d in range(size):
                out[b, h, i, d] += weight * parts[c * batches + b, h, i, d]
        if not anything:
            logs[b, h, i] = lowest
            return
        if sink.shape[0] > 0:
            total += exp(sink[h] - base)
        logs[b, h, i] = base + np.log(total)
        factor = one / total
        for d in range(size):
            out[b, h, i, d] *= factor

    def decode(
        query, key, value, key_scales, value_scales, scale, plan, runs, starts, totals, rules,
        offsets, parameters, bias, bias_batch, bias_shift, steps, integers, octets, sink, parts,
        part_logs, done, out, logs, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        batches, heads, queries, size = query.shape
        key_heads, value_size = key.shape[1], out.shape[3]
        group = heads // key_heads
        count = group * queries
        chunks, width, value_width = plan[CHUNKS], plan[KEY_WIDTH], plan[VALUE_WIDTH]
        units = batches * key_heads
        step, value_step = key.strides[2] // key.itemsize, value.strides[2] // value.itemsize
        by_group, value_by_group = key_scales.shape[3], value_scales.shape[3]

        # Whole blocks, as what is read of packed rows.
        wide = (width + BLOCK - 1) // BLOCK * BLOCK
        output = count * wide
        value_wide = (value_width + BLOCK - 1) // BLOCK * BLOCK
        scores = output + count * value_wide
        spare = scores + room
        scratch = np.zeros(spare + room, number)
        most, sums = np.empty(count, number), np.empty(count, number)
        seen = np.empty(max(plan[DEPTH], 1) * DEEP, np.uint8)
        visible = np.empty(DEEP, np.uint8)
        stack = np.empty(2 * steps.shape[1] + 2, np.int64)
        place = np.empty(PLACE_SIZE, np.int64)
        meta = np.empty(5, np.int64)

        while True:
            task = take_task(counter)
            if task >= units * chunks:
                break
            unit, chunk = task // chunks, task % chunks
            b, key_head = unit // key_heads, unit % key_heads
            program = steps[b if steps.shape[0] > 1 else 0]
            per_head = parameters[b if parameters.shape[0] > 1 else 0]
            first_run, last_run = starts[b], starts[b + 1]
            keys = 0
            if last_run > first_run:
                keys = runs[last_run - 1, BEFORE] + runs[last_run - 1, LENGTH]
            span = (keys + chunks - 1) // chunks
            stop = min((chunk + 1) * span, keys)
            for r in range(count):
                h, i = key_head * group + r // queries, r % queries
                most[r], sums[r] = lowest, zero
                for d in range(size):
                    scratch[r * wide + d] = query[b, h, i, d] * scale
                for d in range(value_wide):
                    scratch[output + r * value_wide + d] = zero
            run = first_run
            for k0 in range(chunk * span, stop, DEEP):
                nk = min(DEEP, stop - k0)
                while runs[run, BEFORE] + runs[run, LENGTH] <= k0:
                    run += 1
                for r in range(count):
                    h, i = key_head * group + r // queries, r % queries
                    at, now = 0, run
                    hidden = False
                    while at < nk:
                        inside = k0 + at - runs[now, BEFORE]
                        here = min(nk - at, runs[now, LENGTH] - inside)
                        position = runs[now, POSITION] + inside
                        found = FULL
                        if plan[DEPTH] > 0:
                            place[BATCH], place[HEAD], place[FIRST], place[COUNT] = b, h, i, 1
                            place[QUERY_COUNT], place[KEY_COUNT] = queries, totals[b]
                            place[KEY], place[WIDTH], place[WIDE] = position, here, 1
                            found = interpret(
                                plan[CLASSIFY], program, integers, octets, place, stack, seen
                            )
                        if found != FULL and not hidden:
                            hidden = True
                            for x in range(at):
                                visible[x] = 1
                        if found == EMPTY:
                            for x in range(here):
                                scratch[scores + at + x] = lowest
                                visible[at + x] = 0
                        else:
                            u, row = runs[now, UNIT], runs[now, ROW] + inside
                            base = u * key.strides[0] + key_head * key.strides[1]
                            plane = (u * key_heads + key_head) * key_scales.shape[2]
                            key_scores(
                                key, base // key.itemsize + row * step, step, here, key_scales,
                                plane * by_group + row, by_group, scratch, r * wide, scores + at,
                                width, plan[KEY_GROUP],
                            )  # fmt: skip
                            if plan[RULES] > 0:
                                meta[0], meta[1], meta[2], meta[3], meta[4] = (
                                    b,
                                    h,
                                    i,
                                    position,
                                    here,
                                )
                                for n in range(plan[RULES]):
                                    call_rule(
                                        rules[n], scratch, scores + at, meta, per_head, h,
                                        offsets[n],
                                    )  # fmt: skip
                            if plan[BIASED] != 0:
                                shifted = position + bias_shift[b]
                                for x in range(here):
                                    scratch[scores + at + x] += bias[
                                        bias_batch[b], h, i, shifted + x
                                    ]
                            if found == PARTIAL:
                                interpret(plan[FILL], program, integers, octets, place, stack, seen)
                                for x in range(here):
                                    visible[at + x] = seen[x]
                                    if seen[x] == 0:
                                        scratch[scores + at + x] = lowest
                            elif hidden:
                                for x in range(here):
                                    visible[at + x] = 1
                        at += here
                        now += 1
                    rescale = weigh(scratch, scores, nk, r, most, sums)
                    to = output + r * value_wide
                    at, now = 0, run
                    while at < nk:
                        inside = k0 + at - runs[now, BEFORE]
                        ends = at + min(nk - at, runs[now, LENGTH] - inside)
                        # Runs of visible keys, so that what is not finite behind the mask stays
                        # there.
                        while at < ends:
                            end = ends
                            if hidden:
                                while at < ends and visible[at] == 0:
                                    at += 1
                                end = at
                                while end < ends and visible[end] != 0:
                                    end += 1
                                if at == end:
                                    break
                            u = runs[now, UNIT]
                            row = runs[now, ROW] + k0 + at - runs[now, BEFORE]
                            base = u * value.strides[0] + key_head * value.strides[1]
                            plane = (u * key_heads + key_head) * value_scales.shape[2]
                            value_sum(
                                value, base // value.itemsize + row * value_step, value_step,
                                end - at, value_scales, plane * value_by_group + row,
                                value_by_group, scratch, scores + at, spare, to, rescale,
                                value_width, plan[VALUE_GROUP],
                            )  # fmt: skip
                            rescale = one
                            at = end
                        at = ends
                        now += 1
                    if rescale != one:
                        for d in range(value_width):
                            scratch[to + d] *= rescale
            to = chunk * batches + b
            for r in range(count):
                h, i = key_head * group + r // queries, r % queries
                factor = zero
                part_logs[to, h, i] = lowest
                if sums[r] != sums[r]:
                    # NaN, which no maximum sees: a row of nothing else looks empty.
                    factor = sums[r]
                    part_logs[to, h, i] = sums[r]
                elif most[r] != lowest:
                    factor = one / sums[r]
                    part_logs[to, h, i] = most[r] + np.log(sums[r])
                for d in range(value_size):
                    total = scratch[output + r * value_wide + d]
                    parts[to, h, i, d] = zero if factor == zero else total * factor
            if _finished(done, unit) == chunks - 1:
                for r in range(count):
                    h, i = key_head * group + r // queries, r % queries
                    merge(parts, part_logs, sink, out, logs, b, h, i, chunks)

    kind, element = form.number_type, form.element_type

    def array(of, ndim, layout="C", readonly=True):  # type: ignore[no-untyped-def]
        return types.Array(of, ndim, layout, readonly=readonly)

    stored, integers = array(element, 4, "A"), types.int64
    scales, written = array(types.float32, 4), array(kind, 4, "C", False)
    signature = types.void(
        array(kind, 4, "A"), stored, stored, scales, scales, kind, array(integers, 1),
        array(integers, 2), array(integers, 1), array(integers, 1), array(integers, 1),
        array(integers, 1), array(kind, 3), array(kind, 4, "A"), array(integers, 1),
        array(integers, 1), array(integers, 3), array(integers, 1), array(types.uint8, 1),
        array(kind, 1), written, array(kind, 3, "C", False), array(integers, 1, "C", False),
        array(kind, 4, "A", False), array(kind, 3, "C", False), counter_type(),
    )  # fmt: skip
    return Kernel(decode, signature, f"{name} {target.tile(form.dtype)}")
