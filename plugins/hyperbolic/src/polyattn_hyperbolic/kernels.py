"""Score rules of hyperbolic attention, compiled into passes over a tile."""

from __future__ import annotations

import numpy as np

from polyattn_core.simd.inverses import acosh1p
from polyattn_core.simd.rules import Statistic, score_rule

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


def _time(x):  # type: ignore[no-untyped-def]
    return np.sqrt(1 + np.einsum("...d,...d->...", x, x))


time = Statistic("time", _time, lambda x, gradient: x * (gradient / _time(x))[..., None])
"""Time coordinate √(1 + |x|²) of the point of the unit hyperboloid above x."""


@score_rule(row=time, column=time)
def geodesic(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    """−sharpness · arcosh(q₀k₀ − q·k); rounding below arcosh 1 counts as 0."""
    above = row * column - dot - ONE
    above = ZERO if above < ZERO else above
    return -sharpness * acosh1p(above)


@geodesic.derivative
def geodesic_derivative(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    above = row * column - dot - ONE
    above = ZERO if above < ZERO else above
    square = above * (above + TWO)
    # A point has no direction to itself: the distance's subgradient there is 0.
    slope = sharpness / np.sqrt(ONE if square == ZERO else square)
    slope = ZERO if square == ZERO else slope
    return (slope, -slope * column, -slope * row, -acosh1p(above))


@score_rule(row=time, column=time)
def lorentzian(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    """−2 · sharpness · (q₀k₀ − q·k − 1): the squared Lorentzian distance."""
    return TWO * sharpness * (dot - row * column + ONE)


@lorentzian.derivative
def lorentzian_derivative(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    twice = TWO * sharpness
    return (twice, -twice * column, -twice * row, TWO * (dot - row * column + ONE))


@score_rule
def shifted(score, offset):  # type: ignore[no-untyped-def]
    """Score + offset."""
    return score + offset


@shifted.derivative
def shifted_derivative(score, offset):  # type: ignore[no-untyped-def]
    return (ONE, ONE)
