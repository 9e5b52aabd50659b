"""The Gaussian kernel as a weight rule of the streaming engine, and the search for neighbours."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.core import types

from polyattn_core.simd import engine, threads
from polyattn_core.simd.edges import Edges
from polyattn_core.simd.jit import Kernel
from polyattn_core.simd.mathematics import exp
from polyattn_core.simd.rules import score_rule, squared_norm
from polyattn_core.simd.scores import counter_type, take_task

Array = npt.NDArray[Any]

HALF, TWO, ZERO = np.float32(0.5), np.float32(2), np.float32(0)

ROWS = 16
"""Rows of a task of the search."""


@score_rule(row=squared_norm, column=squared_norm)
def gaussian_weight(score, row, column, query, key):  # type: ignore[no-untyped-def]
    """exp(−½‖q − k‖²) for distinct tokens: no loops."""
    weight = exp(-HALF * max(row + column - TWO * score, ZERO))
    return ZERO if query == key else weight


@gaussian_weight.derivative
def gaussian_weight_derivative(score, row, column, query, key):  # type: ignore[no-untyped-def]
    weight = exp(-HALF * max(row + column - TWO * score, ZERO))
    weight = ZERO if query == key else weight
    return (weight, -HALF * weight, -HALF * weight)


@functools.cache
def nearest_kernel(dtype: str) -> Kernel:
    """The kernel ``(products, norms, visible, start, neighbours, counter)`` of a dtype.

    Of the products (rows, keys) of keys `start` … with all keys it finds the nearest keys of each,
    in rising order of distance; −1 where there are no more.
    """
    number = np.dtype(dtype).type
    infinite, two = number(np.inf), number(2)

    def nearest(products, norms, visible, start, neighbours, counter):  # type: ignore[no-untyped-def]
        rows, keys = products.shape
        k = neighbours.shape[1]
        best = np.empty(k, number)
        while True:
            first = take_task(counter) * ROWS
            if first >= rows:
                return
            for r in range(first, min(first + ROWS, rows)):
                for c in range(k):
                    best[c] = infinite
                    neighbours[r, c] = -1
                if not visible[start + r]:
                    continue
                for j in range(keys):
                    distance = norms[j] - two * products[r, j]
                    # The norm of the row is the same for all. Most keys are too far: one test.
                    if distance < best[k - 1] and j != start + r and visible[j]:
                        c = k - 1
                        while c > 0 and best[c - 1] > distance:
                            best[c] = best[c - 1]
                            neighbours[r, c] = neighbours[r, c - 1]
                            c -= 1
                        best[c] = distance
                        neighbours[r, c] = j

    scalar = types.float32 if dtype == "float32" else types.float64
    signature = types.void(
        types.Array(scalar, 2, "C", readonly=True),
        types.Array(scalar, 1, "C", readonly=True),
        types.Array(types.boolean, 1, "C", readonly=True),
        types.int64,
        types.Array(types.int64, 2, "C"),
        counter_type(),
    )
    return Kernel(nearest, signature, dtype)


def search(
    products: Array, norms: Array, visible: Array, start: int, out: Array, limit: int | None
) -> None:
    """Run `nearest_kernel`."""
    kernel = nearest_kernel(norms.dtype.name).compile()
    arguments = (products, norms, visible, start, out)
    threads.run(kernel, arguments, -(-len(products) // ROWS), limit or threads.limit())


def gaussian(points: Array, x: Array, limit: int | None) -> engine.Request:
    """The request of W x, with W the Gaussian kernel of points in units of the bandwidth."""
    return engine.Request(
        points, points, np.ascontiguousarray(x), 1.0, engine.NORMALISERS["elementwise"],
        ((gaussian_weight, ()),), threads=limit,
    )  # fmt: skip


def gaussian_gradient(points: Array, gradient: Array, x: Array, limit: int | None) -> Array:
    """The gradient by the points of ⟨W x, gradient⟩."""
    # Weights are functions of their own scores alone, so that the output does not matter.
    unused = np.zeros(points.shape[:3], x.dtype)
    state = engine.State(np.zeros_like(gradient), unused, unused)
    found = engine.backward(gaussian(points, x, limit), state, gradient)
    total: Array = found.query + found.key
    return total


__all__ = ["Edges", "engine", "gaussian", "gaussian_gradient", "search"]
