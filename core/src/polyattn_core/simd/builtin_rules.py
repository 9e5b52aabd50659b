"""Score rules that belong to every mechanism: soft capping, linear biases."""

from __future__ import annotations

import numpy as np

from .mathematics import tanh
from .rules import score_rule

ONE = np.float32(1)
ZERO = np.float32(0)


@score_rule
def softcap(score, cap):  # type: ignore[no-untyped-def]
    """Scores saturate smoothly at ±cap."""
    return cap * tanh(score / cap)


@softcap.derivative
def softcap_derivative(score, cap):  # type: ignore[no-untyped-def]
    x = score / cap
    t = tanh(x)
    return (ONE - t * t, t - x * (ONE - t * t))


@score_rule
def alibi(score, query, key, slope, start):  # type: ignore[no-untyped-def]
    """−slope · |distance|, where the first query is at key position `start`."""
    return score - slope * abs(np.float32(key - query) - start)


@alibi.derivative
def alibi_derivative(score, query, key, slope, start):  # type: ignore[no-untyped-def]
    return (ONE, -abs(np.float32(key - query) - start), ZERO)
