"""Scores of additive attention for a panel, and their pullback, keys in the lanes.

As tanh x = 1 − 2/(1 + e²ˣ) and e^2(q + k) = e²ᵠ · e²ᵏ, exponentials are computed for each token,
and a pair costs a division for each hidden unit; two units share one. Where tokens are so large
that products would overflow, tanh is computed as it is.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba.core import types

from polyattn_core.simd.jit import Kernel, embed
from polyattn_core.simd.mathematics import exp, tanh

_BLOCK = 64  # keys whose exponentials are held at a time, for all hidden units
_LARGEST = {"float32": 10.0, "float64": 80.0}  # with these e^8x, the most that occurs, is finite


@functools.cache
def additive_kernels(dtype: str) -> tuple[Kernel, Kernel]:
    """`(query, key, vector, scores)`, `(query, key, vector, gradient, d_query, d_key, d_vector)`.

    Queries (heads, rows, hidden) and keys (heads, hidden, keys), a vector (heads, hidden).
    """
    number = np.dtype(dtype).type
    zero, one, two = number(0), number(1), number(2)
    largest = number(_LARGEST[dtype])
    block = _BLOCK

    @embed
    def grow_queries(query, h, own):  # type: ignore[no-untyped-def]
        """own = e²ᵠ; are all small?"""
        small = True
        for i in range(query.shape[1]):
            for u in range(query.shape[2]):
                small &= abs(query[h, i, u]) <= largest
                own[i, u] = exp(two * query[h, i, u])
        return small

    @embed
    def grow_keys(key, h, first, count, grown):  # type: ignore[no-untyped-def]
        """grown = e²ᵏ, 0 beyond the last key; are all small?"""
        small = True
        for u in range(key.shape[1]):
            for j in range(count):
                small &= abs(key[h, u, first + j]) <= largest
                grown[u, j] = exp(two * key[h, u, first + j])
            for j in range(count, block):
                grown[u, j] = zero
        return small

    def scores(query, key, vector, out):  # type: ignore[no-untyped-def]
        heads, rows, hidden = query.shape
        keys = key.shape[2]
        own, grown = np.empty((rows, hidden), number), np.empty((hidden, block), number)
        line = np.empty(block, number)
        for h in range(heads):
            total = zero
            for u in range(hidden):
                total += vector[h, u]
            few = grow_queries(query, h, own)
            for first in range(0, keys, block):
                count = min(block, keys - first)
                if few & grow_keys(key, h, first, count, grown):
                    for i in range(rows):
                        for j in range(block):
                            line[j] = total
                        for u in range(0, hidden - 1, 2):
                            a, b = own[i, u], own[i, u + 1]
                            to_a, to_b = -two * vector[h, u], -two * vector[h, u + 1]
                            for j in range(block):
                                x, y = one + a * grown[u, j], one + b * grown[u + 1, j]
                                line[j] += (to_a * y + to_b * x) / (x * y)
                        for u in range(hidden - hidden % 2, hidden):
                            for j in range(block):
                                line[j] -= two * vector[h, u] / (one + own[i, u] * grown[u, j])
                        for j in range(count):
                            out[h, i, first + j] = line[j]
                else:
                    for i in range(rows):
                        for j in range(block):
                            line[j] = zero
                        for u in range(hidden):
                            for j in range(count):
                                line[j] += vector[h, u] * tanh(
                                    query[h, i, u] + key[h, u, first + j]
                                )
                        for j in range(count):
                            out[h, i, first + j] = line[j]

    def pullback(query, key, vector, gradient, d_query, d_key, d_vector):  # type: ignore[no-untyped-def]
        heads, rows, hidden = query.shape
        keys = key.shape[2]
        own, grown = np.empty((rows, hidden), number), np.empty((hidden, block), number)
        line, bent = np.zeros(block, number), np.empty(block, number)
        d_grown = np.empty((hidden, block), number)
        for h in range(heads):
            few = grow_queries(query, h, own)
            for first in range(0, keys, block):
                count = min(block, keys - first)
                small = few & grow_keys(key, h, first, count, grown)
                d_grown[:] = zero
                for i in range(rows):
                    for j in range(count):
                        line[j] = gradient[h, i, first + j]
                    for j in range(count, block):
                        line[j] = zero
                    for u in range(hidden):
                        if small:
                            for j in range(block):
                                bent[j] = one - two / (one + own[i, u] * grown[u, j])
                        else:
                            for j in range(count):
                                bent[j] = tanh(query[h, i, u] + key[h, u, first + j])
                            for j in range(count, block):
                                bent[j] = zero
                        along, step = zero, zero
                        for j in range(block):
                            # Hidden keys have no gradient, and may be anything.
                            t = zero if line[j] == zero else bent[j]
                            slope = line[j] * (one - t * t)
                            along += line[j] * t
                            step += slope
                            d_grown[u, j] += vector[h, u] * slope
                        d_vector[h, u] += along
                        d_query[h, i, u] += vector[h, u] * step
                for u in range(hidden):
                    for j in range(count):
                        d_key[h, u, first + j] += d_grown[u, j]

    def array(axes: int, *, written: bool = False) -> Any:
        return types.Array(getattr(numba.types, dtype), axes, "C", readonly=not written)

    read = (array(3), array(3), array(2))
    sums = (array(3, written=True), array(3, written=True), array(2, written=True))
    return (
        Kernel(scores, types.void(*read, array(3, written=True)), dtype),
        Kernel(pullback, types.void(*read, array(3), *sums), dtype),
    )
