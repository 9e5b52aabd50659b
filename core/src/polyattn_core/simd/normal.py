"""The error function and what is made of it, vectorising; see :mod:`mathematics`.

Below 1 the error function is x · P(x²); above, its complement is e^(−x²) · P((x − 2)/(x + 2)). Both
are polynomials that interpolate at Chebyshev points.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from .mathematics import FAITHFUL, exp, floating, not_compiled

_NEAR = {
    types.float32: (
        1.1283791658483509,
        -0.37612626666720334,
        0.11283594715160218,
        -0.026854212010626412,
        0.005189087423433974,
        -0.000801686428716587,
        7.875875062685488e-05,
    ),
    types.float64: (
        1.1283791670955126,
        -0.3761263890318375,
        0.11283791670954879,
        -0.026866170645076792,
        0.0052239776248180145,
        -0.000854832698083379,
        0.0001205533111164271,
        -1.4925595266831182e-05,
        1.6461000484121368e-06,
        -1.6350312701054695e-07,
        1.4659775274047436e-08,
        -1.1372848856791674e-09,
        5.957176147748911e-11,
    ),
}
_FAR = {
    types.float32: (
        0.2553956763898231,
        -0.42718584672755655,
        0.2416581771182806,
        -0.07897862921247437,
        0.003733516050751883,
        0.006998025722188194,
        -0.0008551775554328973,
        -0.0009797379560781006,
        8.075900091798199e-05,
        0.0001366442683634812,
    ),
    types.float64: (
        0.25539567631050575,
        -0.4271858474139584,
        0.24165819424246635,
        -0.0789785810157331,
        0.003732892404345035,
        0.0069974617392912376,
        -0.000847143252009464,
        -0.000981977030091026,
        4.3555637371815725e-05,
        0.00017436122996318488,
        2.7524835869807915e-05,
        -2.7580371652449535e-05,
        -1.39612158540098e-05,
        1.3925716073207807e-06,
        3.7487930500767844e-06,
        1.2024826858457545e-06,
        -4.218687813746438e-07,
        -5.348858139605743e-07,
        -5.0910192865794786e-08,
        3.485816521997642e-08,
        -1.0184174404388106e-07,
        3.564084120380646e-07,
        -2.710475669735919e-07,
        7.493319211291348e-08,
        -5.593497985530959e-09,
    ),
}

erf = not_compiled("erf")
gelu = not_compiled("gelu")


def _parts(kind: Any) -> tuple[Any, ...]:
    number = np.float32 if kind is types.float32 else np.float64
    near, far = (tuple(number(c) for c in table[kind][::-1]) for table in (_NEAR, _FAR))
    # From here on the complement is nothing to working precision.
    return number, near, far, number(10 if kind is types.float32 else 26.6)


def _complement(near: Any, far: Any, number: Any, end: Any) -> Any:
    """A function of x ≥ 0 giving erf(x) where x < 1, and 1 − erf(x) elsewhere."""
    one, two = number(1), number(2)
    near_top, near_rest, far_top, far_rest = near[0], near[1:], far[0], far[1:]

    @numba.njit(**FAITHFUL)  # type: ignore[untyped-decorator]
    def parts(a):  # type: ignore[no-untyped-def]
        square = a * a
        inside = near_top
        for coefficient in near_rest:
            inside = inside * square + coefficient
        bounded = end if a > end else a
        place = (bounded - two) / (bounded + two)
        outside = far_top
        for coefficient in far_rest:
            outside = outside * place + coefficient
        return a * inside if a < one else exp(-bounded * bounded) * outside

    return parts


@overload(erf, jit_options=FAITHFUL)
def _erf(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number, near, far, end = _parts(kind)
    one, parts = number(1), _complement(near, far, number, end)

    def implementation(x):  # type: ignore[no-untyped-def]
        a = abs(x)
        part = parts(a)
        value = part if a < one else one - part
        value = x if x != x else value
        return -value if x < number(0) else value

    return implementation


@overload(gelu, jit_options=FAITHFUL)
def _gelu(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number, near, far, end = _parts(kind)
    zero, half, one, root = number(0), number(0.5), number(1), number(np.sqrt(0.5))
    parts = _complement(near, far, number, end)

    def implementation(x):  # type: ignore[no-untyped-def]
        """x times the share of the normal distribution below x."""
        a = abs(x) * root
        part = half * parts(a)
        # The share beyond |x|, to which digits are not lost by subtraction.
        beyond = half - part if a < one else part
        below = one - beyond if x > zero else beyond
        return x if x != x else (zero if x < -two_ends else x * below)

    two_ends = number(end / np.sqrt(0.5))
    return implementation
