"""Data sets to compare on: bundled ones, the user's files and arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import DataError

from . import _readers
from ._bundled import BUNDLED, Bundled


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Vectors with or without labels, as they were found."""

    name: str
    vectors: Any
    """(samples, coordinates) once checked."""
    labels: Any = None
    columns: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    """What the command line takes to load it again; empty for arrays."""
    description: str = ""
    notes: tuple[str, ...] = ()


def bundled() -> tuple[Bundled, ...]:
    """The data sets that are loaded by name."""
    return tuple(BUNDLED.values())


def load(data: Any, labels: Any = None) -> Dataset:
    """Find data: a bundled name, a file, or arrays as they are.

    Parameters
    ----------
    data
        Name of a bundled data set; path of a .npy, .npz, .csv, .tsv or .parquet file; an array or
        anything NumPy makes one of.
    labels
        An array; the name of a column (.csv, .tsv, .parquet) or array (.npz); or the path of a
        file of labels. By default, a column or array called y, label, labels, target, targets
        or class.

    Raises
    ------
    DataError
        If a file is missing or of a format that is not read, or what it holds is not a table of
        numbers.
    """
    if not isinstance(data, str | Path):
        return Dataset("your array", data, _given_labels(labels))
    name = str(data)
    if name in BUNDLED:
        entry = BUNDLED[name]
        vectors, own, columns = entry.load()
        chosen = own if labels is None else _given_labels(labels)
        return Dataset(name, vectors, chosen, columns, _arguments(name, labels), entry.description)
    path = Path(data)
    if not path.suffix and not path.exists():
        raise DataError(
            "data", name, f"a bundled data set ({', '.join(BUNDLED)}), or the path of a file "
            f"ending in {', '.join(_readers.SUFFIXES)}"
        )  # fmt: skip
    label_file = _label_file(labels, path)
    column = labels if isinstance(labels, str) and label_file is None else None
    content = _readers.read(path, column)
    if label_file is not None:
        found: Any = _readers.read_labels(label_file)
    elif labels is not None and not isinstance(labels, str):
        found = labels
    else:
        found = content.labels
    notes = []
    if content.used and labels is None:
        notes.append(f"{content.used!r} holds the labels")
    if content.unused:
        notes.append(f"not used: {', '.join(content.unused)}")
    return Dataset(
        path.name, content.vectors, found, content.columns, _arguments(name, labels),
        notes=tuple(notes),
    )  # fmt: skip


def _arguments(name: str, labels: Any) -> tuple[str, ...]:
    if labels is None:
        return (name,)
    return (name, "--labels", str(labels)) if isinstance(labels, str | Path) else ()


def _given_labels(labels: Any) -> Any:
    if isinstance(labels, str | Path):
        path = Path(labels)
        if path.is_file():
            return _readers.read_labels(path)
        raise DataError("labels", str(labels), "an array, or the path of a file of labels")
    return labels


def _label_file(labels: Any, data: Path) -> Path | None:
    """The file that `labels` means, if it means one and not a column of the data."""
    if isinstance(labels, Path):
        return labels
    if not isinstance(labels, str):
        return None
    if Path(labels).suffix.lower() in _readers.SUFFIXES:
        return Path(labels)
    if data.suffix.lower() == ".npy":
        raise DataError("labels", labels, f"a file ending in {', '.join(_readers.SUFFIXES)}")
    return None


def as_vectors(value: Any) -> Array:
    """`value` as it is, if it is a rectangular (samples, coordinates) array of numbers.

    Raises
    ------
    DataError
        If it is ragged, not numeric, or of another rank.
    """
    try:
        array = np.asanyarray(value)
    except (ValueError, TypeError):
        raise DataError("data", _ragged(value), "vectors of equal length") from None
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (ValueError, TypeError):
            held = f"Python objects such as {array.flat[0]!r}" if array.size else "objects"
            raise DataError("data", held, "numbers, in vectors of equal length") from None
    if array.dtype.kind not in "iubf" and array.dtype.name != "bfloat16":
        raise DataError("data", f"dtype {array.dtype}", "real numbers")
    if array.ndim != 2:
        raise DataError("data", f"shape {array.shape}", "2 axes: (samples, coordinates)")
    if 0 in array.shape:
        raise DataError("data", f"shape {array.shape}", "at least one sample and one coordinate")
    checked: Array = array
    return checked


def _ragged(value: Any) -> str:
    """Where the first row of another length is."""
    try:
        lengths = [len(row) for row in value]
    except TypeError:
        return "rows of different depth"
    for row, length in enumerate(lengths):
        if length != lengths[0]:
            return f"{length} numbers in row {row}, {lengths[0]} in row 0"
    return "rows that do not stack"
