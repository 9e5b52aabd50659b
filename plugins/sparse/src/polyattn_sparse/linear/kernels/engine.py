"""Launches the kernels: allocates, shares work between threads, puts pieces together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.simd import threads

from . import blocks, emission
from .backward import backward_kernel
from .few import few_kernel
from .forward import forward_kernel, summary_kernel
from .state import ELU, EXPONENTIAL, RELU

Array = npt.NDArray[Any]

KINDS = {"exponential": EXPONENTIAL, "elu+1": ELU, "relu": RELU}
_SMALL = 1 << 21  # multiply-adds below which starting another thread costs more than it saves
_LEAST = 256  # tokens of a piece
_FEW, _MANY = 16, 256  # rows that share items, and items, from which weights beat a state


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """What turns tokens into features.

    Exponential features are exp(projection[r] · (x, −scale·‖x‖²/2) + constant); the others are
    functions of scale · x.
    """

    kind: str
    scale: float
    projection: Array | None = None
    """(features, size + 1), for exponential features, contiguous; its last column is 1."""
    constant: float = 0.0

    def count(self, size: int) -> int:
        """Number of features of a token of this size."""
        return size if self.projection is None else len(self.projection)


@dataclass(slots=True)
class _Side:
    """Tokens with the vectors and weights that they bring along; see `Problem` and `Rows`."""

    tokens: Array
    vector: Array
    weight: Array
    shift: Array

    def backwards(self) -> _Side:
        return _Side(*(x[:, :, ::-1] for x in (self.tokens, self.vector, self.weight, self.shift)))


@functools.lru_cache(256)
def _uniform(value: float, shape: tuple[int, ...], dtype: str) -> Array:
    """An array of one number, read-only; the same object for the same call."""
    return np.broadcast_to(np.asarray(value, dtype), shape)


def _keys(key: Array, value: Array) -> _Side:
    shape, dtype = key.shape[:3], key.dtype.name
    return _Side(key, value, _uniform(1, shape, dtype), _uniform(0, shape, dtype))


@functools.lru_cache(256)
def _nothing(shape: tuple[int, ...], dtype: str) -> Array:
    return np.zeros(shape, dtype)


def _round_up(number: int, to: int) -> int:
    return -(-number // to) * to


class _Scan:
    """One scan: the arguments that all kernels share, with pieces computed where there are any."""

    def __init__(
        self, features: FeatureMap, items: _Side, rows: Array, counts: Array, epsilon: float,
        limit: int | None, *, divide: bool = True,
    ) -> None:  # fmt: skip
        self.dtype = rows.dtype.name
        batch, row_heads, row_count, size = rows.shape
        item_heads, item_count = items.tokens.shape[1:3]
        units = min(row_heads, item_heads)
        count, width = features.count(size), items.vector.shape[3]
        heads = max(row_heads, item_heads)
        work = batch * heads * (row_count + item_count) * count * width
        most = threads.limit()
        self.threads = 1 if work < _SMALL else min(limit or most, most)
        wide = emission.wide(self.dtype)
        segment, piece, pieces = row_count, item_count, 0
        if divide and self.threads > 1 and batch * units < 2 * self.threads:
            # Few heads: parts of a head run side by side, from states that are summed up before.
            parts = -(-4 * self.threads // (batch * units))
            segment = max(_LEAST, _round_up(-(-row_count // parts), wide))
            piece = max(_LEAST, _round_up(-(-item_count // parts), wide))
            pieces = -(-item_count // piece) if item_count > wide else 0
        self.tasks = batch * units * -(-row_count // segment)
        self.units, self.pieces = batch * units, pieces
        projection = features.projection
        if projection is None:
            projection = _nothing((0, size + 1), self.dtype)
        across = _round_up(width, emission.lanes(self.dtype))
        length = count * (across + 2)
        shape = (self.units, pieces, length)
        self._table = np.zeros(shape, self.dtype) if pieces else _nothing((1, 1, 0), self.dtype)
        addresses = blocks.addresses(self.dtype)
        self.arguments = (
            items.tokens, items.shift, items.vector, items.weight, rows,
            counts if len(counts) == batch else np.broadcast_to(counts, (batch, row_count)),
            projection,
            np.array((features.scale, features.constant, epsilon), self.dtype),
            np.array((KINDS[features.kind], count, segment, piece, pieces, *addresses), np.int64),
            self._table,
        )  # fmt: skip
        if pieces:
            self._sum_pieces(count, across)

    def _sum_pieces(self, count: int, across: int) -> None:
        """States of the pieces, each with all pieces before it."""
        kernel = summary_kernel(self.dtype).compile()
        threads.run(kernel, (*self.arguments, self._table), self.units * self.pieces, self.threads)
        sums = self._table
        total = sums[..., : count * across].reshape(self.units, self.pieces, count, across)
        mass, most = (sums[..., count * (across + k) : count * (across + k + 1)] for k in (0, 1))
        for i in range(1, self.pieces):
            top = np.maximum(most[:, i - 1], most[:, i])
            base = np.where(np.isneginf(top), 0, top)
            before, own = np.exp(most[:, i - 1] - base), np.exp(most[:, i] - base)
            # What is not finite goes on to the rows that see it, and to no other.
            with np.errstate(invalid="ignore", over="ignore"):
                total[:, i] *= own[..., None]
                total[:, i] += total[:, i - 1] * before[..., None]
                mass[:, i] = mass[:, i] * own + mass[:, i - 1] * before
            most[:, i] = top

    def run(self, kernel: Any, *arrays: Array) -> None:
        threads.run(kernel.compile(), (*self.arguments, *arrays), self.tasks, self.threads)


def forward(
    features: FeatureMap,
    query: Array,
    key: Array,
    value: Array,
    counts: Array,
    *,
    epsilon: float = 0.0,
    limit: int | None = None,
) -> tuple[Array, Array]:
    """The output and the logarithm of its normaliser, −inf where no key has a weight.

    Parameters
    ----------
    query, key, value
        (batch, heads, queries, size), (batch, key heads, keys, size), (batch, key heads, keys,
        value size); the last axis contiguous.
    counts
        (batch or 1, queries): each query sees so many of the first keys, none fewer than the
        query before.
    epsilon
        Added to the normaliser.
    limit
        Threads that may be used.
    """
    batch, heads, queries = query.shape[:3]
    dtype = query.dtype.name
    # Written as (…, queries, heads, size), so that merging heads afterwards is a view.
    out = np.empty((batch, queries, heads, value.shape[3]), dtype).transpose(0, 2, 1, 3)
    log_normaliser = np.empty((batch, heads, queries), dtype)
    rows = heads // key.shape[1] * queries
    few = rows <= _FEW and key.shape[2] >= _MANY
    scan = _Scan(features, _keys(key, value), query, counts, epsilon, limit, divide=not few)
    scan.run((few_kernel if few else forward_kernel)(dtype), out, log_normaliser)
    return out, log_normaliser


def gradients(
    features: FeatureMap,
    query: Array,
    key: Array,
    value: Array,
    counts: Array,
    out: Array,
    log_normaliser: Array,
    gradient: Array,
    *,
    limit: int | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients by query, key and value, from that by the output; like :func:`forward`."""
    dtype = query.dtype.name
    delta = -np.einsum("bhnd,bhnd->bhn", gradient, out).astype(dtype, copy=False)
    queries = _Side(query, gradient, delta, _safe(log_normaliser))
    keys = _keys(key, value)
    d_query, d_key, d_value = (np.empty(x.shape, dtype) for x in (query, key, value))
    nothing = _nothing((0, 0, 0, 0), dtype)
    scan = _Scan(features, keys, query, counts, 0.0, limit)
    scan.run(
        backward_kernel(dtype), queries.vector, queries.weight, queries.shift, d_query, nothing
    )
    scan = _Scan(
        features, queries.backwards(), key[:, :, ::-1], _seen_by(counts, key.shape[2]), 0.0, limit
    )
    rows = keys.backwards()
    scan.run(
        backward_kernel(dtype), rows.vector, rows.weight, rows.shift, d_key[:, :, ::-1],
        d_value[:, :, ::-1],
    )  # fmt: skip
    return d_query, d_key, d_value


def column_mass(
    features: FeatureMap,
    query: Array,
    key: Array,
    counts: Array,
    log_normaliser: Array,
    *,
    limit: int | None = None,
) -> Array:
    """Sum of the weights that each key receives, (batch, heads, keys)."""
    batch, heads, queries = query.shape[:3]
    key_heads, keys = key.shape[1:3]
    dtype = query.dtype.name
    found = np.empty((batch, heads, keys, 1), dtype)
    nothing = _nothing((0, 0, 0, 0), dtype)
    ones = _uniform(1, (batch, key_heads, queries, 1), dtype)
    group = heads // key_heads
    for first in range(group):
        # One query head of each group: their sums are wanted one by one.
        part = slice(first, None, group)
        side = _Side(query[:, part], ones, ones[..., 0], _safe(log_normaliser)[:, part])
        scan = _Scan(
            features, side.backwards(), key[:, :, ::-1], _seen_by(counts, keys), 0.0, limit
        )
        unused = _uniform(0, (batch, key_heads, keys, 1), dtype)
        scan.run(
            backward_kernel(dtype), unused, unused[..., 0], unused[..., 0], nothing,
            found[:, part, ::-1],
        )  # fmt: skip
    return found[..., 0]


def _safe(log_normaliser: Array) -> Array:
    """With +inf, from which every weight is 0, for rows in which no key has a weight."""
    return np.where(np.isneginf(log_normaliser), np.inf, log_normaliser).astype(
        log_normaliser.dtype, copy=False
    )


def _seen_by(counts: Array, keys: int) -> Array:
    """How many queries see each key, the last key first."""
    position = np.arange(keys)
    seen = [len(row) - np.searchsorted(row, position, "right") for row in counts]
    return np.stack(seen)[:, ::-1].astype(np.int64, copy=False)


__all__ = ["FeatureMap", "column_mass", "forward", "gradients"]
