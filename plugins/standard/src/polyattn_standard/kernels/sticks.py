"""Weights of stick-breaking attention, and their pullback, row by row."""

from __future__ import annotations

import functools

import numba
import numpy as np
from numba.core import types

from polyattn_core.simd.jit import Kernel
from polyattn_core.simd.mathematics import exp


@functools.cache
def stick_kernels(dtype: str) -> tuple[Kernel, Kernel]:
    """`(scores, weights, shares)` and `(weights, shares, gradient, d_scores)`, (heads, rows, keys).

    What is left of the stick is a product of thousands of factors near 1: in float64.
    """
    number = np.dtype(dtype).type
    one = number(1)
    wide = np.float64(1)

    def weights_of(scores, weights, shares):  # type: ignore[no-untyped-def]
        heads, rows, keys = scores.shape
        kept = np.empty(keys, np.float64)
        for h in range(heads):
            for i in range(rows):
                for j in range(keys):
                    # e^−|s| and not eˢ, so that nothing overflows.
                    score = scores[h, i, j]
                    small = exp(-abs(score))
                    positive = score >= 0
                    shares[h, i, j] = (one if positive else small) / (one + small)
                    precise = np.float64(small)
                    kept[j] = (precise if positive else wide) / (wide + precise)
                left = wide
                for j in range(keys - 1, -1, -1):
                    weights[h, i, j] = number(left) * shares[h, i, j]
                    left *= kept[j]

    def pullback(weights, shares, gradient, d_scores):  # type: ignore[no-untyped-def]
        heads, rows, keys = weights.shape
        for h in range(heads):
            for i in range(rows):
                before = np.float64(0)
                for j in range(keys):
                    by_logarithm = weights[h, i, j] * gradient[h, i, j]
                    share = shares[h, i, j]
                    d_scores[h, i, j] = by_logarithm * (one - share) - share * number(before)
                    before += by_logarithm

    kind = getattr(numba.types, dtype)
    read, write = (types.Array(kind, 3, "C", readonly=fixed) for fixed in (True, False))
    return (
        Kernel(weights_of, types.void(read, write, write), dtype),
        Kernel(pullback, types.void(read, read, read, write), dtype),
    )
