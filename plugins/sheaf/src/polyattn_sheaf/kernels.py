"""Energies as score rules of the streaming engine."""

from __future__ import annotations

import numpy as np

from polyattn_core.simd.rules import score_rule, squared_norm

TWO, ZERO, LOWEST = np.float32(2), np.float32(0), np.float32(-np.inf)


@score_rule(row=squared_norm, column=squared_norm)
def energy_score(dot, row, column, beta):  # type: ignore[no-untyped-def]
    """−beta · ‖q − k‖²."""
    return -beta * max(row + column - TWO * dot, ZERO)


@energy_score.derivative
def energy_score_derivative(dot, row, column, beta):  # type: ignore[no-untyped-def]
    return (TWO * beta, -beta, -beta, -(row + column - TWO * dot))


@score_rule(row=squared_norm, column=squared_norm)
def residual_score(dot, row, column, beta, threshold):  # type: ignore[no-untyped-def]
    """−beta · ‖q − k‖² where that distance exceeds the threshold; −∞ otherwise."""
    energy = max(row + column - TWO * dot, ZERO)
    return LOWEST if energy <= threshold else -beta * energy


@residual_score.derivative
def residual_score_derivative(dot, row, column, beta, threshold):  # type: ignore[no-untyped-def]
    energy = max(row + column - TWO * dot, ZERO)
    slope = ZERO if energy <= threshold else beta
    far = ZERO if energy <= threshold else energy
    return (TWO * slope, -slope, -slope, -far, ZERO)
