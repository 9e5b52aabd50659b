"""Gradients by recomputation: nothing of size queries × keys is kept from the forward pass.

With weights P, output gradient dO and dP = dO·Vᵀ, every normaliser here has

    dS = G ∘ (dP − δ),   δᵢ = Σⱼ Gᵢⱼ dPᵢⱼ / Σⱼ Gᵢⱼ

where G is P for the soft-max (so that δ = rowsum(dO ∘ O)), 1 on the support for sparsemax and √P
for entmax-1.5. Element-wise weights have δ = 0 and leave the derivative to their rule.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core import types

from . import target
from .jit import Kernel, embed, inline
from .masking import EMPTY, PARTIAL, PLACE_SIZE
from .mathematics import exp
from .rule_encoding import call_backward
from .scores import (
    COMPONENT_COUNT,
    COMPONENT_WIDTH,
    COMPONENTS,
    ELEMENTWISE,
    ENTMAX15,
    SCALES,
    SOFTMAX,
    SOFTPICK,
    SPARSEMAX,
    Problem,
    aligned_start,
    counter_type,
    kept,
    problem_types,
    score_operations,
    take_task,
)
from .tiles import tile_operations
from .transpose import transpose_operations
from .vector import hold, raw
from .weights import weight_operations


@functools.cache
def backward_kernel(dtype: str) -> Kernel:
    """The kernel of gradients of a dtype.

    Its arguments after the problem: `first` and `second`, which the forward kernel left;
    `d_out` (batch, heads, queries, value size); `delta` (batch, heads, queries), the δ of the
    soft-max; then, all to be passed filled with zeros, `d_query` (chunks, batch, heads, queries,
    size), `d_key` and `d_value` (batch, key heads, keys, size, each component of the keys padded
    to whole vectors), `d_bias`
    (units or 1, …) with the strides of the bias, `d_rows` (chunks, statistics, batch, heads,
    queries), `d_columns` like the column statistics, `d_parameters` (units, heads, parameters);
    the first and the last + 1 of the units that are to be done; and the counter. A unit of work is
    one key head with one chunk of the keys; units share nothing that they write, unless `d_bias`
    has one slot for several, when the caller has to see that they are not done at once.
    """
    tile = target.tile(dtype)
    wide, lanes = tile.queries, tile.lanes
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)
    ops, scores_of, weights_of = (
        tile_operations(dtype),
        score_operations(dtype),
        weight_operations(dtype),
    )
    pack_query, pack_rows, products = (
        scores_of.pack_query,
        scores_of.pack_rows,
        scores_of.products,
    )
    turn = transpose_operations(dtype)
    rows_to_lanes, add_to_table = turn.rows_to_lanes, turn.add_to_table
    score_tile, finite, visible_keys = (
        scores_of.score_tile,
        scores_of.finite,
        scores_of.visible_keys,
    )
    banded, queries_seen = scores_of.banded, scores_of.queries_seen
    add_values = scores_of.add_values
    pack_state, recompute = weights_of.pack_state, weights_of.recompute
    value_product, lane_product = ops.value_product, ops.lane_product
    gradient_step = ops.gradient_step

    @inline
    def lay_rows(array, b, h, first, count, begin, size, factor, clean, scratch, to, padded):  # type: ignore[no-untyped-def]
        """Copy part of rows to scratch[to + j · padded]; `clean` drops non-finite numbers."""
        for j in range(count):
            for d in range(size):
                x = array[b, h, first + j, begin + d]
                if clean and not np.isfinite(x):
                    x = zero
                scratch[to + j * padded + d] = x * factor
        for j in range(count, wide):
            for d in range(size):
                scratch[to + j * padded + d] = zero

    @embed
    def to_query(  # type: ignore[no-untyped-def]
        p, narrow, clean, b, h, q0, nq, k0, nk, begin, size, scratch, gradient, output, ones, safe
    ):
        """output[d, lane] += key[:, begin + d] · gradient[:, lane]."""
        key = p.key
        step = key.strides[2] // key.itemsize
        at = (b * key.strides[0] + h * key.strides[1]) // key.itemsize + k0 * step + begin
        if not clean:
            active = (nq + lanes - 1) // lanes
            for i in range(nk):
                for d in range(size):
                    x = key[b, h, k0 + i, begin + d]
                    scratch[safe + i * size + d] = x if np.isfinite(x) else zero
            value_product(scratch, safe, size, nk, scratch, gradient, output, ones, size, active)
            return
        add_values(p, narrow, key, at, step, q0, nq, k0, nk, scratch, gradient, output, ones, size)

    @embed
    def to_keys(p, narrow, q0, nq, k0, nk, scratch, weights, rows, out, at, step, width):  # type: ignore[no-untyped-def]
        """out[key, :] += Σ weights[key, lane] · rows[lane, :]; rows of both are `step` long.

        With `narrow`, keys go in groups, each with the queries inside the band.
        """
        used = (nq + lanes - 1) // lanes * lanes
        for i in range(0, nk if narrow else 1, lanes):
            count, low, high = nk, 0, used
            if narrow:
                count = min(lanes, nk - i)
                low, high = queries_seen(p, q0, used, k0 + i, count)
            lane_product(
                scratch, weights + i * wide + low, rows + low * step, high - low, out,
                at + i * step, count, step, width,
            )  # fmt: skip

    @inline
    def slope(normaliser, weight):  # type: ignore[no-untyped-def]
        """G of sparsemax and entmax-1.5 from the weight."""
        if normaliser == SPARSEMAX:
            return one if weight > zero else zero
        return np.sqrt(weight)

    @embed
    def softpick_gradient(  # type: ignore[no-untyped-def]
        scratch, scores, incoming, state, deltas, inverse, nk, found, seen
    ):
        """dP becomes dS = eˢ/Σ (dP where s > 0, less δ times the sign of s)."""
        for j in range(wide):
            scratch[inverse + j] = one / scratch[state + j]
        for i in range(nk):
            at = i * wide
            for j in range(wide):
                score = scratch[scores + at + j]
                grown = exp(score - scratch[state + wide + j]) * scratch[inverse + j]
                change = scratch[incoming + at + j] - scratch[deltas + j]
                change = change if score > zero else scratch[deltas + j]
                change = zero if score == zero else grown * change
                visible = found != PARTIAL or seen[at + j] != 0
                scratch[incoming + at + j] = change if visible else zero

    @embed
    def drop_both(p, b, h, q0, k0, nk, scratch, weights, gradient, dropped):  # type: ignore[no-untyped-def]
        """Dropout of the forward pass again: on a copy of the weights, and on dP."""
        keep = p.numbers[1]
        for i in range(nk):
            at = i * wide
            for j in range(wide):
                factor = zero
                if kept(p.plan[5], b, h, q0 + j, p.plan[1] + k0 + i, keep):
                    factor = one / keep
                scratch[dropped + at + j] = scratch[weights + at + j] * factor
                scratch[gradient + at + j] *= factor

    @inline
    def through_rules(  # type: ignore[no-untyped-def]
        p, low, high, b, h, key_head, unit, q0, k0, nk, scratch, stages, gradient, rowed, d_rowed,
        d_columns, d_parameters, meta,
    ):  # fmt: skip
        """Take the gradient from after rule `high` − 1 to before rule `low`."""
        meta[0], meta[1], meta[2], meta[3], meta[4] = b, h, q0, k0 + p.plan[1], nk
        batches, key_heads, keys = p.key.shape[0], p.key.shape[1], p.key.shape[2]
        width = p.parameters.shape[1]
        for r in range(high - 1, low - 1, -1):
            row = max(p.rules[r, 2], 0) * wide
            column = 0
            if p.rules[r, 3] >= 0:
                column = ((p.rules[r, 3] * batches + b) * key_heads + key_head) * keys + k0
            call_backward(
                p.rules[r, 1], scratch, stages + r * p.plan[11] * wide, gradient, meta, rowed + row,
                p.columns, column, p.parameters, h * width + p.rules[r, 4], d_rowed + row,
                d_columns, column, d_parameters,
                (unit * p.parameters.shape[0] + h) * width + p.rules[r, 4],
            )  # fmt: skip

    def backward(
        query, key, value, numbers, plan, rules, parameters, rows, columns, bias, bias_batch,
        steps, integers, octets, sink, first, second, d_out, delta, d_query, d_key, d_value,
        d_bias, d_rows, d_columns, d_parameters, begin_unit, end_unit, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        p = Problem(
            query, key, value, numbers, plan, rules, parameters, rows, columns, bias, bias_batch,
            steps, integers, octets, sink,
        )  # fmt: skip
        heads, queries, size = query.shape[1:]
        deep = plan[11]
        key_heads, keys, value_size = key.shape[1], key.shape[2], value.shape[3]
        group = heads // key_heads
        chunks = d_query.shape[0]
        normaliser = plan[0]
        chain = rules.shape[0]
        size_padded, value_padded = d_key.shape[3], d_value.shape[3]
        flat_key, flat_value = d_key.reshape(d_key.size), d_value.reshape(d_value.size)
        flat_columns = d_columns.reshape(d_columns.size)
        flat_parameters = d_parameters.reshape(d_parameters.size)
        quick = normaliser == SOFTMAX and plan[5] < 0
        implicit = normaliser == SPARSEMAX or normaliser == ENTMAX15

        row_space = max(rows.shape[0], 1) * wide
        stage_size = deep * wide
        components = plan[COMPONENT_COUNT]
        last = COMPONENTS + (components - 1) * COMPONENT_WIDTH
        shared = plan[last + 3]  # rules from here on are of the sum of the components
        lines = size + value_size + size + (5 + chain) * deep + 8
        length = lines * wide + 2 * row_space
        length += wide * (size_padded + value_padded) + deep * max(size, value_size)
        memory = np.empty(length + 64, number)
        scratch, packed = raw(memory), aligned_start(memory)
        packed_out = packed + size * wide
        to_q = packed_out + value_size * wide
        scores = to_q + size * wide
        incoming = scores + stage_size
        dropped = incoming + stage_size
        final = dropped + stage_size
        own_scores = final + stage_size
        stages = own_scores + stage_size
        state = stages + chain * stage_size
        dummy, ones, deltas = state + 3 * wide, state + 4 * wide, state + 5 * wide
        sums = state + 6 * wide
        rowed = state + 8 * wide
        d_rowed = rowed + row_space
        laid = d_rowed + row_space
        laid_out = laid + wide * size_padded
        safe = laid_out + wide * value_padded
        octet_memory = np.empty(max(plan[4], 1) * deep * wide, np.uint8)
        seen = raw(octet_memory)
        integer_memory = np.empty(2 * steps.shape[0] + PLACE_SIZE + 8, np.int64)
        place = raw(integer_memory[2 * steps.shape[0] :])
        stack, meta = raw(integer_memory), raw(integer_memory[2 * steps.shape[0] + PLACE_SIZE :])
        for j in range(wide):
            scratch[ones + j] = one
        for x in range(wide * (size_padded + value_padded)):
            scratch[laid + x] = zero

        span = (keys + chunks - 1) // chunks
        span = (span + deep - 1) // deep * deep
        while True:
            task = begin_unit + take_task(counter)
            if task >= end_unit:
                break
            b = task // (key_heads * chunks)
            key_head = task // chunks % key_heads
            chunk = task % chunks
            for x in range(group * ((queries + wide - 1) // wide)):
                h = key_head * group + x % group
                q0 = x // group * wide
                nq = min(wide, queries - q0)
                active = (nq + lanes - 1) // lanes
                start, stop = visible_keys(p, b, h, q0, nq, place, stack, seen)
                low, high = max(start, chunk * span), min(stop, (chunk + 1) * span)
                if low >= high:
                    continue
                pack_query(p, b, h, q0, nq, scratch, packed)
                rows_to_lanes(d_out, b, h, q0, nq, 0, value_size, one, scratch, packed_out)
                for c in range(components):
                    at = COMPONENTS + c * COMPONENT_WIDTH
                    lay_rows(
                        query, b, h, q0, nq, plan[at], plan[at + 1], numbers[SCALES + c], True,
                        scratch, laid + plan[at + 4], size_padded,
                    )  # fmt: skip
                lay_rows(
                    d_out, b, h, q0, nq, 0, value_size, one, False, scratch, laid_out, value_padded
                )
                pack_rows(rows, b, h, q0, nq, scratch, rowed)
                pack_state(normaliser, first, second, b, h, q0, nq, scratch, state)
                for y in range(row_space):
                    scratch[d_rowed + y] = zero
                for y in range(size * wide):
                    scratch[to_q + y] = zero
                for j in range(wide):
                    scratch[deltas + j] = delta[b, h, q0 + j] if j < nq else zero
                # Sparsemax and entmax need δ from all keys first.
                for turn in range(2 if implicit else 1):
                    gathering = implicit and turn == 0
                    if gathering:
                        for j in range(wide):
                            scratch[deltas + j] = zero
                            scratch[sums + j] = zero
                    begin, end = (start, stop) if gathering else (low, high)
                    for k0 in range(begin, end, deep):
                        nk = min(deep, end - k0)
                        found = score_tile(
                            p, b, h, q0, nq, k0, nk, scratch, packed, scores, own_scores, dummy,
                            rowed, stages, place, stack, seen, meta, False,
                        )  # fmt: skip
                        if found == EMPTY:
                            continue
                        if normaliser == SOFTPICK:
                            for y in range(nk * wide):
                                scratch[final + y] = scratch[scores + y]
                        if not quick:
                            recompute(
                                p, found, b, h, q0, nq, k0, nk, scratch, scores, state, rowed,
                                stages, seen, meta,
                            )  # fmt: skip
                        if normaliser == ELEMENTWISE and nq < wide:
                            # Lanes without a query: a rule may make anything of their scores.
                            for i in range(nk):
                                for j in range(nq, wide):
                                    scratch[scores + i * wide + j] = zero
                        narrow = quick and chain == 0 and banded(p, found)
                        products(
                            p, narrow, value, b, key_head, q0, nq, k0, nk, 0, value_size, scratch,
                            packed_out, incoming, dummy,
                        )  # fmt: skip
                        weights = scores
                        if quick:
                            gradient_step(
                                scratch, scores, incoming, state, state + 2 * wide, deltas, nk,
                                active,
                            )  # fmt: skip
                        if plan[5] >= 0:
                            drop_both(p, b, h, q0, k0, nk, scratch, scores, incoming, dropped)
                            weights = dropped
                        if gathering:
                            for i in range(nk):
                                at = i * wide
                                for j in range(wide):
                                    part = slope(normaliser, scratch[scores + at + j])
                                    if part > zero:
                                        scratch[deltas + j] += part * scratch[incoming + at + j]
                                        scratch[sums + j] += part
                            continue
                        to_keys(
                            p, narrow, q0, nq, k0, nk, scratch, weights, laid_out, flat_value,
                            ((b * key_heads + key_head) * keys + k0) * value_padded, value_padded,
                            value_padded,
                        )  # fmt: skip
                        if normaliser == SOFTPICK:
                            softpick_gradient(
                                scratch, final, incoming, state, deltas, sums, nk, found, seen
                            )
                        for i in range(0 if quick or normaliser == SOFTPICK else nk):
                            at = i * wide
                            for j in range(nq):
                                weight = scratch[scores + at + j]
                                upstream = scratch[incoming + at + j]
                                if normaliser == ELEMENTWISE:
                                    result = upstream
                                elif implicit:
                                    part = slope(normaliser, weight)
                                    result = part * (upstream - scratch[deltas + j])
                                else:
                                    result = weight * (upstream - scratch[deltas + j])
                                if found == PARTIAL:
                                    result = result if seen[at + j] != 0 else zero
                                # Weights cut to exactly 0 have no slope, whatever their value is.
                                if normaliser != ELEMENTWISE:
                                    result = zero if weight == zero else result
                                scratch[incoming + at + j] = result
                        if chain > 0 or not quick:
                            # Rules look at all lanes.
                            for i in range(nk):
                                for j in range(nq, wide):
                                    scratch[incoming + i * wide + j] = zero
                        if normaliser == ELEMENTWISE:
                            through_rules(
                                p, chain - 1, chain, b, h, key_head, task, q0, k0, nk, scratch,
                                stages, incoming, rowed, d_rowed, flat_columns, flat_parameters,
                                meta,
                            )  # fmt: skip
                        if d_bias.size > 0:
                            slot = task if d_bias.shape[0] > 1 else 0
                            place_of = slot * d_bias.strides[0] + h * d_bias.strides[2]
                            place_of += p.bias_batch[b] * d_bias.strides[1]
                            place_of += q0 * d_bias.strides[3]
                            place_of += (plan[1] + k0) * d_bias.strides[4]
                            add_to_table(
                                d_bias, place_of // d_bias.itemsize,
                                d_bias.strides[3] // d_bias.itemsize,
                                d_bias.strides[4] // d_bias.itemsize, nq, nk, scratch, incoming,
                            )  # fmt: skip
                        through_rules(
                            p, shared, chain - (1 if normaliser == ELEMENTWISE else 0), b, h,
                            key_head, task, q0, k0, nk, scratch, stages, incoming, rowed, d_rowed,
                            flat_columns, flat_parameters, meta,
                        )  # fmt: skip
                        clean = found != PARTIAL or finite(key, b, key_head, k0, nk)
                        for c in range(components):
                            at = COMPONENTS + c * COMPONENT_WIDTH
                            own = incoming
                            if components > 1:
                                own = own_scores
                                for y in range(nk * wide):
                                    scratch[own_scores + y] = scratch[incoming + y]
                            through_rules(
                                p, plan[at + 2], plan[at + 3], b, h, key_head, task, q0, k0, nk,
                                scratch, stages, own, rowed, d_rowed, flat_columns,
                                flat_parameters, meta,
                            )  # fmt: skip
                            begin, padded = plan[at], plan[at + 4]
                            width = (plan[at + 1] + lanes - 1) // lanes * lanes
                            to_keys(
                                p, narrow, q0, nq, k0, nk, scratch, own, laid + padded, flat_key,
                                ((b * key_heads + key_head) * keys + k0) * size_padded + padded,
                                size_padded, width,
                            )  # fmt: skip
                            to_query(
                                p, narrow, clean, b, key_head, q0, nq, k0, nk, begin, plan[at + 1],
                                scratch, own, to_q + begin * wide, ones, safe,
                            )  # fmt: skip
                    if gathering:
                        for j in range(wide):
                            if scratch[sums + j] > zero:
                                scratch[deltas + j] /= scratch[sums + j]
                for c in range(components):
                    at = COMPONENTS + c * COMPONENT_WIDTH
                    factor = numbers[SCALES + c]
                    for j in range(nq):
                        for d in range(plan[at], plan[at] + plan[at + 1]):
                            d_query[chunk, b, h, q0 + j, d] = scratch[to_q + d * wide + j] * factor
                for j in range(nq):
                    for r in range(rows.shape[0]):
                        d_rows[chunk, r, b, h, q0 + j] = scratch[d_rowed + r * wide + j]
        hold(memory, octet_memory, integer_memory)

    number_type = types.float32 if dtype == "float32" else types.float64

    def zeros(ndim: int, layout: str = "C") -> types.Array:
        return types.Array(number_type, ndim, layout)

    state_type = types.Array(number_type, 3, "C", readonly=True)
    signature = types.void(
        *problem_types(dtype), state_type, state_type,
        types.Array(number_type, 4, "A", readonly=True), state_type,
        zeros(5), zeros(4), zeros(4), zeros(5, "A"), zeros(5), zeros(4), zeros(3),
        types.int64, types.int64, counter_type(),
    )  # fmt: skip
    return Kernel(backward, signature, f"{dtype} {tile}")
