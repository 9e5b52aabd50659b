"""Arrays in and out of files."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from polyattn._files import Output, read_array, read_arrays
from polyattn_core.errors import FileFormatError

ARRAYS = {
    "half": np.arange(3, dtype=np.float16),
    "flags": np.array([[True, False]]),
    "wide": np.zeros((2, 0, 3)),
    "counts": np.arange(4, dtype=np.int8),
}


def test_reads_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **ARRAYS)
    save_file(ARRAYS, tmp_path / "A.SAFETENSORS")
    for file in ("a.npz", "A.SAFETENSORS"):
        found = read_arrays(tmp_path / file)
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_maps_single_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    found = read_array(tmp_path / "a.npy")
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable


def test_bfloat16_comes_and_goes(tmp_path: Path) -> None:
    array = np.arange(5, dtype=ml_dtypes.bfloat16)
    with Output(tmp_path / "b.safetensors") as output:
        output.allocate("output", (5,), array.dtype)[:] = array
        output.finish()
    found = read_arrays(tmp_path / "b.safetensors")["output"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_bfloat16_is_not_written_where_it_would_lose_its_meaning(
    suffix: str, tmp_path: Path
) -> None:
    with pytest.raises(FileFormatError, match="safetensors file for arrays of bfloat16"):
        Output(tmp_path / f"o{suffix}").allocate("output", (2,), np.dtype(ml_dtypes.bfloat16))


def test_npy_output_holds_one_array_a_file(tmp_path: Path) -> None:
    with Output(tmp_path / "o.npy") as output:
        output.allocate("output", (2, 3), np.dtype("float32"))[0] = 1
        output.allocate("entropy", (2,), np.dtype("float64"))[:] = 2
        places = output.finish()
    assert places == {"output": tmp_path / "o.npy", "entropy": tmp_path / "o.entropy.npy"}
    assert np.load(places["output"]).tolist() == [[1, 1, 1], [0, 0, 0]]
    assert np.load(places["entropy"]).tolist() == [2, 2]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_archives_hold_all(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"o{suffix}"
    with Output(file) as output:
        output.allocate("output", (2,), np.dtype("float32"))[:] = 1
        output.allocate("entropy", (1,), np.dtype("float32"))
        assert output.finish() == {"output": file, "entropy": file}
    if suffix == ".safetensors":
        found = load_file(file)
    else:
        with np.load(file) as archive:
            found = dict(archive)
    assert {name: found[name].tolist() for name in found} == {"output": [1, 1], "entropy": [0]}
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["o.npy", "o.npz", "o.safetensors"])
def test_failure_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"before")

    def fail() -> None:
        with Output(tmp_path / name) as output:
            output.allocate("output", (2,), np.dtype("float32"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"before"


def test_an_input_may_be_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, np.arange(3.0))
    array = read_array(file)
    with Output(file) as output:
        output.allocate("output", (3,), array.dtype)[:] = array + 1
        output.finish()
    assert np.load(file).tolist() == [1, 2, 3]


def write_object_array(path: Path) -> None:
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "text.npz").write_text("1 2 3")
    (tmp_path / "text.safetensors").write_text("1 2 3")
    write_object_array(tmp_path / "objects.npy")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    np.save(tmp_path / "whole.npy", np.arange(100.0))
    np.savez(tmp_path / "whole.npz", a=np.arange(100.0))
    for name in ("whole.npy", "whole.npz"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name.replace("whole", "half")).write_bytes(data[: len(data) // 2])
    bad = "text.npy text.npz text.safetensors objects.npy objects.npz half.npy half.npz none.npy"
    for name in [*bad.split(), "table.csv"]:
        read = read_array if name.endswith(".npy") else read_arrays
        with pytest.raises(FileFormatError) as caught:
            read(tmp_path / name)
        text = str(caught.value)
        assert name in text
        assert "unsafe" not in text  # NumPy's advice to unpickle


@pytest.mark.parametrize("name", ["o.csv", "o", "nowhere/o.npy"])
def test_bad_places_for_output(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="output: got"):
        Output(tmp_path / name)
