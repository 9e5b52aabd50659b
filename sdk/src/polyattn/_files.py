"""Arrays in and out of .npy, .npz and .safetensors files. Nothing is pickled or unpickled."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.errors import FileFormatError

Array = npt.NDArray[Any]

ARCHIVES = (".npz", ".safetensors")
"""Suffixes of files that hold several arrays by name."""
SUFFIXES = (".npy", *ARCHIVES)

_SAFETENSORS_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32",
    "F64": "float64",
}  # fmt: skip
_MAGIC = {".npy": b"\x93NUMPY", ".npz": b"PK"}
_PLAIN = frozenset(_SAFETENSORS_DTYPES.values())


def read_array(path: Path) -> Array:
    """The array of a .npy file, mapped into memory: what is not looked at is not read.

    Raises
    ------
    FileFormatError
        If the file is missing or holds no array of plain numbers.
    """
    _require(path, (".npy",))
    with _reading(path):
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a .npz or .safetensors file by name.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, or holds anything but arrays of plain numbers.
    """
    _require(path, ARCHIVES)
    with _reading(path):
        if path.suffix.lower() == ".safetensors":
            return _read_safetensors(path)
        # Opened here, because NumPy leaves a damaged file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


class Output:
    """Where arrays are written, block by block, under a name each.

    A .npy file holds one array: the one named `output`; others go to files next to it, named
    ``NAME.<array>.npy``. They are mapped into memory, so that they may be larger than it. Nothing
    stands under the final names before :meth:`finish`.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise FileFormatError("output", str(path), f"a file ending in {', '.join(SUFFIXES)}")
        if not path.parent.is_dir():
            raise FileFormatError("output", str(path), "a file in a folder that exists")
        self.path = path
        self.mapped = path.suffix.lower() == ".npy"
        self.arrays: dict[str, Array] = {}
        """What was allocated, until it is finished."""
        self._parts: dict[str, Path] = {}

    def allocate(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of zeros to write to."""
        if dtype.name not in _PLAIN and self.path.suffix.lower() != ".safetensors":
            # NumPy would write a dtype that it does not know as bytes without a meaning.
            accepted = f"a .safetensors file for arrays of {dtype.name}"
            raise FileFormatError("output", str(self.path), accepted)
        array: Array
        if self.mapped:
            part = self._parts[name] = self._part(name)
            array = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
        else:
            array = np.zeros(shape, dtype)
        self.arrays[name] = array
        return array

    def finish(self) -> dict[str, Path]:
        """Put everything in its place; returns where each array is."""
        if self.mapped:
            for array in self.arrays.values():
                assert isinstance(array, np.memmap)
                array.flush()
            self.arrays.clear()  # Windows renames only what nobody holds open
            places = {name: self._place(name) for name in self._parts}
            for name, part in self._parts.items():
                os.replace(part, places[name])
            self._parts.clear()
            return places
        part = self._parts["output"] = self._part("output")
        if self.path.suffix.lower() == ".npz":
            with part.open("wb") as stream:
                np.savez(stream, **self.arrays)  # type: ignore[arg-type]
        else:
            from safetensors.numpy import save_file

            part.touch()
            mode = part.stat().st_mode
            save_file({k: np.ascontiguousarray(v) for k, v in self.arrays.items()}, str(part))
            part.chmod(mode)  # which the library sets so that nobody else may read
        os.replace(part, self.path)
        self._parts.clear()
        return dict.fromkeys(self.arrays, self.path)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self.arrays.clear()
        for part in self._parts.values():
            part.unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        return self.path if name == "output" else self.path.with_suffix(f".{name}.npy")

    def _part(self, name: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{name}.{os.getpid()}.part")


def _require(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes:
        raise FileFormatError("file", str(path), f"a file ending in {' or '.join(suffixes)}")
    if not path.is_file():
        raise FileFormatError("file", str(path), "a file that exists")
    with path.open("rb") as stream:
        start = stream.read(8)
    # NumPy takes a file that it does not know for a pickle, and says how to load it unsafely.
    if not start.startswith(_MAGIC.get(path.suffix.lower(), b"")):
        raise FileFormatError("file", f"{path}, which is something else", f"a {path.suffix} file")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what readers raise into one error that names the file."""
    accepted = f"a {path.suffix.lower()} file of arrays of plain numbers"
    try:
        yield
    except FileFormatError:
        raise
    except Exception as error:  # readers of three formats raise many kinds
        if isinstance(error, MemoryError | PermissionError):
            raise
        reason = str(error).partition("\n")[0]
        if isinstance(error, zipfile.BadZipFile | EOFError):
            reason = "it is damaged or not complete"
        raise FileFormatError("file", f"{path} ({reason})", accepted) from None


def _read_safetensors(path: Path) -> dict[str, Array]:
    # The library's own reader for NumPy does not know bfloat16.
    from safetensors import deserialize

    arrays = {}
    for name, view in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
        kind = view["dtype"]
        if kind == "BF16":
            import ml_dtypes

            dtype = np.dtype(ml_dtypes.bfloat16)
        elif kind in _SAFETENSORS_DTYPES:
            dtype = np.dtype(_SAFETENSORS_DTYPES[kind])
        else:
            raise FileFormatError("file", f"{path} ({name} is {kind})", "arrays of plain numbers")
        arrays[name] = np.frombuffer(view["data"], dtype).reshape(view["shape"])
    return arrays
