"""Seeded splits of the data, scaled and laid out for attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import DataError

from ._checks import HIDDEN, VALIDATION, Checked
from .settings import Settings

SEARCH_QUERIES = 400
"""Validation vectors that tune sharpness: from so many validation parts, at most that many."""
SEARCH_KEYS = 1500
"""Training vectors that they attend over, at most."""
MOST_PARTS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Queries that attend over keys; the targets of both in float64, or class indices."""

    query: Array
    key: Array
    query_target: Array
    key_target: Array


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """One split: test over training vectors, and within these validation over the rest.

    Where data are few there are several validation parts, as one would be too small to choose by.
    """

    test: Part
    validation: tuple[Part, ...]
    test_rows: Array
    """Rows of the checked data that are tested."""
    hidden: Array
    """Coordinates that are predicted; empty where there are labels."""


def make_folds(data: Checked, settings: Settings) -> list[Fold]:
    """All splits. The same data, seed and sizes give the same splits for every mechanism."""
    from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

    classified = data.task == "classification"
    splitter = StratifiedShuffleSplit if classified else ShuffleSplit
    strata = data.target if classified else None
    outer = splitter(
        n_splits=settings.splits, test_size=settings.test_size, random_state=settings.seed
    )
    folds = []
    try:
        for number, (train, test) in enumerate(outer.split(data.vectors, strata)):
            held = max(1, int(VALIDATION * len(train)))
            inner = splitter(
                n_splits=min(MOST_PARTS, math.ceil(SEARCH_QUERIES / held)),
                test_size=VALIDATION,
                random_state=(settings.seed + number) % (1 << 32),
            )
            within = None if strata is None else strata[train]
            parts = [
                (train[rest], train[validation])
                for rest, validation in inner.split(data.vectors[train], within)
            ]
            folds.append(_fold(data, settings, number, train, test, parts))
    except ValueError as error:
        raise DataError("data", f"{len(data.vectors)} samples", f"other samples: {error}") from None
    return folds


def _fold(
    data: Checked,
    settings: Settings,
    number: int,
    train: Array,
    test: Array,
    parts: Sequence[tuple[Array, Array]],
) -> Fold:
    vectors, hidden = data.vectors, np.zeros(0, np.int64)
    if data.task == "reconstruction":
        hidden = _hidden(vectors, np.random.default_rng((settings.seed, number)))
        target = vectors[:, hidden]
        vectors = np.delete(vectors, hidden, axis=1)
    else:
        assert data.target is not None
        target = data.target
    scaled = _scaled(vectors, train, settings.scale).astype(settings.dtype)
    if data.task != "classification":
        target = _scaled(target.reshape(len(target), -1), train, "standard")

    def part(queries: Array, keys: Array) -> Part:
        return Part(scaled[queries], scaled[keys], target[queries], target[keys])

    validation = tuple(part(held[:SEARCH_QUERIES], rest[:SEARCH_KEYS]) for rest, held in parts)
    return Fold(part(test, train), validation, test, hidden)


def _hidden(vectors: Array, rng: np.random.Generator) -> Array:
    """A random quarter of the coordinates that vary, at least one, never all."""
    varying = np.flatnonzero(vectors.max(axis=0) > vectors.min(axis=0))
    count = min(max(1, round(HIDDEN * len(varying))), len(varying) - 1)
    return np.sort(rng.choice(varying, count, replace=False))


def _scaled(vectors: Array, train: Array, scale: str) -> Array:
    from sklearn.preprocessing import StandardScaler, normalize

    if scale == "standard":
        found: Array = StandardScaler().fit(vectors[train]).transform(vectors)
        return found
    if scale == "unit":
        unit: Array = normalize(vectors)
        return unit
    return vectors
