"""Distributions seen along random directions: projected, sorted, cached."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_core.products import matmul

from .config import SlicedWassersteinConfig
from .directions import unit_directions


@dataclass(frozen=True, slots=True)
class Sorted:
    """Distributions along each direction, as sorted numbers or as a cumulative histogram."""

    values: Array
    """(batch, heads, tokens, directions, numbers), the last axis in the order of the line."""
    lengths: Array
    """(batch, heads, tokens): how many of the numbers count; all where `even`."""
    even: bool
    """All distributions have the same number of numbers."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A distribution for each token: sets (batch, heads, tokens, set size, size) and lengths."""

    sets: Array
    lengths: Array

    @property
    def even(self) -> bool:
        return bool((self.lengths == self.sets.shape[3]).all())


class CachedProjections:
    """Directions, and the sorted projections of the keys of the last call.

    Keys are compared with a copy of those before, number by number, so projections are reused
    exactly as long as keys stay the same, and computed anew when they change, be it in place.
    `hits` and `misses` count; `reset` forgets. Calls from several threads are safe: they wait for
    no more than the exchange of the entry, and the last one's stays.
    """

    def __init__(self, config: SlicedWassersteinConfig) -> None:
        rng = np.random.default_rng(config.seed)
        self.directions = unit_directions(config.projections, config.head_dim, rng)
        """θ (projections, head size), float64 and read-only; they follow from the seed."""
        self.directions.flags.writeable = False
        self.hits = self.misses = 0
        self._config = config
        self._entry: tuple[Tokens, Sorted] | None = None
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Forget the keys, and count from 0."""
        with self._lock:
            self._entry = None
            self.hits = self.misses = 0

    def of_keys(self, tokens: Tokens) -> Sorted:
        """Their projections: those of the last call where keys are the same."""
        with self._lock:
            entry = self._entry
        if entry is not None and _same(entry[0], tokens):
            with self._lock:
                self.hits += 1
            return entry[1]
        found = self.of(tokens)
        kept = Tokens(tokens.sets.copy(), tokens.lengths.copy())
        with self._lock:
            self._entry = kept, found
            self.misses += 1
        return found

    def of(self, tokens: Tokens) -> Sorted:
        """Project and sort."""
        projected, lengths = self._projected(tokens)
        representation = self._config.representation
        if representation == "histogram":
            return Sorted(self._histogram(projected, lengths), lengths, True)
        if projected.shape[-1] > 1:
            projected.sort(axis=-1)
        if representation == "quantiles":
            place = self._places(lengths, projected.shape[-2])
            return Sorted(np.take_along_axis(projected, place, axis=-1), lengths, True)
        return Sorted(projected, lengths, tokens.even)

    def pull_back(self, tokens: Tokens, gradient: Array) -> Array:
        """Gradient by the sets, of one by the sorted values."""
        projected, lengths = self._projected(tokens)
        order = np.argsort(projected, axis=-1, kind="stable")
        if self._config.representation == "quantiles":
            place = self._places(lengths, projected.shape[-2])
            full = np.zeros(projected.shape, gradient.dtype)
            for level in range(place.shape[-1]):  # quantiles of small sets repeat
                at = place[..., level : level + 1]
                more = np.take_along_axis(full, at, -1) + gradient[..., level : level + 1]
                np.put_along_axis(full, at, more, axis=-1)
            gradient = full
        unsorted = np.empty_like(gradient)
        np.put_along_axis(unsorted, order, gradient, axis=-1)
        turned = matmul(unsorted.swapaxes(-1, -2), self.directions.astype(gradient.dtype))
        counts = np.arange(tokens.sets.shape[3]) < tokens.lengths[..., None]
        return np.asarray(np.where(counts[..., None], turned, 0), gradient.dtype)

    def _projected(self, tokens: Tokens) -> tuple[Array, Array]:
        """Projections (…, directions, set size); +∞, which sorts last, beyond a set's end."""
        sets, lengths = tokens.sets, tokens.lengths
        size = sets.shape[3]
        turned = np.asarray(self.directions.T, sets.dtype)
        projected = np.ascontiguousarray(matmul(sets, turned).swapaxes(-1, -2))
        if not tokens.even:
            beyond = np.arange(size) >= lengths[..., None, None]
            projected = np.where(beyond, projected.dtype.type(np.inf), projected)
        return projected, lengths

    def _places(self, lengths: Array, directions: int) -> Array:
        """Which of the sorted numbers are the quantiles of levels (i + ½)/bins."""
        bins = self._config.levels
        place = ((2 * np.arange(bins) + 1) * lengths[..., None]) // (2 * bins)
        return np.repeat(place[..., None, :], directions, axis=-2)

    def _histogram(self, projected: Array, lengths: Array) -> Array:
        """Cumulative shares at the bins' upper ends, times the range: mean differences are W₁."""
        bins, bound = self._config.levels, self._config.range
        ends = np.linspace(-bound, bound, bins + 1)[1:].astype(projected.dtype)
        below = projected[..., None] <= ends
        below[..., -1] = np.isfinite(projected)  # what is beyond the last end counts there
        beyond = np.arange(projected.shape[-1]) < lengths[..., None, None]
        count = (below & beyond[..., None]).sum(axis=-2)
        share = count / lengths[..., None, None]
        return np.asarray(share * (2 * bound), projected.dtype)

    def __getstate__(self) -> dict[str, Any]:
        # Configuration decides all but the entry, which another process computes anew.
        return {"config": self._config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]


def sets_from_offsets(tokens: Any, offsets: Any) -> tuple[Array, Array]:
    """Ragged sets as rectangular ones with lengths: ``key_tokens`` and ``key_lengths``.

    Set j consists of ``tokens[offsets[j]:offsets[j + 1]]``. Returns (sets, largest size, width),
    with 0 beyond a set's end, and lengths (sets,).

    >>> import numpy as np
    >>> sets, lengths = sets_from_offsets(np.arange(5.0)[:, None], [0, 2, 5])
    >>> sets[..., 0].tolist(), lengths.tolist()
    ([[0.0, 1.0, 0.0], [2.0, 3.0, 4.0]], [2, 3])
    """
    array, ends = np.asarray(tokens), np.asarray(offsets)
    if array.ndim != 2:
        raise ShapeError("tokens", array.shape, "(tokens, width)")
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or len(ends) < 2:
        raise ArgumentError("offsets", offsets, "whole numbers, one more than there are sets")
    lengths = np.diff(ends.astype(np.int64))
    if ends[0] != 0 or ends[-1] != len(array) or lengths.min() < 1:
        raise ArgumentError("offsets", offsets, f"numbers that rise from 0 to {len(array)}")
    sets = np.zeros((len(lengths), int(lengths.max()), array.shape[1]), array.dtype)
    sets[np.arange(sets.shape[1]) < lengths[:, None]] = array
    return sets, lengths


def windows(array: Array, width: int) -> Tokens:
    """Each token's set: the last `width` tokens, its own included; the first again before it."""
    tokens = array.shape[2]
    lengths = np.full(array.shape[:3], width)
    if width == 1:
        return Tokens(array[:, :, :, None], lengths)
    place = np.maximum(np.arange(tokens)[:, None] - np.arange(width - 1, -1, -1), 0)
    return Tokens(array[:, :, place], lengths)


def windows_pullback(gradient: Array) -> Array:
    """Gradient by tokens, of one by their windows."""
    tokens, width = gradient.shape[2:4]
    found = np.zeros((*gradient.shape[:3], gradient.shape[4]), gradient.dtype)
    for back in range(width):
        part = gradient[:, :, :, width - 1 - back]
        found[:, :, : tokens - back] += part[:, :, back:]
        found[:, :, 0] += part[:, :, :back].sum(axis=2)
    return found


def _same(first: Tokens, second: Tokens) -> bool:
    if first.sets.dtype != second.sets.dtype:
        return False
    # Not equal_nan, which takes several passes: keys with NaN are projected anew.
    same = np.array_equal(first.lengths, second.lengths)
    return same and np.array_equal(first.sets, second.sets)
