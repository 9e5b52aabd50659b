"""Lengths of vectors, and vectors times a number each, one pass over memory each.

Rows may lie in memory as they like as long as the numbers of one are next to each other.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np
from numba.core import types

from . import threads
from .jit import Kernel, embed
from .scores import counter_type, take_task
from .vector import hold, raw

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 15
"""Numbers of a task: some ten microseconds."""


def _length(numbers, at, size, ratio, found, to):  # type: ignore[no-untyped-def]
    """‖x‖, summed in float64."""
    total = 0.0
    for d in range(size):
        number = np.float64(numbers[at + d])
        total += number * number
    found[to] = math.sqrt(total)


def _multiple(numbers, at, size, ratio, found, to):  # type: ignore[no-untyped-def]
    """ratio · x, the ratio rounded first."""
    for d in range(size):
        found[to + d] = ratio * numbers[at + d]


@functools.cache
def _kernel(dtype: str, lengths: bool) -> Kernel:
    """What is written for each row: its length, in float64, or a multiple, in its dtype."""
    row = embed(_length if lengths else _multiple)
    number = np.dtype(dtype).type

    def over_rows(x, ratio, block, out, counter):  # type: ignore[no-untyped-def]
        batches, heads, tokens, size = x.shape
        numbers, found = raw(x), raw(out)
        parts = (tokens + block - 1) // block
        while True:
            task = take_task(counter)
            if task >= batches * heads * parts:
                break
            b, h, first = task // parts // heads, task // parts % heads, task % parts * block
            for t in range(first, min(first + block, tokens)):
                at = (b * x.strides[0] + h * x.strides[1] + t * x.strides[2]) // x.itemsize
                to = (b * out.strides[0] + h * out.strides[1] + t * out.strides[2]) // out.itemsize
                row(numbers, at, size, number(ratio[b, h, t]), found, to)
        hold(x, out)

    kind = numba.from_dtype(np.dtype(dtype))
    given = types.Array(kind, 4, "A", readonly=True)
    ratio = types.Array(types.float64, 3, "A", readonly=True)
    out = types.Array(types.float64 if lengths else kind, 4, "A")
    signature = types.void(given, ratio, types.int64, out, counter_type())
    return Kernel(over_rows, signature, f"{dtype} {'lengths' if lengths else 'multiples'}")


def takes(array: Array) -> bool:
    """Is it an array (batch, heads, tokens, size) that the kernels read?"""
    return array.ndim == 4 and array.dtype.name in ("float32", "float64") and array.dtype.isnative


def _in_rows(array: Array) -> bool:
    return array.flags.aligned and array.strides[-1] == array.itemsize


def _run(array: Array, ratio: Array, out: Array, *, lengths: bool) -> None:
    array = array if _in_rows(array) else array.copy()
    block = max(_BLOCK // max(array.shape[3], 1), 1)
    tasks = array.shape[0] * array.shape[1] * -(-array.shape[2] // block)
    kernel = _kernel(array.dtype.name, lengths)
    threads.run(kernel, (array, ratio, block, out), tasks, array.size // _BLOCK)


def lengths(array: Array) -> Array:
    """‖x‖ along the last axis, in float64."""
    out = np.empty((*array.shape[:3], 1))
    _run(array, np.broadcast_to(1.0, array.shape[:3]), out, lengths=True)
    return out[..., 0]


def scaled(array: Array, ratio: Array, out: Array) -> Array:
    """`array` times `ratio` (batch, heads, tokens) in `out`."""
    _run(array, ratio, out, lengths=False)
    return out
