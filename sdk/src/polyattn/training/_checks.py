"""Checks of arguments that the parts of training share."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from polyattn_core.arrays import Array, as_array, compute_dtype
from polyattn_core.errors import ArgumentError, DTypeError, ShapeError


def real(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """A finite number within bounds."""
    good = isinstance(value, int | float | np.integer | np.floating)
    good = good and not isinstance(value, bool) and math.isfinite(value)
    tests = (
        ("above", above, operator.gt),
        ("at least", least, operator.ge),
        ("below", below, operator.lt),
        ("at most", most, operator.le),
    )
    bounds = [(word, bound, test) for word, bound, test in tests if bound is not None]
    if not good or not all(test(value, bound) for _, bound, test in bounds):
        words = " and ".join(f"{word} {bound:g}" for word, bound, _ in bounds)
        raise ArgumentError(name, value, f"a finite number {words}".rstrip())
    return float(value)


def whole(name: str, value: Any, least: int = 0) -> int:
    """A whole number of at least so much."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ArgumentError(name, value, f"a whole number of at least {least}")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """True or False, and nothing that is merely taken for it."""
    if not isinstance(value, bool | np.bool_):
        raise ArgumentError(name, value, "True or False")
    return bool(value)


def vectors(name: str, array: Any, axes: int = 1) -> Array:
    """An array of finite vectors in the dtype that is computed in, in C order."""
    found = as_array(array, name)
    if found.ndim < axes or 0 in found.shape:
        raise ShapeError(name, found.shape, f"at least {axes} axes, none of them empty")
    found = np.ascontiguousarray(found, compute_dtype(found.dtype, name))
    if not np.isfinite(found).all():
        raise ArgumentError(name, "values that are not finite", "finite numbers")
    return found


def alike(**arrays: Array) -> None:
    """All of one dtype."""
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    if len(set(dtypes.values())) > 1:
        raise DTypeError(", ".join(dtypes), ", ".join(dtypes.values()), "one dtype for all")


def same_shape(like: str, shape: tuple[int, ...], **arrays: Array) -> None:
    """All of the shape of the argument `like`."""
    for name, array in arrays.items():
        if array.shape != shape:
            raise ShapeError(name, array.shape, f"shape {shape} like {like}")
