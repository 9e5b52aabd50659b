"""Learned arrays of a mechanism: a mapping of names to arrays of fixed shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import FileFormatError, ParameterError

Array = npt.NDArray[Any]


class Parameters(Mapping[str, Array]):
    """Names and arrays. Reading gives read-only views; :meth:`update` replaces values, all or none.

    Not for writing from several threads at once.
    """

    def __init__(self, arrays: Mapping[str, Array] | None = None) -> None:
        self._arrays = {name: np.array(array) for name, array in (arrays or {}).items()}
        self._casts: dict[tuple[str, np.dtype[Any]], Array] = {}

    def __getitem__(self, name: str) -> Array:
        view = self._arrays[name].view()
        view.flags.writeable = False
        return view

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def cast(self, name: str, dtype: np.dtype[Any]) -> Array:
        """An array in the dtype that is computed in; kept until values change."""
        own = self._arrays[name]
        if own.dtype == dtype:
            return self[name]
        found = self._casts.get((name, dtype))
        if found is None:
            found = self._casts[name, dtype] = own.astype(dtype)
            found.flags.writeable = False
        return found

    def update(self, arrays: Mapping[str, Any], *, partial: bool = False) -> None:
        """Set values; with `partial`, only some of them.

        Raises
        ------
        ParameterError
            Where names are missing or surplus, a shape differs, or a value is not finite. Nothing
            has been set then.
        """
        self.replace(self.checked(arrays, partial=partial))

    def replace(self, checked: Mapping[str, Array]) -> None:
        """Set what :meth:`checked` returned."""
        self._arrays.update(checked)
        self._casts.clear()

    def checked(self, arrays: Mapping[str, Any], *, partial: bool = False) -> dict[str, Array]:
        """What :meth:`update` would set, in the dtypes held; raises as it does, sets nothing."""
        surplus = [name for name in arrays if name not in self._arrays]
        missing = [] if partial else [name for name in self._arrays if name not in arrays]
        if surplus or missing:
            text = "; ".join(
                f"{word} {', '.join(names)}"
                for word, names in (("surplus", surplus), ("missing", missing))
                if names
            )
            raise ParameterError("parameters", text, f"exactly {', '.join(self._arrays) or 'none'}")
        checked = {}
        for name, value in arrays.items():
            array = np.asarray(value)
            own = self._arrays[name]
            if array.shape != own.shape:
                raise ParameterError(name, array.shape, f"shape {own.shape}")
            if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
                raise ParameterError(name, array.dtype, "real numbers")
            with np.errstate(over="ignore"):  # what overflows is refused below
                array = array.astype(own.dtype)
            if not np.isfinite(array).all():
                raise ParameterError(name, "values that are not finite", "finite numbers")
            checked[name] = array
        return checked

    def save(self, path: str | PathLike[str]) -> None:
        """Write to a safetensors file."""
        from safetensors.numpy import save_file

        # Not `ascontiguousarray`, which makes an axis of a single number.
        save_file({k: np.array(v, order="C") for k, v in self._arrays.items()}, str(path))

    def load(self, path: str | PathLike[str]) -> None:
        """Read from a safetensors file; checks like :meth:`update`."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(str(path))
        except SafetensorError as error:
            raise FileFormatError("path", f"{path} ({error})", "a safetensors file") from None
        self.update(arrays)

    def __getstate__(self) -> dict[str, Any]:
        return {"_arrays": self._arrays, "_casts": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{n}: {'×'.join(map(str, a.shape))}" for n, a in self._arrays.items())
        return f"Parameters({shapes})"


def as_seed(rng: object) -> int:
    """A seed from an integer or a `numpy.random.Generator`, from which one number is drawn."""
    from .errors import ArgumentError

    if isinstance(rng, np.random.Generator):
        return int(rng.integers(1 << 31))
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool) and 0 <= rng < 1 << 31:
        return int(rng)
    raise ArgumentError("rng", rng, "a whole number from 0 to 2³¹ − 1 or a numpy.random.Generator")
