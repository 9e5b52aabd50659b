"""From raw products to the final scores of a tile: rules, bias, mask; shared by all kernels."""

from __future__ import annotations

import functools
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from . import target
from .jit import embed, inline
from .masking import (
    BAND,
    BATCH,
    COUNT,
    EMPTY,
    FIRST,
    FULL,
    HEAD,
    KEY,
    KEY_COUNT,
    PARTIAL,
    QUERY_COUNT,
    WIDE,
    WIDTH,
    interpret,
)
from .rule_encoding import call_forward
from .tile_products import ALIGN
from .tiles import tile_operations
from .transpose import transpose_operations
from .vector import pointer, raw

SOFTMAX, SOFTPICK, ELEMENTWISE, SPARSEMAX, ENTMAX15, TOP_K = range(6)
"""Normalisers. ELEMENTWISE: the last rule turns a score into its weight, without a sum."""

# What every kernel is given about the scores, in the order of the kernels' arguments.
# `numbers`: scale of the first component, probability to keep a weight in dropout, ε of soft-pick,
#         then the scale of each component.
# `plan`: normaliser, first key position, queries and keys of the mask's shape, depth of the mask
#         program, dropout seed or −1, k of top-k, is there a bias, addresses of the mask
#         interpreter's key_range, classify and fill, keys of a tile, chunks
#         of the keys that are attended separately, number of components; then for each component
#         its first coordinate, size, first rule, last rule + 1, and first coordinate where slices
#         are padded to whole vectors. Rules after those of the last component are of the sum.
Problem = namedtuple(
    "Problem",
    "query key value numbers plan rules parameters rows columns bias bias_batch steps integers"
    " octets sink",
)
COMPONENT_COUNT, COMPONENTS, COMPONENT_WIDTH, SCALES = 13, 14, 5, 3


def problem_types(dtype: str) -> tuple[Any, ...]:
    """Numba types of the fields of a problem."""
    number = types.float32 if dtype == "float32" else types.float64

    def array(kind: Any, ndim: int, layout: str = "C") -> Any:
        return types.Array(kind, ndim, layout, readonly=True)

    heads = array(number, 4, "A")
    integers = types.int64
    return (
        heads, heads, heads, array(number, 1), array(integers, 1), array(integers, 2),
        array(number, 2), array(number, 4), array(number, 4), heads, array(integers, 1),
        array(integers, 2), array(integers, 1), array(types.uint8, 1), array(number, 1),
    )  # fmt: skip


def counter_type() -> Any:
    """Numba type of the shared task counter."""
    return types.Array(types.int64, 1, "C")


@intrinsic  # type: ignore[untyped-decorator]
def take_task(typing, counter):  # type: ignore[no-untyped-def]
    """The number of the next task: adds 1 atomically."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        from .vector import I64

        place = pointer(context, builder, signature.args[0], args[0])
        return builder.atomic_rmw("add", place, I64(1), "monotonic")

    return types.int64(counter), emit


@inline
def aligned_start(scratch):  # type: ignore[no-untyped-def]
    """First index of `scratch` at an aligned address."""
    return (ALIGN - scratch.ctypes.data % ALIGN) % ALIGN // scratch.itemsize


@inline
def kept(seed, batch, head, query, key, keep):  # type: ignore[no-untyped-def]
    """Does this weight survive dropout? The same for every tiling and thread."""
    # Numba widens every operation on uint32 to 64 bits, so each is narrowed again.
    x = np.uint32(np.uint32(seed) + np.uint32(batch) * np.uint32(0x9E3779B1))
    x = np.uint32((x ^ np.uint32(head)) * np.uint32(0x85EBCA77))
    x = np.uint32(((x ^ (x >> np.uint32(15))) + np.uint32(query)) * np.uint32(0xC2B2AE3D))
    x = np.uint32(((x ^ (x >> np.uint32(13))) + np.uint32(key)) * np.uint32(0x27D4EB2F))
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x165667B1))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    return np.float32(x >> np.uint32(8)) * np.float32(5.9604645e-08) < keep


@functools.cache
def score_operations(dtype: str) -> SimpleNamespace:
    """Operations on the scores of a tile, for use inside kernels of this dtype."""
    tile, ops = target.tile(dtype), tile_operations(dtype)
    wide, lanes = tile.queries, tile.lanes
    number = np.dtype(dtype).type
    lowest, zero, one = number(-np.inf), number(0), number(1)
    score_product, value_product = ops.score_product, ops.value_product
    tile_maximum = ops.tile_maximum
    turn = transpose_operations(dtype)
    rows_to_lanes, add_table = turn.rows_to_lanes, turn.add_table

    @embed
    def pack_rows(statistics, b, h, first, count, scratch, to):  # type: ignore[no-untyped-def]
        """Row statistics of a tile's queries; lanes without a query repeat the first."""
        for r in range(statistics.shape[0]):
            for j in range(wide):
                lane = first + j if j < count else first
                scratch[to + r * wide + j] = statistics[r, b, h, lane]

    @embed
    def pack_query(p, b, h, first, count, scratch, to):  # type: ignore[no-untyped-def]
        """Queries as lanes, each component times its scale."""
        for c in range(p.plan[COMPONENT_COUNT]):
            at = COMPONENTS + c * COMPONENT_WIDTH
            begin, size = p.plan[at], p.plan[at + 1]
            rows_to_lanes(
                p.query, b, h, first, count, begin, size, p.numbers[SCALES + c], scratch,
                to + begin * wide,
            )  # fmt: skip

    @inline
    def banded(p, found):  # type: ignore[no-untyped-def]
        """Does a band, such as a causal mask or a window, cut through the tile, and nothing else?

        Then each column of queries has its keys without a gap, and the products leave out others.
        """
        return found == PARTIAL and p.steps.shape[0] == 1 and p.steps[0, 0] == BAND

    @inline
    def keys_seen(p, q0, k0, nk, column):  # type: ignore[no-untyped-def]
        """First key of a tile that some query of a column of lanes may see, and last key + 1."""
        from_first = q0 + column * lanes - p.plan[1] - k0
        low = min(max(from_first + p.steps[0, 1], 0), nk)
        return low, max(min(from_first + lanes + p.steps[0, 2], nk), low)

    @inline
    def queries_seen(p, q0, used, key, count):  # type: ignore[no-untyped-def]
        """First of `used` lanes that may see some of `count` keys from `key` on, and last + 1."""
        from_first = p.plan[1] + key - q0
        low = min(max(from_first - p.steps[0, 2], 0), used)
        return low, max(min(from_first + count - p.steps[0, 1], used), low)

    @inline
    def products(  # type: ignore[no-untyped-def]
        p, narrow, key, b, h, q0, nq, k0, nk, begin, size, scratch, queries, scores, maximum
    ):
        """scores[i, lane] = key[k0 + i] · packed query, over `size` coordinates from `begin`.

        With `narrow`, only inside the band; what lies outside is left as it was.
        """
        step = key.strides[2] // key.itemsize
        start = (b * key.strides[0] + h * key.strides[1]) // key.itemsize + k0 * step + begin
        active = (nq + lanes - 1) // lanes
        for i in range(0, nk if narrow else 1, lanes):
            count, first, last = nk, 0, active
            if narrow:
                count = min(lanes, nk - i)
                low, high = queries_seen(p, q0, active * lanes, k0 + i, count)
                first, last = low // lanes, (high + lanes - 1) // lanes
            lane = first * lanes
            if first < last:
                score_product(
                    key, start + i * step, step, count, scratch, queries + begin * wide + lane,
                    scores + i * wide + lane, maximum + lane, size, last - first,
                )  # fmt: skip

    @embed
    def add_bias(bias, b, h, q0, nq, k0, nk, scratch, scores):  # type: ignore[no-untyped-def]
        by_query, by_key = bias.strides[2] // bias.itemsize, bias.strides[3] // bias.itemsize
        start = (b * bias.strides[0] + h * bias.strides[1]) // bias.itemsize
        start += q0 * by_query + k0 * by_key
        add_table(bias, start, by_query, by_key, nq, nk, scratch, scores)

    @embed
    def score_tile(
        p,
        b,
        h,
        q0,
        nq,
        k0,
        nk,
        scratch,
        queries,
        scores,
        part,
        maximum,
        rowed,
        stages,
        place,
        stack,
        seen,
        meta,
        always,
    ):  # type: ignore[no-untyped-def]
        """Final scores of a tile, −inf where invisible; returns its class.

        `part` is room for a component's scores; `maximum` receives the tile's maxima; `stages`, if
        not −1, the scores before each rule. An empty tile is not computed; with `always` it is
        filled with −inf.
        """
        plan = p.plan
        key_at = k0 + plan[1]
        found = FULL
        if p.steps.shape[0] > 0:
            place[BATCH], place[HEAD], place[FIRST], place[COUNT] = b, h, q0, nq
            place[QUERY_COUNT], place[KEY_COUNT] = plan[2], plan[3]
            place[KEY], place[WIDTH], place[WIDE] = key_at, nk, wide
            found = interpret(plan[9], p.steps, p.integers, p.octets, place, stack, seen)
            if found == EMPTY:
                if always:
                    for x in range(nk * wide):
                        scratch[scores + x] = lowest
                return found
        group = p.query.shape[1] // p.key.shape[1]
        components, done = plan[COMPONENT_COUNT], 0
        # Rules are applied to the whole tile, so that they had better find scores there.
        narrow = p.rules.shape[0] == 0 and banded(p, found)
        for c in range(components):
            at = COMPONENTS + c * COMPONENT_WIDTH
            to, done = scores if c == 0 else part, plan[at + 3]
            products(
                p, narrow, p.key, b, h // group, q0, nq, k0, nk, plan[at], plan[at + 1], scratch,
                queries, to, maximum,
            )  # fmt: skip
            run_rules(p, plan[at + 2], done, b, h, q0, k0, nk, scratch, to, rowed, stages, meta)
            if c > 0:
                for x in range(nk * wide):
                    scratch[scores + x] += scratch[part + x]
        count = p.rules.shape[0] - (1 if plan[0] == ELEMENTWISE else 0)
        run_rules(p, done, count, b, h, q0, k0, nk, scratch, scores, rowed, stages, meta)
        if plan[7] != 0:
            add_bias(p.bias, p.bias_batch[b], h, q0, nq, key_at, nk, scratch, scores)
        if found == PARTIAL:
            interpret(plan[10], p.steps, p.integers, p.octets, place, stack, seen)
            for x in range(nk * wide):
                scratch[scores + x] = scratch[scores + x] if seen[x] != 0 else lowest
        if found == PARTIAL or count > 0 or plan[7] != 0 or components > 1:
            tile_maximum(scratch, scores, maximum, nk, (nq + lanes - 1) // lanes)
        return found

    @embed
    def visible_keys(p, b, h, q0, nq, place, stack, seen):  # type: ignore[no-untyped-def]
        """Range of this call's keys outside which nothing is visible to these queries."""
        plan = p.plan
        low, high = 0, plan[3]
        if p.steps.shape[0] > 0:
            place[BATCH], place[HEAD], place[FIRST], place[COUNT] = b, h, q0, nq
            place[QUERY_COUNT], place[KEY_COUNT] = plan[2], plan[3]
            interpret(plan[8], p.steps, p.integers, p.octets, place, stack, seen)
            low, high = stack[0], stack[1]
        return max(low - plan[1], 0), min(high - plan[1], p.key.shape[2])

    @inline
    def run_rules(p, first, last, b, h, q0, k0, nk, scratch, scores, rowed, stages, meta):  # type: ignore[no-untyped-def]
        """Apply rules first … last − 1; the scores before each are kept at `stages`, if not −1."""
        meta[0], meta[1], meta[2], meta[3], meta[4] = b, h, q0, k0 + p.plan[1], nk
        group = p.query.shape[1] // p.key.shape[1]
        keys = p.key.shape[2]
        for r in range(first, last):
            row = rowed + max(p.rules[r, 2], 0) * wide
            column = 0
            if p.rules[r, 3] >= 0:
                heads, batches = p.key.shape[1], p.key.shape[0]
                column = ((p.rules[r, 3] * batches + b) * heads + h // group) * keys + k0
            parameter = h * p.parameters.shape[1] + p.rules[r, 4]
            if stages >= 0:
                for x in range(nk * wide):
                    scratch[stages + r * p.plan[11] * wide + x] = scratch[scores + x]
            call_forward(
                p.rules[r, 0], scratch, scores, meta, row, p.columns, column, p.parameters,
                parameter,
            )  # fmt: skip

    @embed
    def weigh(p, found, b, h, q0, k0, nk, scratch, scores, rowed, stages, seen, meta):  # type: ignore[no-untyped-def]
        """Element-wise weights from scores: the last rule, and 0 where invisible."""
        last = p.rules.shape[0]
        run_rules(p, last - 1, last, b, h, q0, k0, nk, scratch, scores, rowed, stages, meta)
        if found == PARTIAL:
            for x in range(nk * wide):
                scratch[scores + x] = scratch[scores + x] if seen[x] != 0 else zero

    @embed
    def drop(p, b, h, q0, k0, nk, scratch, weights):  # type: ignore[no-untyped-def]
        """Dropout on the weights of a tile."""
        seed, keep = p.plan[5], p.numbers[1]
        factor = one / keep
        for i in range(nk):
            at = weights + i * wide
            for j in range(wide):
                stays = kept(seed, b, h, q0 + j, p.plan[1] + k0 + i, keep)
                scratch[at + j] = scratch[at + j] * factor if stays else zero

    @embed
    def add_values(  # type: ignore[no-untyped-def]
        p, narrow, value, at, step, q0, nq, k0, nk, scratch, weights, output, rescale, size
    ):
        """Output = output · rescale + Vᵀ · weightsᵀ; with `narrow`, only inside the band."""
        active = (nq + lanes - 1) // lanes
        for column in range(active if narrow else 1):
            low, high, columns = 0, nk, active
            if narrow:
                low, high = keys_seen(p, q0, k0, nk, column)
                columns = 1
            lane = column * lanes
            value_product(
                value, at + low * step, step, high - low, scratch, weights + low * wide + lane,
                output + lane, rescale + lane, size, columns,
            )  # fmt: skip

    @embed
    def accumulate(p, found, b, h, q0, nq, k0, nk, scratch, weights, output, rescale, safe, seen):  # type: ignore[no-untyped-def]
        """Output = output · rescale + Vᵀ · weightsᵀ.

        Where part of the tile is invisible, values that are not finite are taken out of the
        product, in which they would reach every query as 0 · NaN, and added where they are seen.
        """
        value = p.value
        step = value.strides[2] // value.itemsize
        group = p.query.shape[1] // value.shape[1]
        at = (b * value.strides[0] + h // group * value.strides[1]) // value.itemsize + k0 * step
        size = value.shape[3]
        clean = True
        if found == PARTIAL:
            clean = finite(value, b, h // group, k0, nk)
        if clean:
            add_values(
                p, banded(p, found), value, at, step, q0, nq, k0, nk, scratch, weights, output,
                rescale, size,
            )  # fmt: skip
            return
        for i in range(nk):
            for d in range(size):
                x = value[b, h // group, k0 + i, d]
                scratch[safe + i * size + d] = x if np.isfinite(x) else zero
        active = (nq + lanes - 1) // lanes
        value_product(scratch, safe, size, nk, scratch, weights, output, rescale, size, active)
        for i in range(nk):
            for d in range(size):
                x = value[b, h // group, k0 + i, d]
                if not np.isfinite(x):
                    for j in range(wide):
                        if seen[i * wide + j] != 0:
                            scratch[output + d * wide + j] += scratch[weights + i * wide + j] * x

    @embed
    def finite(array, b, h, first, count):  # type: ignore[no-untyped-def]
        """Are all numbers of these rows finite?"""
        numbers, probe = raw(array), zero  # indices of an array would not vectorise
        step = array.strides[2] // array.itemsize
        start = (b * array.strides[0] + h * array.strides[1]) // array.itemsize + first * step
        for i in range(count):
            for d in range(array.shape[3]):
                probe += numbers[start + i * step + d] * zero
        return probe == zero

    return SimpleNamespace(
        pack_query=pack_query,
        pack_rows=pack_rows,
        products=products,
        score_tile=score_tile,
        visible_keys=visible_keys,
        run_rules=run_rules,
        weigh=weigh,
        drop=drop,
        banded=banded,
        queries_seen=queries_seen,
        add_values=add_values,
        accumulate=accumulate,
        finite=finite,
    )
