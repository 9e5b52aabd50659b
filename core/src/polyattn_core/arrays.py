"""Checking and laying out the arrays of an attention call.

Every call is brought to one canonical layout, ``(batch, heads, tokens, size)`` with the last axis
contiguous, in the dtype that is computed in. Views are used wherever strides allow.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError, DTypeError, ShapeError

Array = npt.NDArray[Any]

_COMPUTE: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float64): np.dtype(np.float64),
    np.dtype(np.float32): np.dtype(np.float32),
    np.dtype(np.float16): np.dtype(np.float32),
}
_NAMES = {dtype: dtype.name for dtype in _COMPUTE}
ACCEPTED_DTYPES = "an array of float16, bfloat16, float32 or float64"


def compute_dtype(dtype: np.dtype[Any], argument: str) -> np.dtype[Any]:
    """The dtype that arrays of this dtype are computed in."""
    found = _COMPUTE.get(dtype if dtype.isnative else dtype.newbyteorder("="))
    if found is not None:
        return found
    if dtype.name == "bfloat16":  # from ml_dtypes, which need not be imported to be recognised
        return _COMPUTE[np.dtype(np.float32)]
    raise DTypeError(argument, str(dtype), ACCEPTED_DTYPES)


def named_dtype(name: str) -> np.dtype[Any]:
    """The dtype of this name, which is one of `spec.DTYPES`."""
    if name == "bfloat16":
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(name)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which NumPy works out anew at every access, slowly."""
    return _NAMES.get(dtype) or str(dtype.name)


def as_array(value: object, argument: str) -> Array:
    """`value` as an array of a supported dtype; Python lists of numbers become float64."""
    if isinstance(value, np.ndarray):
        compute_dtype(value.dtype, argument)
        return value if type(value) is np.ndarray else _ordinary(value, argument)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ShapeError(argument, str(error), "a rectangular array of numbers") from None
    if array.dtype.kind in "iub" and not isinstance(value, np.generic):
        array = array.astype(np.float64)
    compute_dtype(array.dtype, argument)
    return array


def _ordinary(value: Array, argument: str) -> Array:
    """The data of an array of a subclass: a matrix, say, multiplies in another way."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        accepted = "one that hides nothing (mask= hides keys; fill what is missing)"
        raise ArgumentError(argument, "a masked array", accepted)
    return np.asarray(value)


def check_qkv(query: Array, key: Array, value: Array) -> None:
    """Check head-level arrays against each other.

    Raises
    ------
    ShapeError
        Naming the argument, its shape and what would fit.
    DTypeError
        Where the three differ in dtype.
    """
    for argument, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim < 3:
            raise ShapeError(
                argument, array.shape, "at least 3 axes: (..., heads, tokens, head size)"
            )
        if 0 in array.shape[-3:]:
            raise ShapeError(argument, array.shape, "no empty axis among heads, tokens, head size")
    if not (query.dtype == key.dtype == value.dtype):
        raise DTypeError(
            "query, key, value",
            f"{query.dtype}, {key.dtype}, {value.dtype}",
            "one dtype for all three",
        )
    if key.shape[-1] != query.shape[-1]:
        raise ShapeError("key", key.shape, f"head size {query.shape[-1]} like query {query.shape}")
    if value.shape[-2] != key.shape[-2]:
        raise ShapeError("value", value.shape, f"{key.shape[-2]} tokens like key {key.shape}")
    if value.shape[-3] != key.shape[-3]:
        raise ShapeError("value", value.shape, f"{key.shape[-3]} heads like key {key.shape}")
    if query.shape[-3] % key.shape[-3]:
        raise ShapeError(
            "query",
            query.shape,
            f"a number of heads that is a multiple of the {key.shape[-3]} of key",
        )


def lead_shape(*arrays: Array) -> tuple[int, ...]:
    """The broadcast of all axes before (heads, tokens, size)."""
    first = arrays[0].shape[:-3]
    if all(array.shape[:-3] == first for array in arrays[1:]):
        return first
    try:
        return np.broadcast_shapes(*(array.shape[:-3] for array in arrays))
    except ValueError:
        raise ShapeError(
            "query, key, value",
            ", ".join(str(array.shape) for array in arrays),
            "leading axes that broadcast with each other",
        ) from None


def canonical(array: Array, lead: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """`array` as (batch, heads, tokens, size), last axis contiguous; a view if it can be."""
    if array.dtype != dtype:
        array = array.astype(dtype)
    if array.strides[-1] != array.itemsize and array.shape[-1] > 1:
        array = np.ascontiguousarray(array)
    if not array.flags.aligned or not array.dtype.isnative:
        array = np.array(array, dtype=dtype.newbyteorder("="))
    if array.shape[:-3] != lead:
        array = np.broadcast_to(array, lead + array.shape[-3:])
    if len(lead) == 1:
        return array
    return array.reshape((math.prod(lead), *array.shape[-3:]))


def unbroadcast(array: Array, shape: tuple[int, ...]) -> Array:
    """Sum `array` over the axes along which something of `shape` was broadcast to it."""
    extra = array.ndim - len(shape)
    if extra:
        array = array.sum(axis=tuple(range(extra)))
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and array.shape[i] != 1)
    return array.sum(axis=axes, keepdims=True) if axes else array


def split_heads(array: Array, heads: int, argument: str) -> Array:
    """(…, tokens, heads·size) → (…, heads, tokens, size), a view."""
    width = array.shape[-1]
    if width % heads:
        raise ShapeError(argument, array.shape, f"a last axis that splits into {heads} heads")
    split = array.reshape((*array.shape[:-1], heads, width // heads))
    return split.swapaxes(-3, -2)


def merge_heads(array: Array) -> Array:
    """(…, heads, tokens, size) → (…, tokens, heads·size); a view where memory already lies so."""
    moved = array.swapaxes(-3, -2)
    return moved.reshape((*moved.shape[:-2], moved.shape[-2] * moved.shape[-1]))
