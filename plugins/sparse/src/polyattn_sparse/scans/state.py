"""The state of a recurrence, in the hands of its user."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from polyattn_core.errors import ArgumentError, FileFormatError

Array = npt.NDArray[Any]
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
                from safetensors.numpy import save_file

                save_file(arrays, str(path))
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
        arrays: dict[str, Array] = {}
        try:
            if Path(path).suffix == ".npz":
                with np.load(path, allow_pickle=False) as found:
                    arrays = dict(found)
            elif Path(path).suffix == ".safetensors":
                from safetensors.numpy import load_file

                arrays = load_file(str(path))
        except FileNotFoundError:
            raise
        except Exception as error:  # safetensors, zipfile and NumPy each raise their own
            raise FileFormatError("path", f"{path} ({error})", _FORMATS) from None
        memory, tokens = arrays.get("memory"), arrays.get("tokens")
        if memory is None or tokens is None or memory.ndim < 3 or tokens.shape != (1,):
            raise FileFormatError("path", str(path), "a file with the arrays of a RecurrentState")
        if memory.dtype not in (np.float32, np.float64) or tokens.dtype.kind not in "iu":
            raise FileFormatError("path", str(path), "memory in float32 or float64, whole tokens")
        return cls(memory, int(tokens[0]))
