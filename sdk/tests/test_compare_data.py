"""Data that a comparison takes, and what it says of data that it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyattn.compare import bundled, load
from polyattn.compare._checks import check
from polyattn.compare.data import as_vectors
from polyattn.compare.settings import Settings
from polyattn_core.errors import DataError

pytest.importorskip("sklearn")
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((40, 3))
LABELS = np.arange(40) % 2


def checked(data: Any, labels: Any = None, **settings: Any) -> Any:
    return check(load(data, labels), Settings(**settings))


@pytest.mark.parametrize("entry", bundled(), ids=lambda entry: entry.name)
def test_bundled_data_are_what_they_say(entry: Any) -> None:
    found = load(entry.name)
    assert found.vectors.shape == (entry.samples, entry.coordinates)
    assert found.arguments == (entry.name,)
    data = check(found, Settings())
    kind = f"{len(data.classes)} classes" if data.classes else "a number"
    assert kind == entry.target


@pytest.mark.parametrize("name", ["swiss-roll", "tree", "directions"])
def test_generated_data_are_the_same_every_time(name: str) -> None:
    assert np.array_equal(load(name).vectors, load(name).vectors)


# ---- files that are read ------------------------------------------------------------------------


@pytest.fixture
def csv(tmp_path: Path) -> Any:
    def write(text: str, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def rows(*columns: Any, header: str = "", delimiter: str = ",") -> str:
    lines = [delimiter.join(map(str, cells)) for cells in zip(*columns, strict=True)]
    return "\n".join([header, *lines] if header else lines) + "\n"


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS.astype(np.float32))
    np.save(tmp_path / "l.npy", LABELS)
    found = load(tmp_path / "v.npy", str(tmp_path / "l.npy"))
    assert np.allclose(found.vectors, VECTORS)
    assert np.array_equal(found.labels, LABELS)
    assert found.arguments == (str(tmp_path / "v.npy"), "--labels", str(tmp_path / "l.npy"))


@pytest.mark.parametrize("name", ["y", "labels", "target"])
def test_npz_with_labels_under_a_usual_name(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "d.npz", vectors=VECTORS, **{name: LABELS})
    found = load(str(tmp_path / "d.npz"))
    assert np.array_equal(found.vectors, VECTORS)
    assert np.array_equal(found.labels, LABELS)
    assert found.notes == (f"{name!r} holds the labels",)


def test_npz_with_labels_that_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", some=VECTORS, kind=LABELS)
    found = load(tmp_path / "d.npz", "kind")
    assert np.array_equal(found.labels, LABELS)
    assert np.array_equal(found.vectors, VECTORS)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_with_a_header(csv: Any, delimiter: str) -> None:
    pytest.importorskip("pyarrow")
    species = np.array(["cat", "dog"])[LABELS]
    text = rows(*VECTORS.T, species, header=delimiter.join("abcs"), delimiter=delimiter)
    found = load(csv(text, "d.tsv" if delimiter == "\t" else "d.csv"), "s")
    assert np.allclose(found.vectors, VECTORS)
    assert found.columns == ("a", "b", "c")
    assert list(found.labels) == list(species)


def test_csv_without_a_header(csv: Any) -> None:
    pytest.importorskip("pyarrow")
    found = load(csv(rows(*VECTORS.T)))
    assert found.vectors.shape == (40, 3)
    assert found.labels is None


def test_a_column_with_a_usual_name_holds_the_labels(csv: Any) -> None:
    pytest.importorskip("pyarrow")
    found = load(csv(rows(*VECTORS.T, LABELS, header="a,b,c,Label")))
    assert list(found.labels) == list(LABELS)
    assert found.notes == ("'Label' holds the labels",)


def test_labels_from_a_file_of_one_column(csv: Any) -> None:
    pytest.importorskip("pyarrow")
    data = csv(rows(*VECTORS.T))
    found = load(data, csv(rows(LABELS, header="kind"), "labels.csv"))
    assert list(found.labels) == list(LABELS)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "a,b\n1,2\n", "l.csv with a, b; expected a file of one column"),
        ("l.csv", "a,b\n1\n", "labels: got l.csv"),
        ("l.csv", 'a\nx\n""\nNA\n', "1 missing, the first in row 1"),
        ("l.npz", "no archive", "labels: got l.npz"),
    ],
)
def test_files_of_labels_that_do_not_do(csv: Any, name: str, text: str, said: str) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=said):
        load("iris", str(csv(text, name)))


def test_parquet_of_columns_and_of_lists(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"a": VECTORS[:, 0], "b": VECTORS[:, 1], "y": LABELS}
    parquet.write_table(pa.table(columns), tmp_path / "c.parquet")
    found = load(tmp_path / "c.parquet")
    assert np.array_equal(found.vectors, VECTORS[:, :2])
    assert list(found.labels) == list(LABELS)
    lists = {"embedding": VECTORS.tolist(), "id": [f"row {i}" for i in range(40)], "y": LABELS}
    parquet.write_table(pa.table(lists), tmp_path / "l.parquet")
    found = load(tmp_path / "l.parquet")
    assert np.array_equal(found.vectors, VECTORS)
    assert found.notes == ("'y' holds the labels", "not used: id")


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([[1.0, 2.0], [3.0]], r"1 numbers in row 1, 2 in row 0; expected vectors of equal length"),
        (np.zeros(5), r"shape \(5,\); expected 2 axes: \(samples, coordinates\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\); expected at least one sample"),
        (np.zeros((3, 0)), r"shape \(3, 0\)"),
        (np.zeros((3, 2), complex), r"dtype complex128; expected real numbers"),
        (np.array([["a", "b"]]), r"dtype <U1; expected real numbers"),
        (np.array([[{}, 1]], object), r"Python objects such as \{\}"),
        (3, r"shape \(\)"),
    ],
)
def test_what_is_not_a_table_of_numbers(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        as_vectors(data)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    vectors = VECTORS.copy()
    vectors[7, 1] = vectors[9, 0] = bad
    with pytest.raises(DataError, match=rf"2 values .* the first \({bad}\) in row 7, column 1;"):
        checked(vectors, LABELS)


def test_a_missing_cell_is_named_by_its_column(csv: Any) -> None:
    pytest.importorskip("pyarrow")
    cells = [str(x) for x in VECTORS[:, 1]]
    cells[5] = ""
    path = csv(rows(VECTORS[:, 0], cells, LABELS, header="width,height,y"))
    with pytest.raises(DataError, match="row 5, column 'height'"):
        checked(path)


def test_rows_keep_their_number_in_a_subsample() -> None:
    vectors = np.array(VECTORS)
    vectors[:, 2] = np.nan
    kept = checked(VECTORS, limit=20).rows
    assert len(kept) == 20
    with pytest.raises(DataError, match=rf"20 values .* in row {kept[0]}, column 2"):
        checked(vectors, limit=20)


@pytest.mark.parametrize(
    ("labels", "settings", "said"),
    [
        (LABELS[:-1], {}, "39 labels; expected 40, one for each sample"),
        (LABELS.reshape(2, 20), {}, r"shape \(2, 20\); expected 40 labels on one axis"),
        (np.zeros(40, int), {}, "one class, 0; expected at least 2 classes"),
        (["a"] * 39 + [None], {}, "1 missing, the first in row 39"),
        (np.where(LABELS, np.nan, 1.0), {}, r"20 that are not finite, the first \(nan\) in row 1"),
        (["a"] * 38 + ["b"] * 2, {}, "2 of class b; expected at least 3 of each class"),
        (np.arange(40).astype(str), {}, r"1 of class 0 \(and 39 more classes as small\)"),
        (np.arange(40) // 3, {"task": "classification"}, "1 of class 13"),
        (["a", "b"] * 20, {"task": "regression"}, "text such as a; expected numbers"),
        (np.ones(40), {"task": "regression"}, "1 for every sample; expected numbers that differ"),
        (None, {"task": "classification"}, "none; expected labels, for classification"),
        (np.zeros(40, complex), {}, "dtype complex128"),
    ],
)
def test_labels_that_do_not_do(labels: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        checked(VECTORS, labels, **settings)


def test_too_few_samples() -> None:
    with pytest.raises(DataError, match="5 samples; expected enough for 2 in the test"):
        checked(VECTORS[:5])
    with pytest.raises(DataError, match=r"12 samples of 4 classes.*holds only 2"):
        checked(VECTORS[:12], np.arange(12) % 4)


def test_coordinates_that_do_not_vary() -> None:
    with pytest.raises(DataError, match="the same vector in every row"):
        checked(np.ones((40, 3)), LABELS)
    with pytest.raises(DataError, match="1 coordinate that varies, and no labels"):
        checked(VECTORS[:, :1])


def test_values_that_float32_cannot_square() -> None:
    huge = VECTORS * 1e20
    with pytest.raises(DataError, match="--scale standard or --dtype float64"):
        checked(huge, LABELS, scale="none")
    assert checked(huge, LABELS, scale="none", dtype="float64").task == "classification"
    assert checked(huge, LABELS).task == "classification"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("d.csv", "a,b\n1,2\n3\n", r"d.csv \(.*Row #3: Expected 2 columns, got 1: 3\)"),
        ("d.csv", "a,b\n1,2\n3,x\n", r"column 'b' of d.csv: got 'x' in row 1; .*--labels b"),
        ("d.csv", "", "Empty CSV file"),
        ("d.csv", "y\n1\n2\n", "columns y; expected at least one numeric column"),
        ("d.txt", "1 2", r"expected a file ending in .npy, .npz, .csv, .tsv, .parquet"),
        ("d.npy", "not an array", "d.npy"),
        ("d.npz", "not an archive", "d.npz"),
        ("d.parquet", "not a table", "d.parquet"),
    ],
)
def test_files_that_do_not_do(csv: Any, name: str, text: str, said: str) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=said):
        load(csv(text, name))


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([[1], [2, 3]], object), allow_pickle=True)
    with pytest.raises(DataError, match="no Python objects"):
        load(tmp_path / "o.npy")


def test_what_only_looks_like_a_file_of_numpy(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(DataError, match=r"text.npy \(it is something else\); expected one array"):
        load(tmp_path / "text.npy")


def test_an_archive_with_several_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", one=VECTORS, two=VECTORS)
    with pytest.raises(DataError, match=r"one \(40, 3\), two \(40, 3\); expected one 2-D array"):
        load(tmp_path / "d.npz")
    with pytest.raises(DataError, match="labels: got kind; expected one of one, two, or a file"):
        load(tmp_path / "d.npz", "kind")


def test_vectors_of_different_length_in_a_list_column(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"v": [[1.0, 2.0], [3.0, 4.0], [5.0]]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="1 numbers in row 2 of column 'v', 2 in row 0"):
        load(tmp_path / "d.parquet")


def test_what_is_neither_a_name_nor_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a bundled data set \\(digits, iris"):
        load("digit")
    with pytest.raises(DataError, match="expected a file that exists"):
        load(tmp_path / "missing.npy")
    np.save(tmp_path / "v.npy", VECTORS)
    with pytest.raises(DataError, match="labels"):
        load(tmp_path / "v.npy", "species")
    with pytest.raises(DataError, match="an array, or the path of a file of labels"):
        load("iris", "species")


# ---- what it is taken for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "settings", "task"),
    [
        (LABELS, {}, "classification"),
        (LABELS.astype(float), {}, "classification"),
        (LABELS.astype(bool), {}, "classification"),
        (np.array(["a", "b"])[LABELS], {}, "classification"),
        (np.array([b"a", b"b"])[LABELS], {}, "classification"),
        (LABELS[:, None], {}, "classification"),
        (LABELS + 0.5, {}, "regression"),
        (np.arange(40), {}, "regression"),
        (LABELS, {"task": "regression"}, "regression"),
        (LABELS, {"task": "reconstruction"}, "reconstruction"),
        (None, {}, "reconstruction"),
    ],
)
def test_the_task_follows_from_the_labels(labels: Any, settings: dict[str, Any], task: str) -> None:
    assert checked(VECTORS, labels, **settings).task == task


def test_many_samples_are_thinned_by_class_and_seed() -> None:
    few = checked(VECTORS, LABELS, limit=20)
    assert np.bincount(few.target).tolist() == [10, 10]
    assert np.array_equal(few.vectors, VECTORS[few.rows])
    assert "a random 20 of 40 samples were used" in few.notes[0]
    assert not np.array_equal(few.rows, checked(VECTORS, LABELS, limit=20, seed=1).rows)
    assert len(checked(VECTORS, LABELS, limit=0).rows) == 40
