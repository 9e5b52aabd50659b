"""The streaming engine's front: allocates outputs, shares work between threads, calls kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import decoding, target, threads
from .arguments import EMPTY_ARRAYS, NAMES, arguments, by_distance, padded, seen_by, slices_of
from .backward import backward_kernel
from .forward import forward_kernel
from .jit import Kernel
from .panel import panel_kernel
from .requests import NORMALISERS, Array, Component, EngineGradients, Request, State
from .rule_encoding import array_gradients
from .rules import Statistic
from .scores import ENTMAX15, SOFTMAX, SPARSEMAX, TOP_K
from .weights import weights_kernel

TOP = 8  # weights a row, where it is not said how many
_PANEL = (SPARSEMAX, ENTMAX15, TOP_K)
_SMALL = 1 << 21  # multiply-adds below which starting another thread costs more than it saves
_FEW_ROWS = 8  # query rows of a key head up to which each row by itself is faster than a tile
_LEAST_CHUNK = 512  # keys, below which a chunk is not worth its merge
_BIAS_SLOTS = 1 << 26  # bytes that separate sums of the bias gradient may take


def _threads(request: Request) -> int:
    batch, heads, queries, size = request.query.shape
    work = batch * heads * queries * request.key.shape[2] * (size + request.value.shape[3])
    if work < _SMALL:
        return 1
    return min(request.threads or threads.limit(), threads.limit())


def _route(request: Request) -> tuple[int, int, Callable[[str], Kernel]]:
    """Tasks, threads and kernel of a forward call."""
    query = request.query
    batch, heads, queries = query.shape[:3]
    workers = _threads(request)
    tasks = batch * heads * -(-queries // target.tile(NAMES[query.dtype]).queries)
    return tasks, workers, panel_kernel if request.normaliser in _PANEL else forward_kernel


def _few_rows(request: Request) -> bool:
    """Is each row by itself faster than a tile?"""
    if request.normaliser != SOFTMAX or request.reproducible or request.components:
        return False
    if request.recomputes or request.entropy:  # which a row by itself does not leave
        return False
    _, heads, queries, _ = request.query.shape
    shared = heads // request.key.shape[1] * queries
    few = shared <= _FEW_ROWS and request.key.shape[2] >= _LEAST_CHUNK
    return few and request.seed < 0 and decoding.supports(request.rules)


def _splits(request: Request, tasks: int, workers: int) -> bool:
    """Are keys attended to in chunks, as there are too few tasks otherwise?"""
    return tasks < workers and request.normaliser == SOFTMAX and not request.reproducible


def forward(request: Request) -> State:
    """Attend."""
    query = request.query
    dtype = NAMES[query.dtype]
    batch, heads, queries = query.shape[:3]
    if _few_rows(request):
        return _decode(request)
    tasks, workers, make = _route(request)
    if _splits(request, tasks, workers):
        return _forward_in_chunks(request, tasks, workers)
    # Written as (…, queries, heads, size), so that merging heads afterwards is a view.
    out = np.empty((batch, queries, heads, request.value.shape[3]), dtype).transpose(0, 2, 1, 3)
    first = np.zeros((batch, heads, queries), dtype)
    second = np.zeros((batch, heads, queries), dtype)
    left: tuple[Array, ...] = (first, second)
    entropy = None
    if make is forward_kernel:
        room = _entropy_room(request, batch)
        left = (*left, room)
        entropy = room if request.entropy and room.size else None
    threads.run(make(dtype).compile(), (*arguments(request), out, *left), tasks, workers)
    if request.normaliser == TOP_K:
        # Like the soft-max, the weights are taken from the denominator; the threshold is second.
        first, second = second, first
    return State(out, first, second, entropy)


def _entropy_room(request: Request, batch: int) -> Array:
    """Room for the entropy of (chunks · batch, heads, queries); empty where it is not wanted."""
    _, heads, queries, _ = request.query.shape
    if not request.entropy or request.normaliser != SOFTMAX:
        return EMPTY_ARRAYS[NAMES[request.query.dtype]][4]
    return np.zeros((batch, heads, queries), request.query.dtype)


@dataclass(frozen=True, slots=True)
class Plan:
    """A forward call in which only the arrays are missing; see :func:`plan`."""

    kernel: Callable[..., Any]
    arguments: tuple[Any, ...]
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    dtype: str
    tasks: int
    workers: int

    def __call__(self, query: Array, key: Array, value: Array) -> Array:
        """Attend with arrays of the dtype and the shapes that this was made for."""
        out = np.empty(self.shape, self.dtype).transpose(0, 2, 1, 3)
        unused = np.empty(self.rows, self.dtype)
        none = EMPTY_ARRAYS[self.dtype][4]
        given = (query, key, value, *self.arguments, out, unused, unused, none)
        threads.run(self.kernel, given, self.tasks, self.workers)
        return out


def plan(request: Request) -> Plan | None:
    """What of a request repeats in each call of its shapes; None where that is not all.

    For a soft-max whose rules look at no statistics, where the keys are attended to in one go.
    """
    query = request.query
    dtype = NAMES[query.dtype]
    batch, heads, queries = query.shape[:3]
    tasks, workers, kernel = _route(request)
    if kernel is not forward_kernel or request.normaliser != SOFTMAX:
        return None
    if _few_rows(request) or _splits(request, tasks, workers):
        return None
    if any(rule.row or rule.column for rule, _ in request.all_rules()):
        return None
    shape = (batch, queries, heads, request.value.shape[3])
    given = arguments(request)[3:]
    rows = (batch, heads, queries)
    return Plan(forward_kernel(dtype).compile(), given, shape, rows, dtype, tasks, workers)


def _decode(request: Request) -> State:
    """Few queries, many keys: each row by itself."""
    bias = request.bias
    total = request.mask_keys or request.key.shape[2]
    if request.relative is not None:
        bias = by_distance(request.relative[None], request.query.shape[2], total)
    scores = decoding.Scores(
        request.scale, (request.rules,), (request.mask,), bias, request.bias_batch,
        sink=request.sink,
    )  # fmt: skip
    stored = decoding.contiguous(request.key, request.value, request.key_start, total)
    out, logs = decoding.attend(request.query, stored, scores, request.threads)
    return State(out, logs, np.zeros_like(logs))


def _forward_in_chunks(request: Request, tasks: int, workers: int) -> State:
    """Few blocks of queries, many keys: chunks of these apart from each other, then one merge."""
    query = request.query
    dtype = NAMES[query.dtype]
    batch, heads, queries = query.shape[:3]
    keys = request.key.shape[2]
    chunks = 1
    if tasks < 2 * workers:
        chunks = max(1, min(-(-2 * workers // tasks), keys // _LEAST_CHUNK))
    parts = np.empty((chunks * batch, heads, queries, request.value.shape[3]), dtype)
    logs = np.empty((chunks * batch, heads, queries), dtype)
    without_sink = replace(request, sink=None)  # named, as it keeps arrays of rules alive
    given = arguments(without_sink)
    given[4][12] = chunks
    rests, entropies = np.empty_like(logs), _entropy_room(request, chunks * batch)
    results = (parts, logs, rests, entropies)
    threads.run(forward_kernel(dtype).compile(), (*given, *results), tasks * chunks, workers)
    parts = parts.reshape(chunks, batch, *parts.shape[1:])
    logs, rests = (x.reshape(chunks, batch, heads, queries) for x in (logs, rests))
    most = logs.max(axis=0)
    if request.sink is not None:
        most = np.maximum(most, request.sink.astype(dtype)[:, None])
    base = np.where(np.isneginf(most), 0, most)
    weights = np.exp(logs - base + rests)
    total = weights.sum(axis=0)
    if request.sink is not None:
        total += np.exp(request.sink.astype(dtype)[:, None] - base)
    # Chunks in which nothing is visible have output 0 and weight 0.
    shares = weights / np.where(total == 0, 1, total)
    out = np.einsum("cbhq,cbhqd->bhqd", shares, parts)
    with np.errstate(divide="ignore"):
        logarithm = np.log(total)
    log_denominator = base + logarithm
    rest = np.where(np.isneginf(logarithm), 0, logarithm) - (
        np.where(np.isneginf(log_denominator), base, log_denominator) - base
    )
    entropy = None
    if request.entropy:
        entropies = entropies.reshape(logs.shape)
        own = np.log(np.where(shares > 0, shares, 1))
        entropy = (shares * (entropies - own)).sum(axis=0)
    if request.sink is not None:
        log_denominator = np.where(np.isneginf(logs.max(axis=0)), -np.inf, log_denominator)
    return State(out, log_denominator, rest, entropy)


def gather(
    request: Request, state: State, wanted: frozenset[str], top: int = TOP
) -> dict[str, Array]:
    """Weights and what is taken from them: `weights`, `entropy`, `column_mass`, `top_weights`.

    The last comes with `top_keys`: the `top` largest weights of each row, and their keys.
    """
    if "entropy" in wanted and state.entropy is not None:
        rest = gather(request, state, wanted - {"entropy"}, top)
        return {**rest, "entropy": state.entropy}
    if not wanted:
        return {}
    query = request.query
    dtype = NAMES[query.dtype]
    batch, heads, queries = query.shape[:3]
    keys = request.key.shape[2]
    sizes = {
        "weights": (batch, heads, queries, keys),
        "entropy": (batch, heads, queries),
        "column_mass": (batch, heads, keys),
        "top_weights": (batch, heads, queries, top),
    }
    found = {
        name: np.zeros(size if name in wanted else (0,) * len(size), dtype)
        for name, size in sizes.items()
    }
    top_keys = np.full(found["top_weights"].shape, -1, np.int64)
    given = (*arguments(request), state.first, state.second, *found.values(), top_keys)
    threads.run(weights_kernel(dtype).compile(), given, batch * heads, _threads(request))
    found = {name: array for name, array in found.items() if name in wanted}
    return {**found, "top_keys": top_keys} if "top_weights" in wanted else found


def backward(request: Request, state: State, gradient: Array) -> EngineGradients:
    """Gradients by recomputation, O(n) memory."""
    query, key, value = request.query, request.key, request.value
    dtype = NAMES[query.dtype]
    lanes = target.tile(dtype).lanes
    batch, size = query.shape[0], query.shape[3]
    key_heads, keys, value_size = key.shape[1], key.shape[2], value.shape[3]
    workers = _threads(request)
    units = batch * key_heads
    whole = request.reproducible or workers == 1 or units >= 2 * workers
    chunks = 1 if whole else -(-2 * workers // units)
    units *= chunks
    given = arguments(request, backward=True)
    rows, columns = given[7], given[8]
    delta = np.einsum("bhqd,bhqd->bhq", gradient, state.out)

    slices = slices_of(request)
    key_width = slices[-1][4] + padded(slices[-1][1], lanes)
    value_width = padded(value_size, lanes)
    d_query = np.zeros((chunks, *query.shape), dtype)
    d_key = np.zeros((batch, key_heads, keys, key_width), dtype)
    d_value = np.zeros((batch, key_heads, keys, value_width), dtype)
    d_rows = np.zeros((chunks, *rows.shape), dtype)
    d_columns = np.zeros(columns.shape, dtype)
    d_parameters = np.zeros((units, *given[6].shape), dtype)
    d_bias = np.zeros((0,) * 5, dtype)
    d_bias_base: Array | None = None
    together = units  # done at once
    if request.relative is not None:
        table = request.relative
        slots = _slots(table.nbytes, units)
        d_bias_base = np.zeros((slots, *table.shape), dtype)
        d_bias = by_distance(d_bias_base, int(given[4][2]), int(given[4][3]))[:, None]
        together = units if slots > 1 else 1
    elif request.bias is not None:
        together = _independent(request, units, chunks)
        d_bias, d_bias_base = _bias_slots(request.bias, units if together < units else 1)
        together = units if len(d_bias_base) > 1 else together
    arrays: dict[int, Array] = {}
    if request.encoded is not None and request.encoded.arrays:
        most = max(array.nbytes for array in request.encoded.arrays.values())
        arrays = array_gradients(request.encoded, d_parameters, _slots(most, units))
        if _slots(most, units) == 1:
            together = 1
    if together == 1:
        together, workers = units, 1
    given = (
        *given, state.first, state.second, gradient, np.ascontiguousarray(delta, dtype), d_query,
        d_key, d_value, d_bias, d_rows, d_columns, d_parameters,
    )  # fmt: skip
    for start in range(0, units, together):
        ends = start, min(start + together, units)
        threads.run(backward_kernel(dtype).compile(), (*given, *ends), together, workers)
    for slot in arrays:  # where addresses were
        d_parameters[:, :, slot : slot + (2 if dtype == "float32" else 1)] = 0
    total_query = d_query[0] if chunks == 1 else d_query.sum(axis=0)
    key_gradient = d_key[..., :size]
    if len(slices) > 1:
        key_gradient = np.concatenate([d_key[..., s[4] : s[4] + s[1]] for s in slices], axis=-1)
    if request.encoded is not None:
        rules = request.encoded
        for name, statistics, vectors, gradients, total in (
            ("row", rules.row_statistics, query, d_rows.sum(axis=0), total_query),
            ("column", rules.column_statistics, key, d_columns, key_gradient),
        ):
            for statistic, own, found in zip(
                statistics, seen_by(request, name), gradients, strict=True
            ):
                total[..., own] += _pulled_back(statistic, vectors[..., own], found)
    sink_gradient = None
    if request.sink is not None:
        weight = np.exp(np.asarray(request.sink, dtype)[:, None] - state.first)
        weight = np.where(np.isneginf(state.first), 0, weight)
        sink_gradient = -np.einsum("bhq,bhq->h", weight, delta)
    return EngineGradients(
        total_query,
        key_gradient,
        d_value[..., :value_size],
        None if d_bias_base is None else d_bias_base.sum(axis=0),
        d_parameters.sum(axis=0),
        sink_gradient,
        {slot: array.sum(axis=0) for slot, array in arrays.items()},
    )


def _pulled_back(statistic: Statistic, vectors: Array, gradient: Array) -> Array:
    """The pullback of a statistic; 0 for vectors that nobody saw, finite or not."""
    with np.errstate(invalid="ignore"):
        found = statistic.pullback(vectors, gradient)
    return np.where(gradient[..., None] == 0, found.dtype.type(0), found)


def _independent(request: Request, units: int, chunks: int) -> int:
    """How many consecutive units add to parts of the bias that none of the others adds to."""
    bias, batches = request.bias, request.bias_batch
    assert bias is not None
    assert batches is not None
    key_heads = request.key.shape[1]
    if chunks > 1 and bias.strides[3] == 0:
        return 1
    if key_heads > 1 and bias.strides[1] == 0:
        return chunks
    own_batches = len(np.unique(batches)) == len(batches)
    return units if own_batches else key_heads * chunks


def _slots(size: int, units: int) -> int:
    """Each unit of work sums in a slot of its own, unless that took too much memory."""
    return units if size * units <= _BIAS_SLOTS else 1


def _bias_slots(bias: Array, units: int) -> tuple[Array, Array]:
    """Sums of the bias gradient, and a view of them that adds up along broadcast axes."""
    sizes = tuple(
        1 if stride == 0 else size for size, stride in zip(bias.shape, bias.strides, strict=True)
    )
    cells = int(np.prod(sizes)) * bias.itemsize
    base = np.zeros((_slots(cells, units), *sizes), bias.dtype)
    strides = tuple(
        0 if size == 1 else stride for size, stride in zip(sizes, base.strides[1:], strict=True)
    )
    shape = (len(base), *bias.shape)
    return np.lib.stride_tricks.as_strided(base, shape, (base.strides[0], *strides)), base


__all__ = [
    "NORMALISERS",
    "Component",
    "EngineGradients",
    "Plan",
    "Request",
    "State",
    "arguments",
    "backward",
    "forward",
    "gather",
    "plan",
]
