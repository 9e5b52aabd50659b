"""Attention to keys and values in caches: checks, positions, and the way that is always open."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Array, as_array, canonical, compute_dtype, dtype_name
from .caches import Cache, KVCache, PagedCache
from .caches.base import Integers, Part, Sequences
from .errors import ArgumentError, DTypeError, MaskError, ShapeError
from .masks import Mask, MaskShape
from .masks.program import Primitive, Program
from .partial import PartialState
from .positions import Rope

if TYPE_CHECKING:
    from .mechanism import Call, Mechanism

_PIECE = 4096
"""Keys that are widened at a time, where a mechanism cannot read them as they are stored."""


@dataclass(slots=True)
class CachedCall:
    """Queries in canonical form against one part of a cache."""

    query: Array
    """(sequences, heads, queries, size)."""
    part: Part
    lead: tuple[int, ...]
    totals: Integers
    """Keys that each sequence has in all; the queries are the last tokens."""
    mask: Mask | None
    bias: Array | None

    def shape(self, total: int) -> MaskShape:
        """The sizes of a call with so many keys."""
        heads, queries = self.query.shape[1:3]
        return MaskShape(self.lead, heads, queries, total)


def attend_cached(
    mechanism: Mechanism,
    query: Any,
    caches: tuple[Cache, ...],
    sequences: Sequences,
    mask: Any,
    bias: Any,
) -> PartialState:
    """The state over all keys of the caches. See :meth:`Mechanism.attend_cached`."""
    if not mechanism.capabilities.partial:
        raise mechanism._lacks("partial results, which caches need", "partial")
    query = as_array(query, "query")
    if not caches:
        raise ArgumentError("caches", "none", "at least one cache")
    for cache in caches:
        _check(mechanism, cache, query)
    merged = len(caches) > 1 or not isinstance(caches[0], KVCache | PagedCache)
    if merged and getattr(mechanism.config, "reproducible", False):
        what = ", ".join(type(cache).__name__ for cache in caches)
        accepted = "one KVCache or PagedCache with reproducible=True: others merge parts"
        raise ArgumentError("caches", what, accepted)
    own = caches[-1].chosen(sequences)
    chosen = [*(_shared(cache, own) for cache in caches[:-1]), own]
    lead = query.shape[:-3]
    if math.prod(lead) != len(own):
        raise ShapeError(
            "query", query.shape, f"leading axes with an element for each of {len(own)} sequences"
        )
    queries = query.shape[2 + len(lead) - 1]
    before = [0]
    for cache, numbers in zip(caches, chosen, strict=True):
        lengths = cache.lengths[numbers]
        if cache is not caches[-1] and len(set(lengths.tolist())) != 1:
            raise ArgumentError("caches", lengths, "one length before the last cache")
        if cache.start != before[-1]:
            raise ArgumentError(
                "caches", f"one that starts at {cache.start}", f"start={before[-1]} in this place"
            )
        before.append(before[-1] + int(lengths.max(initial=0)))
    totals = before[-2] + caches[-1].lengths[own]
    if (totals < queries).any():
        raise ArgumentError(
            "query", f"{queries} queries", f"no more than tokens, {totals.tolist()}: append first"
        )
    working = compute_dtype(query.dtype, "query")
    array = canonical(query, lead, working)
    full = MaskShape(lead, array.shape[1], queries, int(totals.max()))
    biases = None if bias is None else mechanism._checked_bias(bias, full, working)
    states = []
    for cache, numbers in zip(caches, chosen, strict=True):
        own_mask = cache.mask(queries)
        if own_mask is not None and mask is not None:
            own_mask = own_mask & mechanism._as_mask(mask)
        visible = mask if own_mask is None else own_mask
        for part in cache.parts(numbers, queries):
            if cache is not caches[-1]:
                part = replace(part, rotations=part.rotations * 0 + _positions(totals, queries))
            call = CachedCall(array, part, lead, totals, visible, biases)
            states.append(mechanism._cached(call))
    state = states[0].merge(*states[1:])
    if len(lead) != 1:
        output, logs = (x.reshape((*lead, *x.shape[1:])) for x in (state.output, state.log_sum_exp))
        state = PartialState(output, logs, state.sink)
    return PartialState(state.output, state.log_sum_exp, state.sink, query.dtype)


def _positions(totals: Integers, queries: int) -> Integers:
    return totals[:, None] - queries + np.arange(queries)


def _shared(cache: Cache, own: Integers) -> Integers:
    """The sequences of an earlier cache: its only one for all, or those of the last cache."""
    numbers = cache.chosen(None)
    return np.repeat(numbers, len(own)) if len(numbers) == 1 else cache.chosen(own)


def _check(mechanism: Mechanism, cache: object, query: Array) -> None:
    config = mechanism.config
    if not isinstance(cache, Cache):
        what = f"a {type(cache).__name__}"
        raise ArgumentError("caches", what, "a KVCache, RingCache or PagedCache")
    if query.ndim < 3 or query.shape[-3] != config.heads or query.shape[-1] != config.head_dim:
        raise ShapeError(
            "query", query.shape, f"(..., {config.heads}, queries, {config.head_dim}), as the "
            "configuration says",
        )  # fmt: skip
    if 0 in query.shape:
        raise ShapeError("query", query.shape, "no empty axis")
    if (cache.heads, cache.size) != (config.key_heads, config.head_dim):
        raise ArgumentError(
            "caches", f"one of {cache.heads} heads of size {cache.size}",
            f"{config.key_heads} heads of size {config.head_dim}, as the configuration says",
        )  # fmt: skip
    position = getattr(config, "position", None)
    rope = position if isinstance(position, Rope) else None
    if cache.rope != rope:
        raise ArgumentError(
            "caches", f"one with rope={cache.rope!r}",
            f"rope={rope!r}, as {mechanism.name} has it: see {type(cache).__name__}.of",
        )  # fmt: skip
    if dtype_name(query.dtype) not in mechanism.capabilities.dtypes:
        raise mechanism._lacks(query.dtype.name, "dtypes", query.dtype.name)
    wide = compute_dtype(query.dtype, "query") == np.float64
    if wide != (cache.storage == "float64"):
        raise DTypeError(
            "query", f"{query.dtype} with {cache.storage} keys",
            "float64 for both, or any narrower types",
        )  # fmt: skip


# ---- widened copies, for what the decode kernel cannot do ---------------------------------------


def widened(mechanism: Mechanism, cached: CachedCall, *, whole: bool) -> PartialState:
    """The state over a part of a cache through ordinary calls, over one piece after another.

    Of keys as they are where these lie in one array, otherwise of widened copies, of which there is
    one piece at a time, or with `whole` all of a sequence.
    """
    view = _view(cached.part, len(cached.totals))
    if view is not None and len(set(cached.totals.tolist())) == 1:
        call = _call(cached, cached.query, *view, cached.lead, slice(None))
        call.mask = mechanism.combined_mask(cached.mask, call.shape)
        call.bias = cached.bias
        return mechanism._partial(call)
    states = []
    for n in range(len(cached.totals)):
        own = [
            mechanism._partial(call)
            for call in _pieces(mechanism, cached, n, None if whole else _PIECE)
        ]
        states.append(own[0].merge(*own[1:]) if own else _nothing(cached))
    return PartialState(
        np.concatenate([state.output for state in states]),
        np.concatenate([state.log_sum_exp for state in states]),
        states[0].sink,
    )


def _nothing(cached: CachedCall) -> PartialState:
    shape, dtype = (1, *cached.query.shape[1:3]), cached.query.dtype
    output = np.zeros((*shape, cached.part.value.size), dtype)
    return PartialState(output, np.full(shape, -np.inf, dtype))


def _view(part: Part, sequences: int) -> tuple[Array, Array, int] | None:
    """Keys, values and the first position, where each sequence has one run like all others."""
    runs = part.runs
    if len(runs) != sequences or part.key.storage not in ("float32", "float64"):
        return None
    alike = (runs[:, 1:] == runs[:1, 1:]).all() and (part.starts == np.arange(sequences + 1)).all()
    if not alike or (runs[:, 0] != np.arange(sequences)).any():
        return None
    _, row, position, count, _ = runs[0].tolist()
    key, value = (
        rows.data[:sequences, :, row : row + count, : rows.size] for rows in (part.key, part.value)
    )
    return key, value, position


def _call(
    cached: CachedCall, query: Array, key: Array, value: Array, start: int,
    lead: tuple[int, ...], rows: slice,
) -> Call:  # fmt: skip
    from .mechanism import Call

    total = int(cached.totals[rows][0])
    shape = MaskShape(lead, query.shape[1], query.shape[2], total)
    call = Call(query, key, value, shape, key_start=start)
    call.query_rotation = cached.part.rotations[rows][:, None]
    return call


def _pieces(mechanism: Mechanism, cached: CachedCall, n: int, most: int | None) -> Iterator[Call]:
    """Ordinary calls of one sequence, each over keys that follow each other in position."""
    part = cached.part
    pending: list[tuple[int, int, int, int]] = []
    for run in [*part.runs[part.starts[n] : part.starts[n + 1], :4].tolist(), None]:
        held = sum(r[3] for r in pending)
        follows = run and pending and pending[-1][2] + pending[-1][3] == run[2]
        if pending and not (follows and (most is None or held + run[3] <= most)):
            key, value = (
                np.concatenate([rows.read(unit, row, count) for unit, row, _, count in pending], 1)
                for rows in (part.key, part.value)
            )
            call = _call(
                cached, cached.query[n : n + 1], key[None], value[None], pending[0][2], (1,),
                slice(n, n + 1),
            )  # fmt: skip
            _one_of(mechanism, cached, call, n)
            yield call
            pending = []
        while run and most is not None and run[3] > most:
            rest = run[3] - most
            pending = [(*run[:3], most)]
            run = (run[0], run[1] + most, run[2] + most, rest)
        if run:
            pending.append(tuple(run))


def _one_of(mechanism: Mechanism, cached: CachedCall, call: Call, n: int) -> None:
    """Set the mask and the bias of a sequence by itself."""
    if cached.mask is not None and len(cached.totals) > 1:
        if "predicate" in mechanism._as_mask(cached.mask).kinds:
            raise MaskError(
                "mask", "a predicate", "other masks here, where sequences go one by one"
            )
        mask: Mask | None = _OfSequence(mechanism._as_mask(cached.mask), cached.lead, n)
    else:
        mask = cached.mask
    call.mask = mechanism.combined_mask(mask, call.shape)
    if cached.bias is not None:
        total = call.shape.keys
        bias = cached.bias.reshape((1,) * max(0, 3 - cached.bias.ndim) + cached.bias.shape)
        own = np.broadcast_to(bias, (*cached.lead, *bias.shape[-3:]))
        one = own.reshape((len(cached.totals), *bias.shape[-3:]))[n]
        call.bias = one[..., :total] if one.shape[-1] > 1 else one


class _OfSequence(Mask):
    """A mask of a batch, for one of its sequences by itself."""

    __slots__ = ("lead", "mask", "number")

    def __init__(self, mask: Mask, lead: tuple[int, ...], number: int) -> None:
        self.mask, self.lead, self.number = mask, lead, number

    @property
    def kinds(self) -> frozenset[str]:
        return self.mask.kinds

    def program(self, shape: MaskShape) -> Program:
        full = replace(shape, lead=self.lead)
        return tuple(self._own(step) for step in self.mask.program(full))

    def _own(self, step: Primitive) -> Primitive:
        if step.table is None or len(step.table) == 1:
            return step
        return replace(step, table=step.table[self.number : self.number + 1])
