"""Score rules of curved spaces, compiled into passes over a tile."""

from __future__ import annotations

import numpy as np

from polyattn_core.simd.inverses import arc, arc_positive, arc_slope
from polyattn_core.simd.rules import score_rule, squared_norm

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
HALF, NEAR = np.float32(0.5), np.float32(1e-12)


@score_rule
def angle(dot, sharpness, noise):  # type: ignore[no-untyped-def]
    """−sharpness · θ for unit vectors, sin²(θ/2) = (1 − cos θ)/2; what may be rounding is 0."""
    square = (ONE - dot) * HALF
    square = ZERO if square < noise else square
    square = ONE if square > ONE else square
    return -TWO * sharpness * np.sqrt(square) * arc_positive(square)


@angle.derivative
def angle_derivative(dot, sharpness, noise):  # type: ignore[no-untyped-def]
    square = (ONE - dot) * HALF
    square = ZERO if square < noise else square
    square = ONE if square > ONE else square
    # Neither to itself nor to the opposite point has a point a direction: the subgradient is 0.
    sine = square * (ONE - square)
    slope = ZERO if sine < noise else HALF / np.sqrt(ONE if sine < noise else sine)
    return (sharpness * slope, -TWO * np.sqrt(square) * arc_positive(square), ZERO)


@score_rule(row=squared_norm, column=squared_norm)
def stereographic(dot, row, column, sharpness, curvature, noise):  # type: ignore[no-untyped-def]
    """−sharpness · d in the κ-stereographic model, for κ of either sign and 0."""
    square = row + column - TWO * dot
    square = ZERO if square < noise * (row + column) else square
    w = square / ((ONE + curvature * row) * (ONE + curvature * column))
    return -TWO * sharpness * np.sqrt(w) * arc(curvature * w)


@stereographic.derivative
def stereographic_derivative(  # type: ignore[no-untyped-def]
    dot, row, column, sharpness, curvature, noise
):
    square = row + column - TWO * dot
    square = ZERO if square < noise * (row + column) else square
    own, their = ONE + curvature * row, ONE + curvature * column
    w = square / (own * their)
    t = curvature * w
    root = np.sqrt(w)
    room = ONE - t
    apart = w > ZERO and room > NEAR
    slope = -sharpness / (root * np.sqrt(room) if apart else ONE)
    slope = slope if apart else ZERO
    by_square = slope / (own * their)
    by_own, by_their = -slope * w / own, -slope * w / their
    by_curvature = by_own * row + by_their * column - TWO * sharpness * w * root * arc_slope(t)
    return (
        -TWO * by_square,
        by_square + curvature * by_own,
        by_square + curvature * by_their,
        -TWO * root * arc(t),
        by_curvature,
        ZERO,
    )
