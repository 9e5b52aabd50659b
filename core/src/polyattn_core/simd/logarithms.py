"""Logarithms, and hyperbolic functions and their inverses, vectorising; see :mod:`mathematics`.

With x = 2ⁿ · m, √½ ≤ m < √2 and f = m − 1, ln m is f − f²/2 + f³ · P(f) in single precision; in
double 2 artanh s, a series in s², where s = f / (2 + f).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from .mathematics import FAITHFUL, IN_ORDER, LN2, exp, expm1, floating, not_compiled, power_of_two

_SERIES = {
    types.float32: (
        0.33333331180030046,
        -0.24999996957950882,
        0.200007157488921,
        -0.16667802319501254,
        0.1424905764569748,
        -0.12425687331451106,
        0.1168541992348674,
        -0.11479733846637635,
        0.06971611471451178,
    ),
    types.float64: (
        6.666666666666735130e-01,
        3.999999999940941908e-01,
        2.857142874366239149e-01,
        2.222219843214978396e-01,
        1.818357216161805012e-01,
        1.531383769920937332e-01,
        1.479819860511658591e-01,
    ),
}

log = not_compiled("log")
log1p = not_compiled("log1p")
sinh = not_compiled("sinh")
cosh = not_compiled("cosh")
arcsinh = not_compiled("arcsinh")
arccosh = not_compiled("arccosh")
arccosh1p = not_compiled("arccosh1p")
arctanh = not_compiled("arctanh")


def _layout(kind: Any) -> tuple[Any, int, int]:
    """Bits of a number, of its mantissa, and those of √½."""
    single = isinstance(kind, ir.FloatType)
    half = np.float32(0.5**0.5).view(np.int32) if single else np.float64(0.5**0.5).view(np.int64)
    return ir.IntType(32 if single else 64), 23 if single else 52, int(half)


@intrinsic  # type: ignore[untyped-decorator]
def _exponent(typing, x):  # type: ignore[no-untyped-def]
    """n of x = 2ⁿ · m, √½ ≤ m < √2, for normal positive x."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kind = args[0].type
        bits, mantissa, half = _layout(kind)
        from_half = builder.sub(builder.bitcast(args[0], bits), ir.Constant(bits, half))
        whole = builder.ashr(from_half, ir.Constant(bits, mantissa))
        if bits.width == 64:
            whole = builder.trunc(whole, ir.IntType(32))
        return builder.sitofp(whole, kind)

    return x(x), emit


@intrinsic  # type: ignore[untyped-decorator]
def _mantissa(typing, x):  # type: ignore[no-untyped-def]
    """m of x = 2ⁿ · m."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kind = args[0].type
        bits, mantissa, half = _layout(kind)
        pattern = builder.bitcast(args[0], bits)
        from_half = builder.sub(pattern, ir.Constant(bits, half))
        shift = ir.Constant(bits, mantissa)
        power = builder.shl(builder.ashr(from_half, shift), shift)
        return builder.bitcast(builder.sub(pattern, power), kind)

    return x(x), emit


def logarithm_of(kind: Any, *, above_one: bool = False) -> Any:
    """A function of x and of what x lacks: ln(x + lost), for a loss of less than its last place.

    Where x is above 1, `lost` is the whole of x − 1 instead: it counts where ln x is small.
    """
    single = kind is types.float32
    number = np.float32 if single else np.float64
    top, *others = (number(c) for c in _SERIES[kind][::-1])
    rest = tuple(others)
    high, low = (number(c) for c in LN2[kind])
    least, infinite, nothing = np.finfo(number).tiny, number(np.inf), number(np.nan)
    lift = number(2.0 ** (25 if single else 54))
    lifted = number(25 if single else 54)
    zero, half, one, two = number(0), number(0.5), number(1), number(2)
    bend = number(0.8)

    @numba.njit(**FAITHFUL)  # type: ignore[untyped-decorator]
    def series_in(x):  # type: ignore[no-untyped-def]
        series = top
        for coefficient in rest:
            series = series * x + coefficient
        return series

    @numba.njit(**FAITHFUL)  # type: ignore[untyped-decorator]
    def logarithm(x, lost):  # type: ignore[no-untyped-def]
        small = x < least
        inside = x * lift if small else x
        power = _exponent(inside)
        f = _mantissa(inside) - one
        # lost / x, of which some digits are enough
        share = lost * power_of_two(-power) * (one - f + bend * f * f)
        power -= lifted if small else zero
        halved = half * f * f
        if single:
            value = f * f * f * series_in(f) + (power * low + share)
            value = power * high + (f - (halved - value))
        else:
            s = f / (two + f)
            value = s * (halved + s * s * series_in(s * s)) + (power * low + share)
            value = power * high - ((halved - value) - f)
        value = value if x < infinite else x  # NaN too
        value = -infinite if x == zero else value
        return nothing if x < zero else value

    @numba.njit(**FAITHFUL)  # type: ignore[untyped-decorator]
    def logarithm_above_one(x, over):  # type: ignore[no-untyped-def]
        power = _exponent(x)
        f = over if power == zero else _mantissa(x) - one
        halved = half * f * f
        if single:
            value = f * f * f * series_in(f) + power * low
            value = power * high + (f - (halved - value))
        else:
            s = f / (two + f)
            value = s * (halved + s * s * series_in(s * s)) + power * low
            value = power * high - ((halved - value) - f)
        return value if x < infinite else x  # NaN too

    return logarithm_above_one if above_one else logarithm


@overload(log, jit_options=FAITHFUL)
def _log(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    logarithm = logarithm_of(kind)
    zero = (np.float32 if kind is types.float32 else np.float64)(0)
    return lambda x: logarithm(x, zero)


@overload(log1p, jit_options=FAITHFUL)
def _log1p(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number = np.float32 if kind is types.float32 else np.float64
    zero, one, infinite = number(0), number(1), number(np.inf)
    logarithm = logarithm_of(kind)

    def implementation(x):  # type: ignore[no-untyped-def]
        near = one + x
        lost = x - (near - one)
        return logarithm(near, lost if near < infinite else zero)

    return implementation


@overload(sinh, jit_options=FAITHFUL)
def _sinh(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number = np.float32 if kind is types.float32 else np.float64
    zero, half, one, large = number(0), number(0.5), number(1), number(20)

    def implementation(x):  # type: ignore[no-untyped-def]
        a = abs(x)
        grown = expm1(a)
        root = exp(half * a)
        value = (half * root) * root if a > large else half * (grown + grown / (grown + one))
        return -value if x < zero else value

    return implementation


@overload(cosh, jit_options=FAITHFUL)
def _cosh(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    half = (np.float32 if kind is types.float32 else np.float64)(0.5)

    def implementation(x):  # type: ignore[no-untyped-def]
        root = exp(half * abs(x))  # e^|x| itself may overflow where half of it does not
        return (half * root) * root + (half / root) / root

    return implementation


@overload(arcsinh, jit_options=FAITHFUL)
def _arcsinh(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number = np.float32 if kind is types.float32 else np.float64
    zero, one, large, ln2 = number(0), number(1), number(1e9), number(np.log(2))

    def implementation(x):  # type: ignore[no-untyped-def]
        a = abs(x)
        inside = large if a > large else a
        near = log1p(inside + inside * inside / (one + np.sqrt(one + inside * inside)))
        far = log(a) + ln2
        value = far if a > large else near
        value = x if x != x else value
        return -value if x < zero else value

    return implementation


@overload(arccosh1p, jit_options=IN_ORDER)
def _arccosh1p(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number = np.float32 if kind is types.float32 else np.float64
    one, two, large = number(1), number(2), number(1e9)
    logarithm = logarithm_of(kind, above_one=True)

    def implementation(x):  # type: ignore[no-untyped-def]
        root = np.sqrt(x * (abs(x) + two))  # NaN below 0
        # Far out the product would overflow, and the root is x.
        over = x + (root if x < large else x)
        return logarithm(one + over, over)

    return implementation


@overload(arccosh, jit_options=IN_ORDER)
def _arccosh(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    one = (np.float32 if kind is types.float32 else np.float64)(1)
    return lambda x: arccosh1p(x - one)


@overload(arctanh, jit_options=FAITHFUL)
def _arctanh(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number = np.float32 if kind is types.float32 else np.float64
    zero, half, one, two = number(0), number(0.5), number(1), number(2)

    def implementation(x):  # type: ignore[no-untyped-def]
        a = abs(x)
        value = half * log1p(two * a / (one - a))
        return -value if x < zero else value

    return implementation
