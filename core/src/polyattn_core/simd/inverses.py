"""The arc function, which vectorises, for score rules; see :mod:`mathematics`.

`arc` is what makes distances smooth in the curvature κ: with s = sn_κ(d/2),

    d = 2 s · arc(κ s²),   arc(t) = arcsin(√t)/√t for t > 0, arsinh(√−t)/√−t for t < 0, arc(0) = 1

is one analytic function for spheres (κ > 0), the plane and hyperbolic spaces (κ < 0). Both sides
are computed of every number; where only 0 ≤ t ≤ 1 comes, `arc_positive` saves the other one.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from .logarithms import logarithm_of
from .mathematics import IN_ORDER, choose, floating, not_compiled

arc = not_compiled("arc")
arc_slope = not_compiled("arc_slope")
arc_positive = not_compiled("arc_positive")

_TERMS = {types.float32: 12, types.float64: 25}
"""Terms of the series that reach the precision of the type."""


def _number(kind: Any) -> Any:
    return np.float32 if kind is types.float32 else np.float64


def _polynomial(coefficients: tuple[Any, ...]) -> Any:
    """Horner's rule, constant term first, written out, whatever the compiler unrolls."""
    names = [f"c{k}" for k in range(len(coefficients))]
    text = names[-1]
    for name in names[-2::-1]:
        text = f"({text}) * x + {name}"
    scope: dict[str, Any] = dict(zip(names, coefficients, strict=True))
    exec(f"def polynomial(x): return {text}", scope)
    return numba.njit(**IN_ORDER)(scope["polynomial"])


def _taylor(kind: Any) -> tuple[Any, ...]:
    """Coefficients of arc at 0: (2k)! / (4^k k!² (2k + 1))."""
    number = _number(kind)
    return tuple(number(math.comb(2 * k, k) / 4**k / (2 * k + 1)) for k in range(_TERMS[kind]))


@overload(arc_positive, jit_options=IN_ORDER)
def _arc_positive(t):  # type: ignore[no-untyped-def]
    kind = floating(t)
    if kind is None:
        return None
    number = _number(kind)
    series = _polynomial(_taylor(kind))
    zero, one, two, half = number(0), number(1), number(2), number(0.5)
    quarter, quarter_turn = number(0.25), number(math.pi / 2)

    def implementation(t):  # type: ignore[no-untyped-def]
        t = choose(t > one, one, t)
        root = np.sqrt(abs(t))
        far = t > quarter
        # arcsin(x) = π/2 − 2 arcsin(√((1 − x)/2)) brings t > ¼ to where the series is good.
        folded = choose(far, (one - root) * half, t)
        factor = choose(far, -two * np.sqrt(choose(far, folded, quarter)), one)
        start = choose(far, quarter_turn, zero)
        return (start + factor * series(folded)) / choose(far, root, one)

    return implementation


@overload(arc, jit_options=IN_ORDER)
def _arc(t):  # type: ignore[no-untyped-def]
    kind = floating(t)
    if kind is None:
        return None
    number = _number(kind)
    series, ln = _polynomial(_taylor(kind)), logarithm_of(kind, above_one=True)
    zero, one, two, half = number(0), number(1), number(2), number(0.5)
    quarter, quarter_turn = number(0.25), number(math.pi / 2)

    def implementation(t):  # type: ignore[no-untyped-def]
        t = choose(t > one, one, t)
        root = np.sqrt(abs(t))
        far, below = t > quarter, t < -quarter
        # arcsin(x) = π/2 − 2 arcsin(√((1 − x)/2)) brings t > ¼ to where the series is good.
        folded = choose(far, (one - root) * half, t)
        inner = choose(below, zero, folded)
        sum_ = series(inner)
        above = choose(below, root, zero)
        over = above + above * above / (one + np.sqrt(one + above * above))
        logarithm = ln(one + over, over)
        factor = choose(far, -two * np.sqrt(choose(far, folded, quarter)), choose(below, zero, one))
        start = choose(far, quarter_turn, zero)
        divisor = choose(far | below, root, one)
        return (start + logarithm + factor * sum_) / divisor

    return implementation


@overload(arc_slope, jit_options=IN_ORDER)
def _arc_slope(t):  # type: ignore[no-untyped-def]
    kind = floating(t)
    if kind is None:
        return None
    number = _number(kind)
    series = _polynomial(tuple(number(k * float(c)) for k, c in enumerate(_taylor(kind)))[1:])
    zero, one, two, quarter = number(0), number(1), number(2), number(0.25)
    least = number(np.finfo(number).eps)

    def implementation(t):  # type: ignore[no-untyped-def]
        t = choose(t > one, one, t)
        outside = abs(t) > quarter
        sum_ = series(choose(outside, zero, t))
        safe = choose(outside, t, one)
        room = one - t
        room = choose(room < least, least, room)
        return choose(outside, (one / np.sqrt(room) - arc(t)) / (two * safe), sum_)

    return implementation
