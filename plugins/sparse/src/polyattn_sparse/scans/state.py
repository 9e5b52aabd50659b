"""The state of a recurrence, in the hands of its user."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from polyattn_core.errors import ArgumentError, FileFormatError, ParameterError
from polyattn_core.parameters import Parameters

Array = npt.NDArray[Any]
_NAMES = ("memory", "tokens")
_FORMATS = "a file name that ends in .safetensors or .npz"


@dataclass(slots=True, eq=False)
class RecurrentState:
    """What a recurrence remembers of the tokens so far: constant in size, however many they are.

    :meth:`polyattn_sparse.scans.mechanism.Recurrence.step` writes it; one state is one sequence
    (or batch of them), and not for use from several threads at once.
    """

    memory: Array
    """(…, key heads, head size, value size), float32 or float64."""
    tokens: int = 0
    """Tokens it has seen, from which positions count on."""

    def reset(self) -> None:
        """Forget everything."""
        self.memory[...] = 0
        self.tokens = 0

    def copy(self) -> Self:
        """One that changes by itself: where generation branches."""
        return type(self)(self.memory.copy(), self.tokens)

    def save(self, path: str | PathLike[str]) -> None:
        """Write to a `.safetensors` or `.npz` file."""
        arrays = {"memory": np.array(self.memory, order="C"), "tokens": np.array([self.tokens])}
        match Path(path).suffix:
            case ".safetensors":
                Parameters(arrays).save(path)
            case ".npz":
                np.savez(path, memory=arrays["memory"], tokens=arrays["tokens"])
            case _:
                raise ArgumentError("path", str(path), _FORMATS)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        FileFormatError
            Where the file is of neither format, or holds something else.
        """
        wrong = FileFormatError("path", str(path), "a file with the arrays of a RecurrentState")
        try:
            match Path(path).suffix:
                case ".npz":
                    with np.load(path, allow_pickle=False) as found:
                        memory, tokens = found["memory"], found["tokens"]
                case ".safetensors":
                    arrays = Parameters(_empty(Path(path)))
                    arrays.load(path)
                    memory, tokens = np.array(arrays["memory"]), arrays["tokens"]
                case _:
                    raise ArgumentError("path", str(path), _FORMATS)
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, ArgumentError) and not isinstance(error, ParameterError):
                raise
            raise wrong from None
        if memory.ndim < 3 or memory.dtype not in (np.float32, np.float64) or tokens.shape != (1,):
            raise wrong
        return cls(memory, int(tokens[0]))


def _empty(path: Path) -> dict[str, Array]:
    """Arrays like those of a safetensors file: its header is JSON, behind its length."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, 1 << 16)))
    kinds = {"F32": np.float32, "F64": np.float64, "I64": np.int64}
    return {name: np.zeros(header[name]["shape"], kinds[header[name]["dtype"]]) for name in _NAMES}
