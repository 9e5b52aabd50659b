"""Elementary functions that vectorise, for score rules.

Here: exp, expm1, tanh, sigmoid. In :mod:`logarithms`: log, log1p, hyperbolic functions and their
inverses; in :mod:`trigonometry`: sin, cos, tan and their inverses; in :mod:`normal`: erf, gelu.

PyPI's llvmlite has no vector maths library, so `math.exp` in a loop is a scalar call. These are
straight-line code in the precision of their argument, with errors of at most 4 units in the last
place; what is below the smallest normal number is 0. Call them from functions that Numba compiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from .jit import FASTMATH, WITHOUT_CALLS

# Re-association would add the two parts of ln 2 up to one, and errors would grow with the argument.
IN_ORDER = {**WITHOUT_CALLS, "fastmath": FASTMATH - {"reassoc"}}

# Reciprocals of roots are not estimated either: at 0 the estimate is no number.
FAITHFUL = {**WITHOUT_CALLS, "fastmath": {"nsz", "contract"}}

# (2^f − 1) / f on [−1/2, 1/2], constant term first.
_COEFFICIENTS = {
    types.float32: (
        0.6931471805599453,
        0.24022650922288757,
        0.055504108839096185,
        0.009618056678524637,
        0.001333350238616277,
        0.0001546144469856913,
        1.5297323760701075e-05,
    ),
    types.float64: (
        0.6931471805599453,
        0.24022650695910072,
        0.055504108664821625,
        0.00961812910762848,
        0.001333355814640647,
        0.00015403530393370734,
        1.5252733841556773e-05,
        1.3215486808705563e-06,
        1.0178057087733941e-07,
        7.0548973041554995e-09,
        4.4558179083360645e-10,
        2.5729324177362305e-11,
    ),
}
# ln 2 in two parts, so that x − n·ln 2 is exact to the last place.
LN2 = {
    types.float32: (0.693359375, -2.12194440e-4),
    types.float64: (0.6931471803691238, 1.9082149292705877e-10),
}
# Below the lower bound exp is 0 to working precision, above the upper one it overflows.
_BOUNDS = {types.float32: (-87.0, 88.72), types.float64: (-708.0, 709.78)}


@intrinsic  # type: ignore[untyped-decorator]
def _rint(typing, x):  # type: ignore[no-untyped-def]
    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kind = args[0].type
        suffix = "f32" if isinstance(kind, ir.FloatType) else "f64"
        function_type = ir.FunctionType(kind, [kind])
        rint = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.rint.{suffix}")
        return builder.call(rint, args)

    return x(x), emit


@intrinsic  # type: ignore[untyped-decorator]
def power_of_two(typing, n):  # type: ignore[no-untyped-def]
    """2^n for a whole number n between the least normal exponent and 127 (1023)."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        single = isinstance(args[0].type, ir.FloatType)
        bits = ir.IntType(32 if single else 64)
        whole = builder.fptosi(args[0], ir.IntType(32))
        if not single:
            whole = builder.sext(whole, bits)
        bias, mantissa = (127, 23) if single else (1023, 52)
        exponent = builder.add(whole, ir.Constant(bits, bias))
        return builder.bitcast(builder.shl(exponent, ir.Constant(bits, mantissa)), args[0].type)

    return n(n), emit


@intrinsic  # type: ignore[untyped-decorator]
def choose(typing, test, yes, no):  # type: ignore[no-untyped-def]
    """`yes if test else no` of two numbers of one type, both of which are computed.

    Around the sides of a conditional expression LLVM may leave a branch, which a loop with much in
    it does not vectorise; here there is none.
    """
    if yes != no:
        return None

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        chosen = context.cast(builder, args[0], signature.args[0], types.boolean)
        return builder.select(chosen, args[1], args[2])

    return yes(test, yes, no), emit


def not_compiled(name: str) -> Any:
    """A name for functions that only compiled code can call."""

    def function(x: float) -> float:
        raise TypeError(f"{name} is for code that Numba compiles; use numpy.{name} elsewhere")

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Vectorising {name} of a float32 or float64."
    return function


exp = not_compiled("exp")
expm1 = not_compiled("expm1")
tanh = not_compiled("tanh")
sigmoid = not_compiled("sigmoid")


def _constants(kind: Any) -> tuple[Any, ...]:
    number = np.float32 if kind is types.float32 else np.float64
    polynomial = tuple(number(c) for c in _COEFFICIENTS[kind])
    low, high = (number(b) for b in _BOUNDS[kind])
    first, second = (number(c) for c in LN2[kind])
    return number, polynomial, low, high, number(1 / np.log(2)), first, second


def floating(x: Any) -> Any:
    """The type, where it is one of those that are computed in."""
    return x if x in (types.float32, types.float64) else None


@overload(expm1, jit_options=IN_ORDER)
def _expm1(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number, polynomial, low, high, inverse, first, second = _constants(kind)
    inverse_first = number(1 / np.log(2))
    one, top = number(1), polynomial[-1]
    rest = polynomial[-2::-1]
    infinite, half, two = number(np.inf), number(0.5), number(2)

    def implementation(x):  # type: ignore[no-untyped-def]
        inside = low if x < low else x
        inside = high if inside > high else inside
        n = _rint(inside * inverse)
        part = ((inside - n * first) - n * second) * inverse_first
        series = top
        for coefficient in rest:
            series = series * part + coefficient
        # Half the power, doubled at the end: 2^n itself would overflow at the upper bound.
        scale = power_of_two(n - one)
        result = (scale * (series * part) + (scale - half)) * two
        return infinite if x > high else result

    return implementation


@overload(exp, jit_options=IN_ORDER)
def _exp(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number, polynomial, low, high, inverse, first, second = _constants(kind)
    one, top, zero = number(1), polynomial[-1], number(0)
    rest = polynomial[-2::-1]
    infinite, two = number(np.inf), number(2)

    def implementation(x):  # type: ignore[no-untyped-def]
        inside = low if x < low else x
        inside = high if inside > high else inside
        n = _rint(inside * inverse)
        part = ((inside - n * first) - n * second) * inverse
        series = top
        for coefficient in rest:
            series = series * part + coefficient
        scale = power_of_two(n - one)
        result = (scale * (series * part) + scale) * two
        result = infinite if x > high else result
        return zero if x < low else result

    return implementation


@overload(tanh, jit_options=IN_ORDER)
def _tanh(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    number, polynomial, _, _, inverse, first, second = _constants(kind)
    limit, one, two = number(9.5 if kind is types.float32 else 20.0), number(1), number(2)
    top, rest = polynomial[-1], polynomial[-2::-1]

    def implementation(x):  # type: ignore[no-untyped-def]
        inside = limit if x > limit else x
        inside = -limit if inside < -limit else inside
        # expm1 of twice that, which cannot overflow
        inside = two * inside
        n = _rint(inside * inverse)
        part = ((inside - n * first) - n * second) * inverse
        series = top
        for coefficient in rest:
            series = series * part + coefficient
        scale = power_of_two(n)
        grown = scale * (series * part) + (scale - one)
        return grown / (grown + two)

    return implementation


@overload(sigmoid, jit_options=WITHOUT_CALLS)
def _sigmoid(x):  # type: ignore[no-untyped-def]
    kind = floating(x)
    if kind is None:
        return None
    one = (np.float32 if kind is types.float32 else np.float64)(1)

    def implementation(x):  # type: ignore[no-untyped-def]
        # exp of a negative number only, so that nothing overflows.
        small = exp(-abs(x))
        return (one if x >= 0 else small) / (one + small)

    return implementation
