"""From data as found to data that a comparison can run on, or an error that says why not."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, DataError

from .data import Dataset, as_vectors
from .settings import Settings, TaskName

VALIDATION = 0.25
"""Share of the training data that sharpness is tuned on."""
HIDDEN = 0.25
"""Share of the coordinates that are hidden where there are no labels."""


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """Data that a comparison runs on."""

    vectors: Array
    """(samples, coordinates) in float64, all finite."""
    target: Array | None
    """Class indices, numbers, or nothing where coordinates are hidden."""
    classes: tuple[str, ...]
    task: TaskName
    rows: Array
    """Where each sample was in the data as found."""
    notes: tuple[str, ...]


def check(data: Dataset, settings: Settings) -> Checked:
    """Check data and draw a subsample of them if they are many.

    Raises
    ------
    DataError
        Naming what is wrong, where it is, and what is accepted.
    """
    array = as_vectors(data.vectors)
    labels = None if settings.task == "reconstruction" else _as_labels(data.labels, len(array))
    task = _task(labels, settings)
    target: Array | None
    if task == "classification":
        assert labels is not None
        names, target = _classes(labels)
        _check_counts(names, target, len(array), settings)
    else:
        names = ()
        target = None if labels is None else _as_target(labels)
        _check_samples(len(array), settings)
    notes = list(data.notes)
    rows = np.arange(len(array))
    if settings.limit and len(array) > settings.limit:
        rows = _subsample(rows, target if names else None, settings)
        notes.append(
            f"a random {len(rows):,} of {len(array):,} samples were used (--limit 0 takes all)"
        )
        target = None if target is None else target[rows]
        if names:
            assert target is not None
            _check_counts(names, target, len(rows), settings)
    vectors = np.asarray(array[rows], np.float64)
    check_finite(vectors, rows, data.columns)
    varying = int((vectors.max(axis=0) > vectors.min(axis=0)).sum())
    if varying == 0:
        raise DataError("data", "the same vector in every row", "vectors that differ")
    if task == "reconstruction" and varying < 2:
        held = f"{varying} coordinate that varies, and no labels"
        raise DataError("data", held, "labels, or at least 2 coordinates that vary")
    if settings.dtype == "float32" and settings.scale == "none":
        largest = float(np.abs(vectors).max())
        # Scores multiply two of them.
        if largest > 1e18:
            accepted = "values that can be squared in float32, --scale standard or --dtype float64"
            raise DataError("data", f"a value of {largest:.3g}", accepted)
    return Checked(vectors, target, names, task, rows, tuple(notes))


def _as_labels(labels: Any, samples: int) -> Array | None:
    if labels is None:
        return None
    try:
        array = np.asarray(labels)
    except (ValueError, TypeError):
        raise DataError("labels", "rows of different length", "one label for each sample") from None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError("labels", f"shape {array.shape}", f"{samples} labels on one axis")
    if len(array) != samples:
        raise DataError("labels", f"{len(array)} labels", f"{samples}, one for each sample")
    if array.dtype.kind == "O":
        missing = np.array([value is None or value != value for value in array])
        if missing.any():
            held = f"{missing.sum()} missing, the first in row {np.flatnonzero(missing)[0]}"
            raise DataError("labels", held, "a label for every sample")
        array = array.astype(str)
    if array.dtype.kind not in "iubfUS":
        raise DataError("labels", f"dtype {array.dtype}", "integers, text, or real numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array))
        held = f"{len(bad)} that are not finite, the first ({array[bad[0]]}) in row {bad[0]}"
        raise DataError("labels", held, "a label for every sample")
    return array


def _task(labels: Array | None, settings: Settings) -> TaskName:
    asked = settings.task
    if labels is None:
        if asked in ("classification", "regression"):
            raise DataError("labels", "none", f"labels, for {asked}")
        return "reconstruction"
    if asked != "auto":
        return asked
    # Fractions are measurements, not names of classes.
    fractions = labels.dtype.kind == "f" and bool((labels != np.round(labels)).any())
    many = labels.dtype.kind in "iuf" and len(np.unique(labels)) > max(20, len(labels) // 10)
    return "regression" if fractions or many else "classification"


def _classes(labels: Array) -> tuple[tuple[str, ...], Array]:
    if labels.dtype.kind == "f" and (labels == np.round(labels)).all():
        labels = labels.astype(np.int64)
    names, indices = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        held = f"one class, {names[0]!s}" if len(names) else "no class"
        raise DataError("labels", held, "at least 2 classes (or no labels: --task reconstruction)")
    texts = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
    return tuple(str(text) for text in texts), indices


def _as_target(labels: Array) -> Array:
    if labels.dtype.kind in "US":
        accepted = "numbers, for regression (--task classification takes text)"
        raise DataError("labels", f"text such as {labels[0]!s}", accepted)
    target = labels.astype(np.float64)
    if target.min() == target.max():
        raise DataError("labels", f"{target[0]:g} for every sample", "numbers that differ")
    return target


def _check_counts(names: tuple[str, ...], target: Array, samples: int, settings: Settings) -> None:
    """Is every class large enough to be in every part of every split?"""
    counts = np.bincount(target, minlength=len(names))
    share = settings.test_size
    least = next(size for size in itertools.count(2) if size - math.ceil(size * share) >= 2)
    smallest = int(counts.argmin())
    if counts[smallest] < least:
        few = int((counts < least).sum())
        others = f" (and {few - 1} more classes as small)" if few > 1 else ""
        raise DataError(
            "labels",
            f"{counts[smallest]} of class {names[smallest]}{others}",
            f"at least {least} of each class, so that training, validation and test data hold it",
        )
    test = math.ceil(samples * settings.test_size)
    validation = math.floor((samples - test) * VALIDATION)
    train = samples - test - validation
    smallest_part = min(test, validation, train)
    if smallest_part < len(names):
        raise DataError(
            "data",
            f"{samples} samples of {len(names)} classes, so that a part of a split holds only "
            f"{smallest_part}",
            "more samples, fewer classes, or another --test-size",
        )


def _check_samples(samples: int, settings: Settings) -> None:
    test = math.ceil(samples * settings.test_size)
    validation = math.floor((samples - test) * VALIDATION)
    if min(test, validation) < 2 or samples - test - validation < 4:
        raise DataError(
            "data",
            f"{samples} samples",
            "enough for 2 in the test and validation part and 4 to train on, in every split",
        )


def _subsample(rows: Array, classes: Array | None, settings: Settings) -> Array:
    from sklearn.model_selection import train_test_split

    try:
        kept, _ = train_test_split(
            rows, train_size=settings.limit, random_state=settings.seed, stratify=classes
        )
    except ValueError as error:
        raise ArgumentError("limit", settings.limit, f"more samples: {error}") from None
    return np.sort(kept)


def check_finite(vectors: Array, rows: Array, columns: tuple[str, ...]) -> None:
    """Refuse what is not finite, and say where the first such value is."""
    bad = ~np.isfinite(vectors)
    if not bad.any():
        return
    row, column = (int(index) for index in np.argwhere(bad)[0])
    where = f"column {columns[column]!r}" if columns else f"column {column}"
    value = f"{bad.sum():,} values that are not finite"
    raise DataError(
        "data",
        f"{value}, the first ({vectors[row, column]}) in row {rows[row]}, {where}",
        "finite numbers: remove or fill the missing ones",
    )
