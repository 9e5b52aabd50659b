"""Lengths of vectors, and vectors times a number each, one pass over memory each.

Rows may lie in memory as they like as long as the numbers of one are next to each other.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba.core import types

from . import threads
from .jit import Kernel
from .scores import counter_type, take_task
from .vector import hold, raw

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 15
"""Numbers of a task: some ten microseconds."""


def _lengths(x, block, out, counter):  # type: ignore[no-untyped-def]
    """out = ‖x‖ of each row, summed in float64."""
    _, heads, tokens, size = x.shape
    numbers = raw(x)
    parts = (tokens + block - 1) // block
    while True:
        task = take_task(counter)
        if task >= x.shape[0] * heads * parts:
            break
        b, h, first = task // parts // heads, task // parts % heads, task % parts * block
        for t in range(first, min(first + block, tokens)):
            at = (b * x.strides[0] + h * x.strides[1] + t * x.strides[2]) // x.itemsize
            total = 0.0
            for d in range(size):
                number = np.float64(numbers[at + d])
                total += number * number
            out[b, h, t] = math.sqrt(total)
    hold(x)


def _scaled(x, ratio, block, out, counter):  # type: ignore[no-untyped-def]
    """out = ratio · x for each row, the ratio rounded first."""
    _, heads, tokens, size = x.shape
    numbers, found = raw(x), raw(out)
    parts = (tokens + block - 1) // block
    while True:
        task = take_task(counter)
        if task >= x.shape[0] * heads * parts:
            break
        b, h, first = task // parts // heads, task // parts % heads, task % parts * block
        for t in range(first, min(first + block, tokens)):
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
    out = types.float64[:, :, ::1]
    return Kernel(_lengths, types.void(given, types.int64, out, counter_type()), dtype)


@functools.cache
def _scaled_kernel(dtype: str) -> Kernel:
    given = types.Array(_kind(dtype), 4, "A", readonly=True)
    ratio = types.Array(types.float64, 3, "C", readonly=True)
    out = types.Array(_kind(dtype), 4, "A")
    return Kernel(_scaled, types.void(given, ratio, types.int64, out, counter_type()), dtype)


def takes(array: Array) -> bool:
    """Is it an array (batch, heads, tokens, size) that the kernels read?"""
    return array.ndim == 4 and array.dtype.name in ("float32", "float64") and array.dtype.isnative


def _in_rows(array: Array) -> bool:
    return array.flags.aligned and array.strides[-1] == array.itemsize


def _run(kernel: Kernel, array: Array, *others: Array) -> None:
    """Rows of a task, and threads, as there are numbers."""
    block = max(_BLOCK // max(array.shape[3], 1), 1)
    tasks = array.shape[0] * array.shape[1] * -(-array.shape[2] // block)
    workers = min(threads.limit(), array.size // _BLOCK)
    threads.run(kernel, (array, *others[:-1], block, others[-1]), tasks, workers)


def lengths(array: Array) -> Array:
    """‖x‖ along the last axis, in float64."""
    array = array if _in_rows(array) else array.copy()
    out = np.empty(array.shape[:3])
    _run(_lengths_kernel(array.dtype.name), array, out)
    return out


def scaled(array: Array, ratio: Array, out: Array) -> Array:
    """`array` times `ratio` (batch, heads, tokens) in `out`."""
    array = array if _in_rows(array) else array.copy()
    _run(_scaled_kernel(array.dtype.name), array, np.ascontiguousarray(ratio), out)
    return out
