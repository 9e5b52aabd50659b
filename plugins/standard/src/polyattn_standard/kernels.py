"""Score and weight rules of the standard mechanisms, compiled into passes over a tile."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from polyattn_core.simd.jit import Kernel
from polyattn_core.simd.mathematics import sigmoid, tanh
from polyattn_core.simd.rules import score_rule, squared_norm

ONE, TWO = np.float32(1), np.float32(2)
ZERO = np.float32(0)


@score_rule
def gain(score, factor):  # type: ignore[no-untyped-def]
    """factor · score."""
    return factor * score


@gain.derivative
def gain_derivative(score, factor):  # type: ignore[no-untyped-def]
    return (factor, score)


@score_rule(row=squared_norm, column=squared_norm)
def squared_distance(score, row, column, sharpness):  # type: ignore[no-untyped-def]
    """−sharpness · ‖q − k‖² from q·k and the squared norms; never positive."""
    return -sharpness * max(row + column - TWO * score, ZERO)


@squared_distance.derivative
def squared_distance_derivative(score, row, column, sharpness):  # type: ignore[no-untyped-def]
    distance = row + column - TWO * score
    return (TWO * sharpness, -sharpness, -sharpness, -distance)


@score_rule
def sigmoid_weight(score, offset):  # type: ignore[no-untyped-def]
    """σ(score + offset)."""
    return sigmoid(score + offset)


@sigmoid_weight.derivative
def sigmoid_weight_derivative(score, offset):  # type: ignore[no-untyped-def]
    weight = sigmoid(score + offset)
    slope = weight * (ONE - weight)
    return (slope, slope)


@score_rule
def relu_squared_weight(score, factor):  # type: ignore[no-untyped-def]
    """factor · relu(score)²; NaN stays NaN."""
    positive = ZERO if score < ZERO else score
    return factor * positive * positive


@relu_squared_weight.derivative
def relu_squared_weight_derivative(score, factor):  # type: ignore[no-untyped-def]
    positive = ZERO if score < ZERO else score
    return (TWO * factor * positive, positive * positive)


@functools.cache
def additive_kernels(dtype: str) -> tuple[Any, Any]:
    """Scores of a panel and their pullback, compiled for a dtype."""
    number = getattr(numba.types, dtype)
    zero, one = np.dtype(dtype).type(0), np.dtype(dtype).type(1)

    def scores(query, key, vector, out):  # type: ignore[no-untyped-def]
        heads, rows, hidden = query.shape
        for h in range(heads):
            for i in range(rows):
                for j in range(key.shape[1]):
                    total = zero
                    for u in range(hidden):
                        total += vector[h, u] * tanh(query[h, i, u] + key[h, j, u])
                    out[h, i, j] = total

    def pullback(query, key, vector, gradient, d_query, d_key, d_vector):  # type: ignore[no-untyped-def]
        heads, rows, hidden = query.shape
        for h in range(heads):
            for i in range(rows):
                for j in range(key.shape[1]):
                    g = gradient[h, i, j]
                    if g == zero:  # hidden: what stands there may be anything
                        continue
                    for u in range(hidden):
                        t = tanh(query[h, i, u] + key[h, j, u])
                        step = g * vector[h, u] * (one - t * t)
                        d_vector[h, u] += g * t
                        d_query[h, i, u] += step
                        d_key[h, j, u] += step

    matrix, read = (
        numba.types.Array(number, 3, "C"),
        numba.types.Array(number, 2, "C", readonly=True),
    )
    rows = numba.types.Array(number, 3, "A")
    return (
        Kernel(scores, numba.void(rows, matrix, read, matrix), dtype),
        Kernel(
            pullback,
            numba.void(
                rows, matrix, read, matrix, matrix, matrix, numba.types.Array(number, 2, "C")
            ),
            dtype,
        ),
    )
