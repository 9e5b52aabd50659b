"""Score rules of hyperbolic attention, compiled into passes over a tile."""

from __future__ import annotations

import numpy as np

from polyattn_core.simd.inverses import arc_positive
from polyattn_core.simd.logarithms import arccosh1p
from polyattn_core.simd.rules import Statistic, score_rule, squared_norm

ZERO, ONE, TWO, FOUR = np.float32(0), np.float32(1), np.float32(2), np.float32(4)
HALF, NEAR = np.float32(0.5), np.float32(1e-12)


def _height(x):  # type: ignore[no-untyped-def]
    square = np.einsum("...d,...d->...", x, x)
    return square / (1 + np.sqrt(1 + square))


height = Statistic(
    "height", _height, lambda x, gradient: x * (gradient / (1 + _height(x)))[..., None]
)
"""√(1 + |x|²) − 1: by how much the point of the unit hyperboloid above x is higher than the lowest.

With it q₀k₀ − 1 is a sum of positive numbers, and near the origin nothing of 1 has to cancel.
"""


@score_rule(row=height, column=height)
def geodesic(dot, row, column, sharpness, noise):  # type: ignore[no-untyped-def]
    """−sharpness · arcosh(q₀k₀ − q·k); what may be rounding alone is 0."""
    sum_ = row * column + (row + column)
    above = sum_ - dot
    above = ZERO if above < noise * sum_ else above
    return -sharpness * arccosh1p(above)


@geodesic.derivative
def geodesic_derivative(dot, row, column, sharpness, noise):  # type: ignore[no-untyped-def]
    sum_ = row * column + (row + column)
    above = sum_ - dot
    above = ZERO if above < noise * sum_ else above
    square = above * (above + TWO)
    # A point has no direction to itself: the distance's subgradient there is 0.
    slope = sharpness / np.sqrt(ONE if square == ZERO else square)
    slope = ZERO if square == ZERO else slope
    return (slope, -slope * (ONE + column), -slope * (ONE + row), -arccosh1p(above), ZERO)


@score_rule(row=height, column=height)
def lorentzian(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    """−2 · sharpness · (q₀k₀ − q·k − 1): the squared Lorentzian distance."""
    return TWO * sharpness * (dot - (row * column + (row + column)))


@lorentzian.derivative
def lorentzian_derivative(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    twice = TWO * sharpness
    below = TWO * (dot - (row * column + (row + column)))
    return (twice, -twice * (ONE + column), -twice * (ONE + row), below)


@score_rule(row=height, column=height)
def squared_geodesic(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    """−sharpness · arcosh(q₀k₀ − q·k)²."""
    above = row * column + (row + column) - dot
    distance = arccosh1p(ZERO if above < ZERO else above)
    return -sharpness * distance * distance


@squared_geodesic.derivative
def squared_geodesic_derivative(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    above = row * column + (row + column) - dot
    above = ZERO if above < ZERO else above
    distance = arccosh1p(above)
    sine = np.sqrt(above * (above + TWO))
    ratio = ONE if sine == ZERO else distance / (ONE if sine == ZERO else sine)
    slope = TWO * sharpness * ratio
    by_sharpness = -distance * distance
    return (slope, -slope * (ONE + column), -slope * (ONE + row), by_sharpness)


@score_rule(row=squared_norm, column=squared_norm)
def squared_distance(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    """−sharpness · ‖q − k‖²."""
    square = row + column - TWO * dot
    return -sharpness * (ZERO if square < ZERO else square)


@squared_distance.derivative
def squared_distance_derivative(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    return (TWO * sharpness, -sharpness, -sharpness, TWO * dot - row - column)


@score_rule
def squared_angle(dot, sharpness):  # type: ignore[no-untyped-def]
    """−sharpness · θ², where sin²(θ/2) = (1 − cos θ)/2."""
    square = (ONE - dot) * HALF
    square = ZERO if square < ZERO else square
    half = arc_positive(square)
    return -FOUR * sharpness * min(square, ONE) * half * half


@squared_angle.derivative
def squared_angle_derivative(dot, sharpness):  # type: ignore[no-untyped-def]
    square = (ONE - dot) * HALF
    square = ZERO if square < ZERO else square
    square = ONE if square > ONE else square
    half = arc_positive(square)
    # θ/sin θ. Opposite points have no direction to each other: the subgradient 0 is taken there.
    room = ONE - square
    slope = ZERO if room < NEAR else half / np.sqrt(max(room, NEAR))
    return (TWO * sharpness * slope, -FOUR * square * half * half)
