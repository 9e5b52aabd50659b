"""A cache in pages of one pool, which sequences may share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ArgumentError
from .base import Cache, Integers, Run, Sequences, new_lengths, whole
from .rows import Rows


class PagedCache(Cache):
    """Sequences in pages of one pool, which may share those of a common beginning.

    Sequences come with :meth:`add` and :meth:`fork` and go with :meth:`release`; no memory is set
    aside for how long they may get. A page is copied before a token is added to it that not all
    of its sequences have.

    Parameters
    ----------
    heads, size, value_size, storage, group, rope
        See :class:`Cache`.
    pages
        Pages in the pool.
    page_size
        Tokens of a page.

    References
    ----------
    Kwon et al., Efficient memory management for large language model serving with
    PagedAttention, arXiv:2309.06180.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> cache = pa.PagedCache(2, 16, pages=8, page_size=16)
    >>> prompt = cache.add()
    >>> tokens = np.ones((2, 40, 16), np.float32)
    >>> cache.append(tokens, tokens, prompt)
    >>> answers = [cache.fork(prompt) for _ in range(3)]
    >>> cache.append(np.ones((3, 2, 1, 16)), np.ones((3, 2, 1, 16)), answers)
    >>> cache.lengths, cache.free_pages          # three pages of the prompt, and three copies
    (array([40, 41, 41, 41]), 2)
    """

    def __init__(
        self, heads: int, size: int, *, pages: int, page_size: int = 64, **options: Any
    ) -> None:
        super().__init__(heads, size, **options)
        self.pages = whole("pages", pages, 1)
        self.page_size = whole("page_size", page_size, 1)
        self._key, self._value = (
            Rows(self.pages, self.heads, self.page_size, size, self.storage, self.group)
            for size in (self.size, self.value_size)
        )
        self._tables: dict[int, list[int]] = {}
        self._counted: dict[int, int] = {}
        self._users = np.zeros(self.pages, np.int64)

    @property
    def lengths(self) -> Integers:
        """Tokens of each sequence by its number; 0 for numbers that are not in use."""
        numbers = range(max(self._counted, default=-1) + 1)
        return np.array([self._counted.get(number, 0) for number in numbers], np.int64)

    @property
    def sequences(self) -> list[int]:
        """Numbers of the sequences there are."""
        return sorted(self._counted)

    @property
    def free_pages(self) -> int:
        """Pages that no sequence uses."""
        return int((self._users == 0).sum())

    def table(self, sequence: int) -> list[int]:
        """The pages of a sequence, in order."""
        (own,) = self.chosen(sequence)
        return list(self._tables[int(own)])

    def chosen(self, sequences: Sequences) -> Integers:
        if sequences is None:
            return np.array(self.sequences, np.int64)
        chosen = super().chosen(sequences)
        for sequence in chosen:
            if int(sequence) not in self._counted:
                raise ArgumentError("sequences", int(sequence), f"among {self.sequences}")
        return chosen

    def add(self) -> int:
        """A new sequence, without tokens; returns its number."""
        number = next(n for n in range(len(self._counted) + 1) if n not in self._counted)
        self._tables[number], self._counted[number] = [], 0
        return number

    def fork(self, sequence: int, length: int | None = None) -> int:
        """A new sequence that begins like another, up to a length; returns its number."""
        (own,) = self.chosen(sequence)
        most = self._counted[int(own)]
        length = most if length is None else whole("length", length, 0, most)
        number = self.add()
        self._tables[number] = self._tables[int(own)][: -(-length // self.page_size)]
        self._counted[number] = length
        self._users[self._tables[number]] += 1
        return number

    def release(self, sequences: Sequences = None) -> None:
        """Do away with sequences, or with all; pages that nobody else uses become free."""
        self.reset(sequences)
        for sequence in self.chosen(sequences):
            del self._tables[int(sequence)], self._counted[int(sequence)]

    def reset(self, sequences: Sequences = None) -> None:
        self.truncate(0, sequences)

    def truncate(self, lengths: Any, sequences: Sequences = None) -> None:
        chosen = self.chosen(sequences)
        current = np.array([self._counted[int(s)] for s in chosen], np.int64)
        wanted = new_lengths(lengths, len(chosen), current)
        for sequence, length in zip(chosen.tolist(), wanted.tolist(), strict=True):
            kept = -(-length // self.page_size)
            self._users[self._tables[sequence][kept:]] -= 1
            del self._tables[sequence][kept:]
            self._counted[sequence] = length

    def _reserve(self, sequences: Integers, tokens: int) -> None:
        users, copies, more = self._users.copy(), [], {}
        for sequence in sequences.tolist():
            table, length = self._tables[sequence], self._counted[sequence]
            if length % self.page_size and tokens and users[table[-1]] > 1:
                users[table[-1]] -= 1
                copies.append(sequence)
            more[sequence] = -(-(length + tokens) // self.page_size) - len(table)
        free = np.flatnonzero(self._users == 0).tolist()
        needed = len(copies) + sum(more.values())
        if needed > len(free):
            raise ArgumentError(
                "key", f"{tokens} tokens, which need {needed} more pages",
                f"up to what the {len(free)} free ones of {self.pages} hold",
            )  # fmt: skip
        for sequence in copies:
            old, new = self._tables[sequence][-1], free.pop(0)
            for rows in (self._key, self._value):
                rows.copy(old, new, self._counted[sequence] % self.page_size)
            self._users[old] -= 1
            self._users[new] = 1
            self._tables[sequence][-1] = new
        for sequence, count in more.items():
            taken = [free.pop(0) for _ in range(count)]
            self._users[taken] = 1
            self._tables[sequence] += taken

    def _places(self, sequence: int, tokens: int) -> list[tuple[int, int, int]]:
        start = self._counted[sequence]
        return [(unit, row, count) for unit, row, _, count in self._spans(sequence, start, tokens)]

    def _spans(self, sequence: int, position: int, count: int) -> list[Run]:
        found, table, end = [], self._tables[sequence], position + count
        while position < end:
            page, row = divmod(position, self.page_size)
            here = min(self.page_size - row, end - position)
            found.append((table[page], row, position, here))
            position += here
        return found

    def _advance(self, sequences: Integers, tokens: int) -> None:
        for sequence in sequences.tolist():
            self._counted[sequence] += tokens

    def _runs(self, sequence: int, queries: int | None) -> list[Run]:
        return self._spans(sequence, 0, self._counted[sequence])

    def _options(self) -> dict[str, Any]:
        return {"pages": self.pages, "page_size": self.page_size}

    def _counts(self) -> dict[str, Array]:
        numbers = range(max(self._counted, default=-1) + 1)
        tables = np.full((len(numbers), max(map(len, self._tables.values()), default=0)), -1)
        for number, table in self._tables.items():
            tables[number, : len(table)] = table
        lengths = np.array([self._counted.get(n, -1) for n in numbers], np.int64)
        return {"lengths": lengths, "tables": tables}

    def _restore(self, counts: Mapping[str, Array]) -> None:
        lengths, tables = counts["lengths"], counts["tables"]
        for number, length in enumerate(lengths.tolist()):
            if length < 0:
                continue
            table = tables[number, : -(-length // self.page_size)]
            if len(table) * self.page_size < length or ((table < 0) | (table >= self.pages)).any():
                raise ArgumentError("tables", table, f"pages among {self.pages}, as many as needed")
            self._tables[number], self._counted[number] = table.tolist(), length
            self._users[table] += 1
