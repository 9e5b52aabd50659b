"""The learned arrays of a pipeline, as one mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np

from polyattn_core.errors import ParameterError

from .stage import Array, Stage


class PipelineParameters(Mapping[str, Array]):
    """The learned arrays of all stages, by ``stage.name``. Setting them is all or nothing."""

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        self._stages = stages

    def __getitem__(self, name: str) -> Array:
        stage, _, inner = name.partition(".")
        if stage not in self._stages:
            raise KeyError(name)
        return self._stages[stage].parameters[inner]

    def __iter__(self) -> Iterator[str]:
        for name, stage in self._stages.items():
            yield from (f"{name}.{inner}" for inner in stage.parameters)

    def __len__(self) -> int:
        return sum(len(stage.parameters) for stage in self._stages.values())

    def update(self, arrays: Mapping[str, Any], *, partial: bool = False) -> None:
        """Set values; with `partial`, only some of them.

        Raises
        ------
        ParameterError
            Where names are missing or surplus, a shape differs, or a value is not finite. Nothing
            has been set then.
        """
        own = set(self)
        surplus = [name for name in arrays if name not in own]
        missing = [] if partial else [name for name in self if name not in arrays]
        if surplus or missing:
            parts = (("surplus", surplus), ("missing", missing))
            text = "; ".join(f"{word} {', '.join(names)}" for word, names in parts if names)
            raise ParameterError("parameters", text, f"exactly {', '.join(self) or 'none'}")
        checked = []
        for name, stage in self._stages.items():
            mine = {
                inner: arrays[full] for inner in stage.parameters
                if (full := f"{name}.{inner}") in arrays
            }  # fmt: skip
            try:
                checked.append((stage, stage.parameters.checked(mine, partial=True)))
            except ParameterError as error:
                raise ParameterError(
                    f"{name}.{error.argument}", error.value, error.accepted
                ) from None
        for stage, found in checked:
            stage.parameters.replace(found)

    def save(self, path: str | PathLike[str]) -> None:
        """Write to a safetensors file."""
        from safetensors.numpy import save_file

        save_file({name: np.array(array, order="C") for name, array in self.items()}, str(path))

    def load(self, path: str | PathLike[str]) -> None:
        """Read from a safetensors file; checks like :meth:`update`."""
        from pathlib import Path

        from .._files import read_arrays

        self.update(read_arrays(Path(path)))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{n}: {'×'.join(map(str, a.shape))}" for n, a in self.items())
        return f"PipelineParameters({shapes})"
