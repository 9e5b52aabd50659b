"""Masks that depend on the sequences in the batch: their lengths, their documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MaskError
from .algebra import BoolArray, Mask
from .program import MaskShape, Primitive, Program, per_batch

Integers = npt.NDArray[np.int64]


def _integers(argument: str, value: object, least: int | None) -> Integers:
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or (least is not None and array.size and array.min() < least):
        wanted = "whole numbers" + ("" if least is None else f" of at least {least}")
        raise MaskError(argument, value, wanted)
    array = array.astype(np.int64)
    array.flags.writeable = False
    return array


class _ByArrays:
    """Equality and hash of masks that hold arrays."""

    __slots__ = ()

    def _key(self) -> tuple[Any, ...]:
        fields = getattr(self, "__dataclass_fields__")  # noqa: B009 - absent on the mixin itself
        values = [getattr(self, name) for name, field in fields.items() if field.compare]
        return tuple(
            (v.shape, v.dtype.str, v.tobytes()) if isinstance(v, np.ndarray) else v for v in values
        )

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((type(self), self._key()))


@dataclass(frozen=True, slots=True, eq=False)
class _Lengths(_ByArrays, Mask):
    lengths: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", _integers("lengths", self.lengths, 0))

    def program(self, shape: MaskShape) -> Program:
        table = per_batch(self.lengths, shape, 0, "lengths")
        return (Primitive("below", (), table),)

    def _allowed(self, shape: MaskShape) -> BoolArray:
        lengths = per_batch(self.lengths, shape, 0, "lengths")
        return np.asarray(np.arange(shape.keys) < lengths[:, None, None, None])


@dataclass(frozen=True, slots=True, eq=False)
class Padding(_Lengths):
    """Only the first `lengths` keys of each sequence are real.

    `lengths` is a number, or an array that broadcasts to the leading axes of the call.
    """

    kind = "padding"


@dataclass(frozen=True, slots=True, eq=False)
class Prefix(_Lengths):
    """The first `lengths` keys are visible to every query.

    ``Causal() | Prefix(n)`` is the mask of a prefix language model.
    """

    kind = "prefix"


@dataclass(frozen=True, slots=True, eq=False)
class Documents(_ByArrays, Mask):
    """Queries see only keys of their own document: packed sequences of different lengths.

    `ids` (…, queries) numbers the document of each query, `key_ids` (…, keys) that of each key;
    the same by default.
    """

    ids: Any
    key_ids: Any = None

    kind = "documents"

    def __post_init__(self) -> None:
        for name in ("ids", "key_ids"):
            value = getattr(self, name)
            if value is None and name == "key_ids":
                continue
            array = _integers(name, value, None)
            if array.ndim < 1:
                raise MaskError(name, value, "an array (..., tokens) of document numbers")
            object.__setattr__(self, name, array)

    @classmethod
    def from_lengths(cls, *lengths: int) -> Documents:
        """Documents of these lengths, one behind the other."""
        return cls(np.repeat(np.arange(len(lengths)), lengths))

    def _tables(self, shape: MaskShape) -> tuple[Integers, Integers]:
        key_ids = self.ids if self.key_ids is None else self.key_ids
        for name, array, size, what in (
            ("ids", self.ids, shape.queries, "queries"),
            ("ids" if self.key_ids is None else "key_ids", key_ids, shape.keys, "keys"),
        ):
            if array.shape[-1] != size:
                raise MaskError(name, array.shape, f"a last axis of the {size} {what}")
        return per_batch(self.ids, shape, 1, "ids"), per_batch(key_ids, shape, 1, "key_ids")

    def program(self, shape: MaskShape) -> Program:
        ids, key_ids = self._tables(shape)
        batch = max(len(ids), len(key_ids))
        table = np.concatenate(
            (
                np.broadcast_to(ids, (batch, shape.queries)),
                np.broadcast_to(key_ids, (batch, shape.keys)),
            ),
            axis=1,
        )
        return (Primitive("equal", (), table),)

    def _allowed(self, shape: MaskShape) -> BoolArray:
        ids, key_ids = self._tables(shape)
        return np.asarray(ids[:, None, :, None] == key_ids[:, None, None, :])
