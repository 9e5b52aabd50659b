"""Vectors and labels from .npy, .npz, .csv, .tsv and .parquet files."""

from __future__ import annotations

import contextlib
import csv
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import DataError

from ._optional import need

SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".parquet")
LABEL_NAMES = ("y", "label", "labels", "target", "targets", "class")
"""Columns and arrays that are taken as labels where none are named."""
VECTOR_NAMES = ("x", "data", "vectors", "embeddings", "features")


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds. `used` is the name of the column or array that became the labels."""

    vectors: Array
    labels: Array | None = None
    columns: tuple[str, ...] = ()
    used: str = ""
    unused: tuple[str, ...] = ()


def read(path: Path, label_column: str | None) -> Content:
    """Read a file; `label_column` names the labels in it, if they are not under a usual name.

    Raises
    ------
    DataError
        If the file is missing or of a format that is not read; or if what it holds is not a table
        of numbers, naming the column and the row.
    """
    with _explained(path, "data"):
        if path.suffix.lower() == ".npy":
            return Content(np.load(path, mmap_mode="r", allow_pickle=False))
        if path.suffix.lower() == ".npz":
            return _from_npz(path, label_column)
        table = _table(path)
    return _from_table(table, label_column, path)


def read_labels(path: Path) -> Array:
    """Labels from a file of one column or one 1-D array; errors as in :func:`read`."""
    with _explained(path, "labels"):
        if path.suffix.lower() == ".npy":
            array: Array = np.load(path, allow_pickle=False)
            return array
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                columns = {name: archive[name] for name in archive.files}
        else:
            table = _table(path)
            columns = {name: table.column(name) for name in table.column_names}
    if len(columns) != 1:
        held = f"{path} with {', '.join(columns) or 'nothing in it'}"
        raise DataError("labels", held, "a file of one column or one array")
    (found,) = columns.values()
    return found if isinstance(found, np.ndarray) else _as_labels(found)


@contextlib.contextmanager
def _explained(path: Path, argument: str) -> Iterator[None]:
    """Make one kind of error of all that reading a file may raise."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(argument, str(path), f"a file ending in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(argument, str(path), "a file that exists")
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        message = str(error).partition("\n")[0]
        if "allow_pickle" in message:
            # NumPy takes what it does not know for a pickle, and says how to load it unsafely.
            objects = path.read_bytes()[:6] == b"\x93NUMPY"
            message = "it holds Python objects" if objects else "it is something else"
        raise DataError(argument, f"{path.name} ({message})", _ACCEPTED[suffix]) from None


def _table(path: Path) -> Any:
    return _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)


_RECTANGLE = "rows of equal length"
_ACCEPTED = {
    ".npy": "one array of numbers (no Python objects), with rows of equal length",
    ".npz": "arrays of numbers (no Python objects), with rows of equal length",
    ".csv": f"text in UTF-8 with {_RECTANGLE}",
    ".tsv": f"text in UTF-8 with {_RECTANGLE}",
    ".parquet": "a Parquet file",
}


def _from_npz(path: Path, label_column: str | None) -> Content:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    used = _label_name(list(arrays), label_column)
    labels = arrays.pop(used) if used else None
    named = [name for name in arrays if name.lower() in VECTOR_NAMES]
    chosen = named or [name for name in arrays if arrays[name].ndim == 2]
    if len(chosen) != 1:
        held = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        accepted = f"one 2-D array of vectors, or one called {', '.join(VECTOR_NAMES)}"
        raise DataError(str(path), held, accepted)
    rest = tuple(name for name in arrays if name != chosen[0])
    return Content(arrays[chosen[0]], labels, (), used, rest)


def _csv(path: Path) -> Any:
    pyarrow_csv = need("pyarrow.csv", "pyarrow", f"reading {path.suffix}")
    first = _first_fields(path)
    delimiter, fields = first
    read_options = pyarrow_csv.ReadOptions(
        # One thread, because only then does an error name its row.
        use_threads=False,
        autogenerate_column_names=all(_is_number(field) for field in fields),
    )
    parse_options = pyarrow_csv.ParseOptions(delimiter=delimiter)
    return pyarrow_csv.read_csv(path, read_options=read_options, parse_options=parse_options)


def _first_fields(path: Path) -> tuple[str, list[str]]:
    """The delimiter, and the fields of the first line: names, or numbers already."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline()
    if path.suffix.lower() == ".tsv":
        delimiter = "\t"
    else:
        delimiter = max((",", ";", "\t"), key=line.count)
    return delimiter, next(csv.reader([line], delimiter=delimiter), [])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> Any:
    parquet = need("pyarrow.parquet", "pyarrow", "reading .parquet")
    return parquet.read_table(path)


def _from_table(table: Any, label_column: str | None, path: Path) -> Content:
    types = need("pyarrow", "pyarrow", f"reading {path.suffix}").types
    names = list(table.column_names)
    used = _label_name(names, label_column)
    labels = _as_labels(table.column(names.index(used))) if used else None
    rest = [index for index, name in enumerate(names) if name != used]
    lists = [i for i in rest if _is_list(types, table.schema.field(i).type)]
    if len(lists) == 1:
        unused = tuple(names[i] for i in rest if i != lists[0])
        vectors = _from_lists(table.column(lists[0]), names[lists[0]])
        return Content(vectors, labels, (), used, unused)
    if not rest:
        raise DataError(str(path), f"columns {', '.join(names)}", "at least one numeric column")
    columns = [_as_numbers(types, table.column(i), names[i], path) for i in rest]
    return Content(np.column_stack(columns), labels, tuple(names[i] for i in rest), used)


def _is_list(types: Any, kind: Any) -> bool:
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _from_lists(column: Any, name: str) -> Array:
    compute = need("pyarrow.compute", "pyarrow", "reading lists")
    lengths = compute.list_value_length(column).to_numpy(zero_copy_only=False)
    if lengths.size and not (lengths == lengths[0]).all():
        row = int(np.flatnonzero(lengths != lengths[0])[0])
        value = f"{lengths[row]} numbers in row {row} of column {name!r}, {lengths[0]} in row 0"
        raise DataError("data", value, "vectors of equal length")
    flat = compute.list_flatten(column).to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float64).reshape(len(lengths), -1)


def _as_numbers(types: Any, column: Any, name: str, path: Path) -> Array:
    kind = column.type
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    if any(test(kind) for test in tests):
        return np.array([np.nan if x is None else float(x) for x in column.to_pylist()])
    row, cell = _first_text(column.to_pylist())
    raise DataError(
        f"column {name!r} of {path.name}",
        f"{cell!r} in row {row}",
        f"numbers (if this column holds labels: --labels {name}; otherwise remove it)",
    )


def _first_text(cells: Sequence[object]) -> tuple[int, object]:
    for row, cell in enumerate(cells):
        if cell is not None and not _is_number(str(cell)):
            return row, cell
    return 0, cells[0] if cells else None


def _as_labels(column: Any) -> Array:
    values = column.to_pylist()
    missing = [row for row, value in enumerate(values) if value is None or value == ""]
    if missing:
        held = f"{len(missing)} missing, the first in row {missing[0]}"
        raise DataError("labels", held, "a label for every sample")
    return np.asarray(values)


def _label_name(names: Sequence[str], asked: str | None) -> str:
    if asked is not None:
        if asked not in names:
            raise DataError("labels", asked, f"one of {', '.join(names)}, or a file of labels")
        return asked
    return next((name for name in names if name.lower() in LABEL_NAMES), "")
