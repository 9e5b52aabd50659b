"""Learned arrays: all or none, checked, on disk and back."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from polyattn_core.errors import ArgumentError, FileFormatError, ParameterError
from polyattn_core.parameters import Parameters, as_seed


@pytest.fixture
def parameters() -> Parameters:
    return Parameters(
        {
            "weight": np.arange(6.0).reshape(2, 3),
            "gain": np.array([1, 2], np.float32),
            "temperature": np.float64(0.5),
        }
    )


def snapshot(parameters: Parameters) -> dict[str, Any]:
    return {name: array.copy() for name, array in parameters.items()}


def same(parameters: Parameters, expected: dict[str, Any]) -> bool:
    return parameters.keys() == expected.keys() and all(
        np.array_equal(parameters[name], expected[name])
        and parameters[name].dtype == expected[name].dtype
        for name in expected
    )


def test_reading_gives_views_that_cannot_be_written(parameters: Parameters) -> None:
    with pytest.raises(ValueError, match="read-only"):
        parameters["weight"][0, 0] = 9
    with pytest.raises(KeyError):
        parameters["missing"]
    assert list(parameters) == ["weight", "gain", "temperature"]
    assert len(parameters) == 3
    assert repr(parameters) == "Parameters(weight: 2×3, gain: 2, temperature: )"
    assert len(Parameters()) == 0


def test_what_was_given_is_copied() -> None:
    array = np.ones(3)
    parameters = Parameters({"a": array})
    array[:] = 2
    assert (parameters["a"] == 1).all()
    new = np.full(3, 5.0)
    parameters.update({"a": new})
    new[:] = 6
    assert (parameters["a"] == 5).all()


def test_updating_keeps_dtypes(parameters: Parameters) -> None:
    parameters.update(
        {"weight": np.ones((2, 3), np.float32), "gain": [3, 4], "temperature": np.float16(2)}
    )
    assert [array.dtype.name for array in parameters.values()] == ["float64", "float32", "float64"]
    assert parameters["gain"].tolist() == [3, 4]
    parameters.update({"gain": np.array([5, 6], ml_dtypes.bfloat16)}, partial=True)
    assert parameters["gain"].tolist() == [5, 6]
    assert (parameters["weight"] == 1).all()


FINE = {"weight": np.zeros((2, 3)), "gain": np.zeros(2), "temperature": 0.0}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"gian": 1}, "parameters: got surplus gian; expected exactly weight, gain, temperature"),
        ({"gain": ...}, "parameters: got missing gain; expected exactly weight, gain, temperature"),
        (
            {"gain": ..., "b": 1, "a": 1},
            (
                "parameters: got surplus b, a; missing gain; "
                "expected exactly weight, gain, temperature"
            ),
        ),
        ({"gain": np.zeros(3)}, "gain: got (3,); expected shape (2,)"),
        ({"gain": np.zeros((2, 1))}, "gain: got (2, 1); expected shape (2,)"),
        ({"gain": ["a", "b"]}, "gain: got dtype('<U1'); expected real numbers"),
        ({"gain": [True, False]}, "gain: got dtype('bool'); expected real numbers"),
        ({"gain": [1j, 0]}, "gain: got dtype('complex128'); expected real numbers"),
        ({"gain": [np.nan, 0]}, "gain: got values that are not finite; expected finite numbers"),
        ({"gain": [0, -np.inf]}, "gain: got values that are not finite; expected finite numbers"),
        # Too large for float32
        ({"gain": [0, 1e300]}, "gain: got values that are not finite; expected finite numbers"),
    ],
)
def test_an_update_that_is_refused_sets_nothing(
    parameters: Parameters, change: dict[str, Any], text: str
) -> None:
    before = snapshot(parameters)
    given = {name: value for name, value in (FINE | change).items() if value is not ...}
    with pytest.raises(ParameterError) as caught:
        parameters.update(given)
    assert str(caught.value) == text
    assert same(parameters, before)


def test_a_partial_update_still_checks_names(parameters: Parameters) -> None:
    with pytest.raises(ParameterError, match="surplus other"):
        parameters.update({"other": 1}, partial=True)


# ---- files ----------------------------------------------------------------------------------


def test_to_a_file_and_back(parameters: Parameters, tmp_path: Path) -> None:
    before = snapshot(parameters)
    file = tmp_path / "parameters.safetensors"
    for path in (file, str(file)):
        parameters.save(path)
        parameters.update(FINE)
        parameters.load(path)
        assert same(parameters, before)


def test_the_file_is_what_the_format_says(tmp_path: Path) -> None:
    """A length, a JSON header, and the numbers, which this reads without the library."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    file = tmp_path / "parameters.safetensors"
    Parameters({"w": array.T, "big": array.astype(">f4")}).save(file)
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for name, expected in (("w", array.T), ("big", array)):
        entry = header[name]
        start, stop = entry["data_offsets"]
        numbers = np.frombuffer(content[8 + length :][start:stop], "<f4").reshape(entry["shape"])
        np.testing.assert_array_equal(numbers, expected)
        assert entry["dtype"] == "F32"


def test_a_file_is_checked_like_an_update(parameters: Parameters, tmp_path: Path) -> None:
    file = tmp_path / "parameters.safetensors"
    Parameters({"weight": np.zeros((2, 3))}).save(file)
    with pytest.raises(ParameterError, match="missing gain, temperature"):
        parameters.load(file)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all", b"\xff" * 64])
def test_a_file_of_another_format(parameters: Parameters, tmp_path: Path, content: bytes) -> None:
    before = snapshot(parameters)
    file = tmp_path / "parameters.safetensors"
    file.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"^path: got .*parameters\.safetensors \("):
        parameters.load(file)
    with pytest.raises(FileNotFoundError):
        parameters.load(tmp_path / "missing")
    assert same(parameters, before)


# ---- seeds ----------------------------------------------------------------------------------


def test_seeds() -> None:
    assert as_seed(0) == 0
    assert as_seed(np.int64(7)) == 7
    assert as_seed((1 << 31) - 1) == (1 << 31) - 1
    one, two = (np.random.default_rng(3) for _ in range(2))
    drawn = [as_seed(one) for _ in range(4)]
    assert drawn == [as_seed(two) for _ in range(4)]
    assert len(set(drawn)) == 4


@pytest.mark.parametrize("rng", [-1, 1 << 31, 1.0, True, None, "1", np.random.RandomState(0)])
def test_what_is_no_seed(rng: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^rng: got .*; expected a whole number from 0 to"):
        as_seed(rng)


# ---- of a mechanism -------------------------------------------------------------------------


def test_initialising_a_mechanism(build: Any) -> None:
    tables = []
    for seed in (1, 1, np.random.default_rng(1), 2):
        mechanism = build(dim=8, heads=2, position="t5")
        before = mechanism.parameters["position.table"].copy()
        mechanism.initialise(seed)
        tables.append(mechanism.parameters["position.table"])
        assert not np.array_equal(tables[-1], before)
    np.testing.assert_array_equal(tables[0], tables[1])
    np.testing.assert_array_equal(tables[0], tables[2])
    assert not np.array_equal(tables[0], tables[3])
    # Before that, the same in every process.
    twin = build(dim=8, heads=2, position="t5").parameters["position.table"]
    np.testing.assert_array_equal(twin, before)
    with pytest.raises(ArgumentError, match=r"^rng: got None; expected a seed"):
        mechanism.initialise(None)


def test_a_mechanism_keeps_its_parameters_when_pickled(build: Any) -> None:
    mechanism = build(dim=8, heads=2, position="t5")
    mechanism.initialise(5)
    again = pickle.loads(pickle.dumps(mechanism))
    np.testing.assert_array_equal(
        again.parameters["position.table"], mechanism.parameters["position.table"]
    )
