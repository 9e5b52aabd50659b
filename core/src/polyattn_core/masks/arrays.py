"""Masks given as arrays or as code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import MaskError
from .algebra import BoolArray, Mask
from .program import FAR, MaskShape, Primitive, Program, Table, per_batch
from .sequences import _ByArrays


def _booleans(argument: str, value: object, least_ndim: int, axes: str) -> Any:
    array = np.asarray(value)
    if array.dtype != np.bool_ or array.ndim < least_ndim:
        described = f"{array.dtype} array of shape {array.shape}"
        raise MaskError(argument, described, f"a boolean array {axes}")
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array


def _with_heads(array: Table, shape: MaskShape, argument: str, tail: tuple[int, int]) -> Table:
    """(…, [heads,] rows, columns) as (batch or 1, heads or 1, rows, columns)."""
    if array.ndim == 2:
        array = array[None]
    if array.shape[-3] not in (1, shape.heads):
        raise MaskError(argument, array.shape, f"1 or {shape.heads} heads in the third last axis")
    for size, wanted, what in zip(array.shape[-2:], tail, ("rows", "columns"), strict=True):
        if size not in (1, wanted):
            raise MaskError(argument, array.shape, f"1 or {wanted} {what}")
    return per_batch(array, shape, 3, argument)


@dataclass(frozen=True, slots=True, eq=False)
class Dense(_ByArrays, Mask):
    """A boolean array (…, heads, queries, keys) that broadcasts to the call; True is visible."""

    array: Any
    argument: str = field(default="array", compare=False, repr=False, kw_only=True)
    """What errors call the array: `mask`, where it was passed as that."""

    kind = "dense"

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "array", _booleans(self.argument, self.array, 2, "(..., heads, queries, keys)")
        )

    def program(self, shape: MaskShape) -> Program:
        table = _with_heads(self.array, shape, self.argument, (shape.queries, shape.keys))
        return (Primitive("dense", (), table.view(np.uint8)),)

    def _allowed(self, shape: MaskShape) -> BoolArray:
        return np.asarray(
            _with_heads(self.array, shape, self.argument, (shape.queries, shape.keys))
        )

    def __repr__(self) -> str:
        return f"Dense(<{'×'.join(map(str, self.array.shape))} booleans>)"


@dataclass(frozen=True, slots=True, eq=False)
class Blocks(_ByArrays, Mask):
    """A boolean layout (…, heads, query blocks, key blocks) of square blocks of `size` tokens."""

    layout: Any
    size: int

    kind = "blocks"

    def __post_init__(self) -> None:
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        if not whole or not 1 <= self.size <= FAR:
            raise MaskError("size", self.size, "a whole number from 1 to 2⁴⁰")
        object.__setattr__(
            self,
            "layout",
            _booleans("layout", self.layout, 2, "(..., heads, query blocks, key blocks)"),
        )

    def _table(self, shape: MaskShape) -> Table:
        needed = (-(-shape.queries // self.size), -(-shape.keys // self.size))
        return _with_heads(self.layout, shape, "layout", needed)

    def program(self, shape: MaskShape) -> Program:
        table = self._table(shape).view(np.uint8)
        return (Primitive("blocks", (self.size, self.size), table),)

    def _allowed(self, shape: MaskShape) -> BoolArray:
        table = self._table(shape)
        rows, columns = np.arange(shape.queries) // self.size, np.arange(shape.keys) // self.size
        rows = rows if table.shape[2] > 1 else rows * 0
        columns = columns if table.shape[3] > 1 else columns * 0
        return np.asarray(table[:, :, rows[:, None], columns[None, :]])

    def __repr__(self) -> str:
        return f"Blocks(<{'×'.join(map(str, self.layout.shape))} layout>, size={self.size})"


@dataclass(frozen=True, slots=True)
class Predicate(Mask):
    """A function ``(batch, head, query, key) -> bool`` of integers, compiled on first use.

    It sees positions only, never values, and is called once for each pair in tiles that other
    masks have not already decided.
    """

    function: Callable[[int, int, int, int], bool]

    kind = "predicate"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise MaskError(
                "function", self.function, "a function (batch, head, query, key) -> bool"
            )

    def program(self, shape: MaskShape) -> Program:
        from ..simd.predicates import compiled

        code = compiled(self.function)
        return (Primitive("predicate", (code.address,), keep=code),)

    def _allowed(self, shape: MaskShape) -> BoolArray:
        sizes = (shape.batch, shape.heads, shape.queries, shape.keys)
        function = getattr(self.function, "py_func", self.function)
        flat = [bool(function(*map(int, index))) for index in np.ndindex(sizes)]
        return np.array(flat, bool).reshape(sizes)
