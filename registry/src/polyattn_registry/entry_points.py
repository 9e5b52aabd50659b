"""The only reader of entry points: who claims to be a plugin, without importing any of them."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import importlib_metadata

from polyattn_core.hooks import ENTRY_POINT_GROUP

from .names import fold, normalise_distribution

logger = logging.getLogger("polyattn.registry")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry point of the group ``polyattn.plugins``: a plugin that was not loaded yet."""

    family: str
    distribution: str
    """Normalised name of the distribution that really provides the entry point."""
    version: str = ""
    summary: str = ""
    entry: importlib_metadata.EntryPoint | None = None
    problem: str = ""
    """Why it cannot be loaded, where the metadata itself is damaged."""

    def load(self) -> object:
        """Import the manifest. Raises whatever the manifest raises."""
        assert self.entry is not None, self.problem
        try:
            module = self.entry.module
        except Exception as error:  # importlib-metadata changed the class of this error over time
            raise ImportError(
                f"the entry point value {self.entry.value!r} is not of the form 'package.module'"
            ) from error
        if not module:
            raise ImportError("its entry point has no value")
        manifest: object = self.entry.load()
        return manifest


def candidates(path: Sequence[str] | None = None) -> list[Candidate]:
    """Every plugin that is installed, each once, in the order of `path` (`sys.path` by default).

    A distribution that is found twice, as an editable install next to its build metadata is,
    counts where it is found first, as it does for imports.
    """
    context = {} if path is None else {"path": list(path)}
    found: list[Candidate] = []
    seen: set[str] = set()
    for distribution in importlib_metadata.distributions(**context):
        # Most distributions are not ours. Looking for the group in the text is far cheaper than
        # parsing the metadata and the entry points of each.
        try:
            text = distribution.read_text("entry_points.txt")
        except Exception:
            logger.warning("cannot read the entry points of %s", distribution, exc_info=True)
            continue
        if not text or ENTRY_POINT_GROUP not in text:
            continue
        of_distribution = list(dict.fromkeys(_read(distribution)))
        if of_distribution and of_distribution[0].distribution not in seen:
            seen.add(of_distribution[0].distribution)
            found += of_distribution
    return found


def forget() -> None:
    """Drop the caches of the import system, so that what was just installed is found."""
    importlib.invalidate_caches()


def _read(distribution: importlib_metadata.IDistribution) -> Iterator[Candidate]:
    try:
        name = normalise_distribution(distribution.name)
        version = distribution.version or ""
        summary = distribution.metadata.get("Summary") or ""
    except Exception as error:
        problem = f"the metadata of {distribution} is damaged: {error!r}"
        yield Candidate("", str(distribution), problem=problem)
        return
    try:
        entries = list(distribution.entry_points)
    except Exception as error:
        problem = f"entry_points.txt of {name} is damaged: {error!r}"
        yield Candidate("", name, version, summary, problem=problem)
        return
    for entry in entries:
        if entry.group == ENTRY_POINT_GROUP:
            yield Candidate(fold(entry.name), name, version, summary, entry)
