"""Sine, cosine, arc tangent and what is made of them, vectorising; see :mod:`mathematics`.

Accurate where |x| is at most 10⁵; beyond, the multiple of π/2 that is taken off is not.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from .mathematics import FAITHFUL, floating, not_compiled

_SINE = {
    types.float32: (-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4),
    types.float64: (
        -1.66666666666666324348e-01,
        8.33333333332248946124e-03,
        -1.98412698298579493134e-04,
        2.75573137070700676789e-06,
        -2.50507602534068634195e-08,
        1.58969099521155010221e-10,
    ),
}
_COSINE = {
    types.float32: (4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5),
    types.float64: (
        4.16666666666666019037e-02,
        -1.38888888888741095749e-03,
        2.48015872894767294178e-05,
        -2.75573143513906633035e-07,
        2.08757232129817482790e-09,
        -1.13596475577881948265e-11,
    ),
}
# π/2 in parts, of which multiples up to 2²⁰ are exact.
_HALF_TURN = (1.57079632673412561417, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
_ARC = {
    types.float32: (
        0.9999999971605454,
        -0.3333327629198255,
        0.19998075281148714,
        -0.14260016082820906,
        0.10932341501303093,
        -0.08349724968301601,
        0.05708955593030619,
        -0.030351864785781172,
        0.010487649254949306,
        -0.0017011700640685973,
    ),
    types.float64: (
        1.0,
        -0.3333333333333286,
        0.19999999999929946,
        -0.14285714281592693,
        0.11111110982087126,
        -0.09090906605656898,
        0.0769227555520563,
        -0.06666371187721098,
        0.05880342002401543,
        -0.052527255573225747,
        0.04719723992321112,
        -0.042125723963855326,
        0.03651081352721035,
        -0.02970071773623423,
        0.021740213830758134,
        -0.013674139288399478,
        0.007038646202989813,
        -0.0028047655531701315,
        0.0008033604181626027,
        -0.00014617088163625013,
        1.2631178430477426e-05,
    ),
}

sin = not_compiled("sin")
cos = not_compiled("cos")
tan = not_compiled("tan")
arctan = not_compiled("arctan")
arcsin = not_compiled("arcsin")
arccos = not_compiled("arccos")


def _sine_and_cosine(kind: Any) -> Any:
    number = np.float32 if kind is types.float32 else np.float64
    sine = tuple(number(c) for c in _SINE[kind][::-1])
    cosine = tuple(number(c) for c in _COSINE[kind][::-1])
    sine_top, sine_rest, cosine_top, cosine_rest = sine[0], sine[1:], cosine[0], cosine[1:]
    one, half, quarter = number(1), number(0.5), number(0.25)
    first, second, third = _HALF_TURN
    inverse = 2 / np.pi
    nothing = number(0)

    @numba.njit(**FAITHFUL)  # type: ignore[untyped-decorator]
    def both(x):  # type: ignore[no-untyped-def]
        wide = np.float64(x)
        turns = np.rint(wide * inverse)
        rest = number(((wide - turns * first) - turns * second) - turns * third)
        quarters = number(turns)
        place = quarters * quarter - np.floor(quarters * quarter)
        square = rest * rest
        series = sine_top
        for coefficient in sine_rest:
            series = series * square + coefficient
        s = rest + rest * square * series
        series = cosine_top
        for coefficient in cosine_rest:
            series = series * square + coefficient
        c = (one - half * square) + square * square * series
        across = (place == quarter) | (place == quarter + half)
        the_sine, the_cosine = (c if across else s), (s if across else c)
        the_sine = -the_sine if place >= half else the_sine
        the_cosine = -the_cosine if (place == quarter) | (place == half) else the_cosine
        # Infinity has neither.
        no = x - x
        return the_sine + no * nothing, the_cosine + no * nothing

    return both


@overload(sin, jit_options=FAITHFUL)
def _sin(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    both = _sine_and_cosine(kind)
    return lambda x: both(x)[0]


@overload(cos, jit_options=FAITHFUL)
def _cos(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    both = _sine_and_cosine(kind)
    return lambda x: both(x)[1]


@overload(tan, jit_options=FAITHFUL)
def _tan(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    both = _sine_and_cosine(kind)

    def implementation(x):  # type: ignore[no-untyped-def]
        s, c = both(x)
        return s / c

    return implementation


@overload(arctan, jit_options=FAITHFUL)
def _arctan(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number = np.float32 if kind is types.float32 else np.float64
    top, *others = (number(c) for c in _ARC[kind][::-1])
    rest = tuple(others)
    zero, one, right = number(0), number(1), number(np.pi / 2)

    def implementation(x):  # type: ignore[no-untyped-def]
        a = abs(x)
        small = one / a if a > one else a
        square = small * small
        series = top
        for coefficient in rest:
            series = series * square + coefficient
        value = small * series
        value = right - value if a > one else value
        return -value if x < zero else value

    return implementation


@overload(arcsin, jit_options=FAITHFUL)
def _arcsin(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    one = (np.float32 if kind is types.float32 else np.float64)(1)
    return lambda x: arctan(x / np.sqrt((one - x) * (one + x)))


@overload(arccos, jit_options=FAITHFUL)
def _arccos(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number = np.float32 if kind is types.float32 else np.float64
    one, two = number(1), number(2)
    return lambda x: two * arctan(np.sqrt((one - x) / (one + x)))
