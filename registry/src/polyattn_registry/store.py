"""Entries of any kind, found by full name, short name or alias."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from polyattn_core.errors import DuplicateNameError
from polyattn_core.spec import EntrySpec


@dataclass(frozen=True, slots=True)
class _Record:
    entry: EntrySpec
    owner: str


class Store:
    """What is registered. Holds the entries; which of several to prefer is not decided here.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_path: dict[tuple[str, str], _Record] = {}
        self._claims: dict[tuple[str, str], tuple[str, ...]] = {}

    def add(self, entries: Iterable[EntrySpec], owner: str) -> None:
        """Add all of the entries, or none.

        Raises
        ------
        DuplicateNameError
            If the full name, or an alias within the family, of one of them is taken.
        """
        new: dict[tuple[str, str], _Record] = {}
        with self._lock:
            for entry in entries:
                for path in _paths(entry):
                    key = (entry.kind, path)
                    taken = self._by_path.get(key) or new.get(key)
                    if taken is not None:
                        raise DuplicateNameError(entry.kind, path, taken.owner)
                    new[key] = _Record(entry, owner)
            self._by_path.update(new)
            for kind, path in new:
                claim = (kind, path.partition("/")[2])
                full_name = new[kind, path].entry.full_name
                self._claims[claim] = (*self._claims.get(claim, ()), full_name)

    def remove(self, entry: EntrySpec) -> None:
        """Take an entry out again; nothing happens where it is not in."""
        with self._lock:
            for path in _paths(entry):
                record = self._by_path.get((entry.kind, path))
                if record is None or record.entry is not entry:
                    continue
                del self._by_path[entry.kind, path]
                claim = (entry.kind, path.partition("/")[2])
                left = tuple(c for c in self._claims[claim] if c != entry.full_name)
                if left:
                    self._claims[claim] = left
                else:
                    del self._claims[claim]

    def get(self, kind: str, path: str) -> EntrySpec | None:
        """The entry called ``family/name`` or ``family/alias``."""
        record = self._by_path.get((kind, path))
        return None if record is None else record.entry

    def claims(self, kind: str, short: str) -> tuple[str, ...]:
        """Full names of the entries that go by a short name or alias."""
        return self._claims.get((kind, short), ())

    def short_names(self, kind: str) -> list[str]:
        """All short names and aliases of a kind."""
        with self._lock:
            return [short for of_kind, short in self._claims if of_kind == kind]

    def entries(self, kind: str) -> list[EntrySpec]:
        """All entries of a kind, each once."""
        with self._lock:
            return [
                record.entry
                for (of_kind, path), record in self._by_path.items()
                if of_kind == kind and path == record.entry.full_name
            ]

    def families(self) -> set[str]:
        """Families that have an entry of any kind."""
        with self._lock:
            return {record.entry.family for record in self._by_path.values()}


def _paths(entry: EntrySpec) -> list[str]:
    return [entry.full_name, *(f"{entry.family}/{alias}" for alias in entry.aliases)]
