"""ln Σ exp along either axis of the log features of a low-rank kernel, shifted by potentials."""

from __future__ import annotations

import functools
import math

import numba
import numpy as np
from numba.core import types

from polyattn_core.simd.jit import Kernel
from polyattn_core.simd.mathematics import exp
from polyattn_core.simd.scores import counter_type, take_task

BLOCK = 256
"""Rows of a task of the second kernel."""


@functools.cache
def factor_kernels(dtype: str) -> tuple[Kernel, Kernel]:
    """`(array, shift, out, counter)`, twice, of arrays (heads, n, rank).

    Of columns, with a shift (heads, n) for each row: (heads, rank). Of rows, with a shift (heads,
    rank) for each column: (heads, n). −∞ where all is.
    """
    number = np.dtype(dtype).type
    zero, lowest = number(0), number(-np.inf)
    block = BLOCK

    def columns(array, shift, out, counter):  # type: ignore[no-untyped-def]
        heads, count, rank = array.shape
        most, total = np.empty(rank, number), np.empty(rank, number)
        while True:
            h = take_task(counter)
            if h >= heads:
                break
            for r in range(rank):
                most[r], total[r] = lowest, zero
            for i in range(count):
                for r in range(rank):
                    x = array[h, i, r] + shift[h, i]
                    most[r] = x if x > most[r] else most[r]
            for r in range(rank):
                most[r] = zero if most[r] == lowest else most[r]
            for i in range(count):
                for r in range(rank):
                    total[r] += exp(array[h, i, r] + shift[h, i] - most[r])
            for r in range(rank):
                out[h, r] = lowest if total[r] == zero else most[r] + math.log(total[r])

    def rows(array, shift, out, counter):  # type: ignore[no-untyped-def]
        heads, count, rank = array.shape
        parts = (count + block - 1) // block
        while True:
            task = take_task(counter)
            if task >= heads * parts:
                break
            h, first = task // parts, task % parts * block
            for i in range(first, min(first + block, count)):
                most, total = lowest, zero
                for r in range(rank):
                    x = array[h, i, r] + shift[h, r]
                    most = x if x > most else most
                most = zero if most == lowest else most
                for r in range(rank):
                    total += exp(array[h, i, r] + shift[h, r] - most)
                out[h, i] = lowest if total == zero else most + math.log(total)

    kind = getattr(numba.types, dtype)
    read = (types.Array(kind, 3, "C", readonly=True), types.Array(kind, 2, "C", readonly=True))
    signature = types.void(*read, types.Array(kind, 2, "C"), counter_type())
    return Kernel(columns, signature, dtype), Kernel(rows, signature, dtype)
