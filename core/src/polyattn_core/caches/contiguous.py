"""A cache in which each sequence has a row of memory of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ArgumentError
from .base import Cache, Integers, Run, Sequences, new_lengths, whole
from .rows import Rows


class KVCache(Cache):
    """Sequences that grow, each in a row of memory.

    Parameters
    ----------
    heads, size, value_size, storage, group, rope
        See :class:`Cache`.
    batch
        Sequences, which may have different lengths.
    capacity
        Tokens that there is room for. By default room doubles when it is used up.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> flash = pa.create("flash", dim=64, heads=4, causal=True)
    >>> cache = pa.KVCache.of(flash, batch=2, storage="int8")
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 2, 4, 100, 16), np.float32)
    >>> cache.append(key[:, :, :99], value[:, :, :99])        # the prompt
    >>> cache.append(key[:, :, 99:], value[:, :, 99:])        # one token
    >>> row = flash.attend_cached(query[:, :, 99:], cache)
    >>> bool(abs(row - flash.attend(query, key, value)[:, :, 99:]).max() < 0.02)
    True
    """

    def __init__(
        self, heads: int, size: int, *, batch: int = 1, capacity: int | None = None, **options: Any
    ) -> None:
        super().__init__(heads, size, **options)
        self.batch = whole("batch", batch, 1)
        self.capacity = None if capacity is None else whole("capacity", capacity, 1)
        rows = self.capacity or 0
        self._key, self._value = (
            Rows(self.batch, self.heads, rows, size, self.storage, self.group)
            for size in (self.size, self.value_size)
        )
        self._lengths = np.zeros(self.batch, np.int64)

    @property
    def lengths(self) -> Integers:
        """Tokens of each sequence."""
        return self._lengths.copy()

    def _reserve(self, sequences: Integers, tokens: int) -> None:
        needed = int(self._lengths[sequences].max(initial=0)) + tokens
        room = self._key.data.shape[2]
        if needed <= room:
            return
        if self.capacity is not None:
            raise ArgumentError(
                "key",
                f"{tokens} more tokens, which makes {needed}",
                f"up to capacity={room} tokens",
            )
        for rows in (self._key, self._value):
            rows.grow(max(needed, 2 * room, 64))

    def _places(self, sequence: int, tokens: int) -> list[tuple[int, int, int]]:
        return [(sequence, int(self._lengths[sequence]), tokens)]

    def _advance(self, sequences: Integers, tokens: int) -> None:
        self._lengths[sequences] += tokens

    def _runs(self, sequence: int, queries: int | None) -> list[Run]:
        length = int(self._lengths[sequence])
        return [(sequence, 0, 0, length)] if length else []

    def reset(self, sequences: Sequences = None) -> None:
        self._lengths[self.chosen(sequences)] = 0

    def truncate(self, lengths: Any, sequences: Sequences = None) -> None:
        chosen = self.chosen(sequences)
        self._lengths[chosen] = new_lengths(lengths, len(chosen), self._lengths[chosen])

    def _options(self) -> dict[str, Any]:
        return {"batch": self.batch, "capacity": self.capacity}

    def _counts(self) -> dict[str, Array]:
        return {"lengths": self._lengths}

    def _restore(self, counts: Mapping[str, Array]) -> None:
        self._lengths = checked_lengths(counts["lengths"], self.batch)
        if len(self) > self._key.data.shape[2]:
            raise ArgumentError(
                "lengths", self._lengths, "at most as many tokens as there are rows"
            )


def checked_lengths(lengths: Array, count: int) -> Integers:
    """Lengths from a file."""
    if lengths.shape != (count,) or lengths.dtype != np.int64 or (lengths < 0).any():
        raise ArgumentError("lengths", lengths, f"{count} whole numbers")
    return np.array(lengths)
