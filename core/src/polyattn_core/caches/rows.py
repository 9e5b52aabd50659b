"""Stored rows of numbers: an array of keys or values in one of the formats."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from ..arrays import Array
from ..errors import ArgumentError

Storage = Literal["float32", "float64", "float16", "bfloat16", "int8", "int4"]
STORAGES: tuple[str, ...] = get_args(Storage)

_ROOM = 16  # scales behind the last row, as kernels read whole vectors of them
_ELEMENTS = {"float16": np.uint16, "bfloat16": np.uint16, "int8": np.int8, "int4": np.uint8}
_GROUPED = ("int8", "int4")


def _padded(size: int, storage: str) -> int:
    """Numbers of a stored row: whole vectors, so that kernels meet no rest."""
    block = 32 if storage in _GROUPED else 16
    return -(-size // block) * block


def group_size(group: int | None, sizes: tuple[int, ...], storage: str) -> int:
    """Numbers that share a scale; 0 where numbers have none."""
    if storage not in _GROUPED:
        if group is not None:
            raise ArgumentError("group", group, f"nothing: {storage} numbers have no scales")
        return 0
    widths = [_padded(size, storage) for size in sizes]
    fits = [g for g in range(32, min(widths) + 1, 32) if all(w % g == 0 for w in widths)]
    if group is None:
        return max(g for g in fits if g <= 64)
    if group not in fits:
        raise ArgumentError("group", group, " or ".join(map(str, fits)))
    return int(group)


class Rows:
    """Numbers (units, heads, rows, size), stored in a format."""

    def __init__(
        self, units: int, heads: int, rows: int, size: int, storage: str, group: int
    ) -> None:
        self.size, self.storage, self.group = size, storage, group
        self.width = _padded(size, storage)
        elements = self.width // 2 if storage == "int4" else self.width
        dtype = _ELEMENTS.get(storage) or np.dtype(storage)
        self.data: Array = np.zeros((units, heads, rows, elements), dtype)
        self.scales: Array | None = None
        if group:
            shape = (units, heads, self.width // group, rows + _ROOM)
            self.scales = np.zeros(shape, np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def arrays(self) -> list[Array]:
        """The arrays that hold the state."""
        return [self.data] if self.scales is None else [self.data, self.scales]

    def packed(self, array: Array, argument: str) -> tuple[Array, Array | None]:
        """(…, tokens, size) as it is stored, and scales (…, groups, tokens)."""
        from ..simd.formats import pack

        if self.storage == "float16" and (np.abs(array) > 65504).any():
            raise ArgumentError(argument, "numbers beyond 65504", "numbers that float16 can hold")
        if self.group and not np.isfinite(array).all():
            raise ArgumentError(
                argument, "numbers that are not finite", f"finite numbers, as {self.storage} has"
            )
        if self.width != self.size:
            wide = np.zeros((*array.shape[:-1], self.width), array.dtype)
            wide[..., : self.size] = array
            array = wide
        data, scales = pack(array, self.storage, self.group)
        return data, None if scales is None else scales.swapaxes(-1, -2)

    def write(self, unit: int, row: int, data: Array, scales: Array | None) -> None:
        """Store packed rows (heads, tokens, elements) from `row` on."""
        end = row + data.shape[-2]
        self.data[unit, :, row:end] = data
        if self.scales is not None:
            self.scales[unit, :, :, row:end] = scales

    def copy(self, unit: int, to: int, rows: int) -> None:
        """Copy the first rows of a unit to another."""
        self.data[to, :, :rows] = self.data[unit, :, :rows]
        if self.scales is not None:
            self.scales[to, :, :, :rows] = self.scales[unit, :, :, :rows]

    def read(self, unit: int, row: int, count: int) -> Array:
        """(heads, count, size) in the dtype that is computed in; a view where that is stored."""
        from ..simd.formats import unpack

        data = self.data[unit, :, row : row + count]
        scales = None
        if self.scales is not None:
            scales = self.scales[unit, :, :, row : row + count].swapaxes(-1, -2)
        return unpack(data, scales, self.storage)[..., : self.size]

    def grow(self, rows: int) -> None:
        """Make room for so many rows."""
        before = self.data.shape[2]
        old = self.data
        self.data = np.zeros((*old.shape[:2], rows, old.shape[3]), old.dtype)
        self.data[:, :, :before] = old
        if self.scales is not None:
            scales = self.scales
            self.scales = np.zeros((*scales.shape[:3], rows + _ROOM), np.float32)
            self.scales[..., :before] = scales[..., :before]
