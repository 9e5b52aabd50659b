"""Soft-max along the keys of a panel, in place, and its pullback."""

from __future__ import annotations

import functools

import numba
import numpy as np
from numba.core import types

from polyattn_core.simd.jit import Kernel
from polyattn_core.simd.mathematics import exp


@functools.cache
def softmax_kernels(dtype: str) -> tuple[Kernel, Kernel]:
    """`(scores)` and `(weights, gradient, d_scores)`, all (heads, rows, keys).

    Rows of which nothing is visible become 0.
    """
    number = np.dtype(dtype).type
    zero, one, lowest = number(0), number(1), number(-np.inf)

    def softmax(scores):  # type: ignore[no-untyped-def]
        heads, rows, keys = scores.shape
        for h in range(heads):
            for i in range(rows):
                most = lowest
                for j in range(keys):
                    score = scores[h, i, j]
                    most = score if score > most else most
                most = zero if most == lowest else most
                total = zero
                for j in range(keys):
                    weight = exp(scores[h, i, j] - most)
                    scores[h, i, j] = weight
                    total += weight
                scale = one if total == zero else one / total
                for j in range(keys):
                    scores[h, i, j] *= scale

    def pullback(weights, gradient, d_scores):  # type: ignore[no-untyped-def]
        heads, rows, keys = weights.shape
        for h in range(heads):
            for i in range(rows):
                mean = zero
                for j in range(keys):
                    mean += weights[h, i, j] * gradient[h, i, j]
                for j in range(keys):
                    d_scores[h, i, j] = weights[h, i, j] * (gradient[h, i, j] - mean)

    kind = getattr(numba.types, dtype)
    read, write = (types.Array(kind, 3, "C", readonly=fixed) for fixed in (True, False))
    return (
        Kernel(softmax, types.void(write), dtype),
        Kernel(pullback, types.void(read, read, write), dtype),
    )
