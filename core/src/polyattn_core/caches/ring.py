"""A cache of the last keys of endless sequences, and of the first ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..arrays import Array
from ..errors import ArgumentError
from ..masks import Causal, Mask, Prefix, Window
from .base import Cache, Integers, Part, Run, Sequences, new_lengths, whole
from .contiguous import checked_lengths
from .rows import Rows


class RingCache(Cache):
    """The last keys of endless sequences, and the first ones: attention sinks.

    A query sees keys j up to its own position i with i − j < window or j < sinks: what the
    mechanism ``streaming`` computes for the whole text, in memory that does not grow.

    Parameters
    ----------
    heads, size, value_size, storage, group, rope
        See :class:`Cache`.
    window
        Last keys that a query sees, its own among them.
    sinks
        First keys, which it sees too.
    chunk
        Most tokens that are appended at a time, and most queries that attend at a time, once keys
        have been overwritten.
    batch
        Sequences.
    positions
        What ``rope`` counts: tokens of the text, or, as Xiao et al. do, those held: then sinks
        never seem further away than the window is long.

    References
    ----------
    Xiao et al., Efficient streaming language models with attention sinks, arXiv:2309.17453.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> streaming = pa.create("streaming", dim=8, window=4, sinks=2)
    >>> cache = pa.RingCache.of(streaming, window=4, sinks=2)
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 1, 1, 50, 8))
    >>> rows = []
    >>> for i in range(50):
    ...     cache.append(key[:, :, i : i + 1], value[:, :, i : i + 1])
    ...     row = streaming.attend_cached(query[:, :, i : i + 1].astype(np.float32), cache)
    ...     rows.append(row)
    >>> np.allclose(np.concatenate(rows, 2), streaming.attend(query, key, value), atol=1e-5)
    True
    """

    def __init__(
        self,
        heads: int,
        size: int,
        *,
        window: int,
        sinks: int = 0,
        chunk: int = 1,
        batch: int = 1,
        positions: Literal["text", "cache"] = "text",
        **options: Any,
    ) -> None:
        super().__init__(heads, size, **options)
        self.window = whole("window", window, 1)
        self.sinks = whole("sinks", sinks, 0)
        self.chunk = whole("chunk", chunk, 1)
        self.batch = whole("batch", batch, 1)
        if positions not in ("text", "cache"):
            raise ArgumentError("positions", positions, "'text' or 'cache'")
        if positions == "cache" and self.rope is None:
            raise ArgumentError("positions", positions, "'text', or rope= for positions to act on")
        self.positions = positions
        self._ring = self.window + self.chunk - 1
        self._key, self._value = (
            Rows(self.batch, self.heads, self.sinks + self._ring, size, self.storage, self.group)
            for size in (self.size, self.value_size)
        )
        self._lengths = np.zeros(self.batch, np.int64)
        # Positions before it, beyond the sinks, have been overwritten.
        self._oldest = np.full(self.batch, self.sinks)

    @property
    def lengths(self) -> Integers:
        """Tokens that each sequence has had, most of them no longer held."""
        return self._lengths.copy()

    def _reserve(self, sequences: Integers, tokens: int) -> None:
        longest = int(self._lengths[sequences].max(initial=0)) + tokens
        if tokens > self.chunk and longest > self.sinks + self._ring:
            raise ArgumentError("key", f"{tokens} tokens", f"up to chunk={self.chunk} at a time")

    def _places(self, sequence: int, tokens: int) -> list[tuple[int, int, int]]:
        return self._slots(sequence, int(self._lengths[sequence]), tokens)

    def _slots(self, sequence: int, position: int, count: int) -> list[tuple[int, int, int]]:
        """(unit, row, count) of tokens from a position on."""
        found = []
        while count > 0:
            if position < self.sinks:
                row, room = position, self.sinks - position
            else:
                turn = (position - self.sinks) % self._ring
                row, room = self.sinks + turn, self._ring - turn
            here = min(count, room)
            found.append((sequence, row, here))
            position, count = position + here, count - here
        return found

    def _advance(self, sequences: Integers, tokens: int) -> None:
        self._lengths[sequences] += tokens
        held = self._lengths[sequences] - self._ring
        self._oldest[sequences] = np.maximum(self._oldest[sequences], held)

    def _runs(self, sequence: int, queries: int | None) -> list[Run]:
        length, oldest = int(self._lengths[sequence]), int(self._oldest[sequence])
        first = oldest
        if queries is not None:
            first = max(self.sinks, length - queries - self.window + 1)
        if first < oldest:
            raise ArgumentError("query", f"{queries} queries", f"up to chunk={self.chunk}")
        found = []
        for position, end in ((0, min(length, self.sinks)), (first, length)):
            for unit, row, count in self._slots(sequence, position, end - position):
                found.append((unit, row, position, count))
                position += count
        return found

    def mask(self, queries: int) -> Mask | None:
        if queries == 1:  # which sees all that `_runs` gives
            return None
        near = Window(self.window - 1, 0)
        return Causal() & (near | Prefix(self.sinks)) if self.sinks else near

    def parts(self, sequences: Integers, queries: int) -> list[Part]:
        if self.positions == "text" or not self.sinks:
            return super().parts(sequences, queries)
        # Keys of the window keep their distances to the query. The sinks come nearer.
        found = [self._runs(int(sequence), queries) for sequence in sequences]
        sinks = [[run for run in runs if run[2] < self.sinks] for runs in found]
        window = [[run for run in runs if run[2] >= self.sinks] for runs in found]
        near = self._part(window, self.lengths[sequences][:, None] - queries, queries)
        far = self._part(sinks, self.lengths[sequences][:, None] - queries, queries)
        np.minimum(far.rotations, self.sinks + self.window - 1, out=far.rotations)
        return [far, near]

    def reset(self, sequences: Sequences = None) -> None:
        chosen = self.chosen(sequences)
        self._lengths[chosen] = 0
        self._oldest[chosen] = self.sinks

    def truncate(self, lengths: Any, sequences: Sequences = None) -> None:
        chosen = self.chosen(sequences)
        wanted = new_lengths(lengths, len(chosen), self._lengths[chosen])
        oldest = self._oldest[chosen]
        whole_again = wanted <= self.sinks
        if ((np.maximum(wanted - self.window, self.sinks) < oldest) & ~whole_again).any():
            raise ArgumentError(
                "lengths", lengths, "lengths whose windows have not been overwritten in part"
            )
        self._oldest[chosen] = np.where(whole_again, self.sinks, oldest)
        self._lengths[chosen] = wanted

    def _options(self) -> dict[str, Any]:
        return {
            "window": self.window, "sinks": self.sinks, "chunk": self.chunk, "batch": self.batch,
            "positions": self.positions,
        }  # fmt: skip

    def _counts(self) -> dict[str, Array]:
        return {"lengths": self._lengths, "oldest": self._oldest}

    def _restore(self, counts: Mapping[str, Array]) -> None:
        self._lengths = checked_lengths(counts["lengths"], self.batch)
        self._oldest = checked_lengths(counts["oldest"], self.batch)
        least = np.maximum(self._lengths - self._ring, self.sinks)
        if (self._oldest < least).any():
            raise ArgumentError("oldest", self._oldest, f"at least {least}")
