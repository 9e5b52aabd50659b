"""Names as people write them: parsing, folding, ordering, and guessing what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from polyattn_core.errors import ArgumentError

_SYNTAX = "a name of the form [family/]name[@preset]"
_SEPARATORS = re.compile(r"[-_.]+")
_WORDS = re.compile(r"[-/]")
_NEAR, _FAR = 0.8, 0.65  # similarity above which a name is a slip of the keys, is a guess
_DISTRACTING = 0.02
_DIGITS = re.compile(r"([0-9]+)")
_FOLDING = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", "abcdefghijklmnopqrstuvwxyz-")


class Name(NamedTuple):
    """A name taken apart; `family` and `preset` are empty where they were not written."""

    family: str
    short: str
    preset: str = ""

    @property
    def path(self) -> str:
        """The name without its preset."""
        return f"{self.family}/{self.short}" if self.family else self.short


def fold(text: str) -> str:
    """Fold case and underscores: what look-up compares.

    Only ASCII letters are folded, because only they are permitted in names.

    >>> fold("Sliced_Wasserstein")
    'sliced-wasserstein'
    """
    return text.translate(_FOLDING)


def parse(text: str, argument: str = "name") -> Name:
    """Take ``[family/]name[@preset]`` apart and fold it.

    Raises
    ------
    ArgumentError
        If a part is empty, or there is more than one slash or at sign.

    Examples
    --------
    >>> parse("Standard/multi_head@bert-base")
    Name(family='standard', short='multi-head', preset='bert-base')
    """
    if not isinstance(text, str):
        raise ArgumentError(argument, text, _SYNTAX)
    path, at, preset = fold(text).partition("@")
    family, slash, short = path.rpartition("/")
    # The preset may be a full name itself, so it may hold one slash.
    preset_family, preset_slash, preset_short = preset.rpartition("/")
    required = (
        short,
        family or not slash,
        preset_short or not at,
        preset_family or not preset_slash,
    )
    if not all(required) or "/" in family or "/" in preset_family or "@" in preset:
        raise ArgumentError(argument, text, _SYNTAX)
    return Name(family, short, preset)


def normalise_distribution(name: str) -> str:
    """The name of a distribution as package indexes compare it.

    >>> normalise_distribution("Acme_Attention")
    'acme-attention'
    """
    return _SEPARATORS.sub("-", name).lower()


def natural_key(text: str) -> tuple[str | int, ...]:
    """Sort key under which numbers inside names count as numbers.

    >>> sorted(["gat10", "gat2", "gat"], key=natural_key)
    ['gat', 'gat2', 'gat10']
    """
    # Splitting on a group alternates text and digits, so like is only compared with like.
    return tuple(int(p) if i % 2 else p for i, p in enumerate(_DIGITS.split(text)))


def closest(text: str, known: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """The known names that were probably meant, best first; none where nothing is near.

    A slip of the keys is looked for first, then a name of which some words were left out or added.

    >>> closest("flsh", ["flash", "linear", "lsh"])
    ('flash',)
    >>> closest("wasserstein", ["sliced-wasserstein", "sinkhorn"])
    ('sliced-wasserstein',)
    """
    import difflib

    def similarity(name: str) -> float:
        return difflib.SequenceMatcher(None, text, name).ratio()

    candidates = sorted(set(known) - {text}, key=natural_key)
    near = difflib.get_close_matches(text, candidates, n=limit, cutoff=_FAR)
    best = similarity(near[0]) if near else 0.0
    if best < _NEAR:
        words = set(_WORDS.split(text))
        split = {name: set(_WORDS.split(name)) for name in candidates}
        covered = [name for name in candidates if words <= split[name] or words >= split[name]]
        if covered:
            return tuple(covered[:limit])
    # What is clearly worse than the best guess would only distract from it.
    return tuple(name for name in near if similarity(name) > best - _DISTRACTING)
