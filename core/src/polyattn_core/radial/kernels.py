"""Lengths of vectors, and vectors times a number each, one pass over memory each.

Rows may lie in memory as they like as long as the numbers of one are next to each other.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba.core import types

from polyattn_core.arrays import Array
from polyattn_core.simd.jit import Kernel
from polyattn_core.simd.vector import hold, raw


def _lengths(x, out):  # type: ignore[no-untyped-def]
    """out = ‖x‖ of each row, summed in float64."""
    batches, heads, tokens, size = x.shape
    numbers = raw(x)
    for b in range(batches):
        for h in range(heads):
            for t in range(tokens):
                at = (b * x.strides[0] + h * x.strides[1] + t * x.strides[2]) // x.itemsize
                total = 0.0
                for d in range(size):
                    number = np.float64(numbers[at + d])
                    total += number * number
                out[b, h, t] = math.sqrt(total)
    hold(x)


def _scaled(x, ratio, out):  # type: ignore[no-untyped-def]
    """out = ratio · x for each row, the ratio rounded first."""
    batches, heads, tokens, size = x.shape
    numbers, found = raw(x), raw(out)
    for b in range(batches):
        for h in range(heads):
            for t in range(tokens):
                at = (b * x.strides[0] + h * x.strides[1] + t * x.strides[2]) // x.itemsize
                to = (b * out.strides[0] + h * out.strides[1] + t * out.strides[2]) // x.itemsize
                factor = x.dtype.type(ratio[b, h, t])
                for d in range(size):
                    found[to + d] = factor * numbers[at + d]
    hold(x, out)


def _kind(dtype: str) -> Any:
    return types.float32 if dtype == "float32" else types.float64


@functools.cache
def _lengths_kernel(dtype: str) -> Kernel:
    given = types.Array(_kind(dtype), 4, "A", readonly=True)
    return Kernel(_lengths, types.void(given, types.float64[:, :, ::1]), dtype)


@functools.cache
def _scaled_kernel(dtype: str) -> Kernel:
    given = types.Array(_kind(dtype), 4, "A", readonly=True)
    ratio = types.Array(types.float64, 3, "C", readonly=True)
    return Kernel(_scaled, types.void(given, ratio, types.Array(_kind(dtype), 4, "A")), dtype)


def takes(array: Array) -> bool:
    """Is it an array (batch, heads, tokens, size) that the kernels read?"""
    return array.ndim == 4 and array.dtype.name in ("float32", "float64") and array.dtype.isnative


def _in_rows(array: Array) -> bool:
    return array.flags.aligned and array.strides[-1] == array.itemsize


def lengths(array: Array) -> Array:
    """‖x‖ along the last axis, in float64."""
    array = array if _in_rows(array) else array.copy()
    out = np.empty(array.shape[:3])
    _lengths_kernel(array.dtype.name)(array, out)
    return out


def scaled(array: Array, ratio: Array, out: Array) -> Array:
    """`array` times `ratio` (batch, heads, tokens) in `out`."""
    array = array if _in_rows(array) else array.copy()
    _scaled_kernel(array.dtype.name)(array, np.ascontiguousarray(ratio), out)
    return out
