"""Score and weight rules of the standard mechanisms, compiled into passes over a tile."""

from __future__ import annotations

import numpy as np

from polyattn_core.simd.mathematics import sigmoid
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
