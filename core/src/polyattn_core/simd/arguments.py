"""From a request of the engine to the arguments that its kernels share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import KernelError
from . import masking, target
from .requests import Array, Request
from .rule_encoding import encode_rules
from .rules import Statistic
from .scores import COMPONENT_COUNT, COMPONENT_WIDTH, COMPONENTS

NAMES = {np.dtype(name): name for name in ("float32", "float64")}

EMPTY_ARRAYS = {
    dtype: (
        np.zeros((0, 6), np.int64),  # no rules
        np.zeros((0, 1, 1, 1), dtype),  # no statistics
        np.zeros((1, 1, 1, 1), dtype),  # no bias
        np.zeros(0, dtype),  # no sink
        np.zeros((0, 0, 0), dtype),  # no entropy
    )
    for dtype in NAMES.values()
}


def arguments(request: Request, *, backward: bool = False) -> tuple[Any, ...]:
    """What every kernel of the engine takes first: the problem, as `scores.Problem` holds it."""
    query, key = request.query, request.key
    dtype = NAMES[query.dtype]
    no_rules, no_statistics, no_bias, no_sink, _ = EMPTY_ARRAYS[dtype]
    batch, heads = query.shape[:2]
    parts = slices_of(request)
    plan = np.zeros(COMPONENTS + COMPONENT_WIDTH * len(parts), np.int64)
    mask = request.mask
    plan[0], plan[1] = request.normaliser, request.key_start
    plan[2] = request.mask_queries or query.shape[2]
    plan[3] = request.mask_keys or key.shape[2]
    plan[4], plan[5], plan[6] = mask.depth, request.seed, request.top
    plan[7] = request.bias is not None or request.relative is not None
    plan[11], plan[12] = request.block, 1
    if mask.depth:
        code = masking.interpreter()
        plan[8:11] = code.key_range.address, code.classify.address, code.fill.address
        if request.reproducible:
            plan[8] = masking.every_key().address
    plan[COMPONENT_COUNT], plan[COMPONENTS:] = len(parts), np.ravel([x[:-1] for x in parts])
    scales = [part[-1] for part in parts]
    numbers = np.array((scales[0], request.keep, request.epsilon, *scales), dtype)
    table, parameters, rows, columns = (
        no_rules,
        _no_parameters(heads, dtype),
        no_statistics,
        no_statistics,
    )
    chain = request.all_rules()
    if chain:
        shape = (batch, heads, int(plan[2]), int(plan[3]))
        encoded = encode_rules(chain, heads, dtype, backward=backward, shape=shape)
        request.encoded = encoded
        table, parameters = encoded.table, encoded.parameters
        if encoded.row_statistics:
            rows = _statistics(encoded.row_statistics, seen_by(request, "row"), query)
        if encoded.column_statistics:
            columns = _statistics(encoded.column_statistics, seen_by(request, "column"), key)
    bias, bias_batch = no_bias, _no_batches(batch)
    if request.relative is not None:
        bias = by_distance(request.relative[None], int(plan[2]), int(plan[3]))
    elif request.bias is not None and request.bias_batch is not None:
        bias, bias_batch = request.bias, request.bias_batch
    return (
        query, key, request.value, numbers, plan, table, parameters, rows, columns, bias,
        bias_batch, mask.steps, mask.integers, mask.octets,
        no_sink if request.sink is None else np.ascontiguousarray(request.sink, dtype),
    )  # fmt: skip


def slices_of(request: Request) -> list[tuple[int, int, int, int, int, float]]:
    """Of each component: begin, size, first rule, last rule + 1, padded begin, scale."""
    size = request.query.shape[3]
    if not request.components:
        return [(0, size, 0, 0, 0, request.scale)]
    lanes = target.tile(NAMES[request.query.dtype]).lanes
    found = []
    begin = rule = at = 0
    for part in request.components:
        after = rule + len(part.rules)
        found.append((begin, part.size, rule, after, at, part.scale))
        begin, rule, at = begin + part.size, after, at + padded(part.size, lanes)
    if begin != size or any(part.size < 1 for part in request.components):
        sizes = ", ".join(str(part.size) for part in request.components)
        raise KernelError(f"components of sizes {sizes} do not make up a head of size {size}")
    return found


def padded(size: int, lanes: int) -> int:
    """`size` up to whole vectors."""
    return -(-size // lanes) * lanes


def seen_by(request: Request, axis: str) -> list[slice]:
    """The coordinates that the row (or column) statistic of each rule that has one looks at."""
    found, begin = [], 0
    for part in request.components:
        own = slice(begin, begin + part.size)
        found += [own for rule, _ in part.rules if getattr(rule, axis) is not None]
        begin += part.size
    return found + [slice(None) for rule, _ in request.rules if getattr(rule, axis) is not None]


def _statistics(
    statistics: Sequence[Statistic], coordinates: Sequence[slice], array: Array
) -> Array:
    found = [s.forward(array[..., own]) for s, own in zip(statistics, coordinates, strict=True)]
    return np.ascontiguousarray(np.stack(found), array.dtype)


_parameter_cache: dict[tuple[int, str], Array] = {}
_batch_cache: dict[int, Array] = {}


def _no_parameters(heads: int, dtype: str) -> Array:
    found = _parameter_cache.get((heads, dtype))
    if found is None:
        found = _parameter_cache[heads, dtype] = np.zeros((heads, 1), dtype)
    return found


def _no_batches(batch: int) -> Array:
    found = _batch_cache.get(batch)
    if found is None:
        found = _batch_cache[batch] = np.zeros(batch, np.int64)
    return found


def by_distance(tables: Array, queries: int, keys: int) -> Array:
    """(…, heads, distances) seen as (…, heads, queries, keys), not copied; may be written to."""
    step = tables.strides[-1]
    return np.lib.stride_tricks.as_strided(
        tables[..., queries - 1 :],
        (*tables.shape[:-1], queries, keys),
        (*tables.strides[:-1], -step, step),
    )
