"""The functions that score rules may call: how each is compiled, evaluated and differentiated.

`math.tanh`, `numpy.tanh` and `tanh` of :mod:`mathematics` mean the same here: a version that
vectorises, in the precision of the kernel.
"""

from __future__ import annotations

import builtins
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import logarithms, mathematics, normal, trigonometry
from .rule_graph import BOOL, FLOAT, INT, Graph

Build = Callable[..., int]

_erf = np.vectorize(math.erf, otypes=[np.float64])

LIBRARIES = (mathematics, logarithms, trigonometry, normal)
"""Where the vectorising versions are."""

EVALUATED: dict[str, Callable[..., Any]] = {
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "tanh": np.tanh,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "arcsin": np.arcsin, "arccos": np.arccos,
    "arctan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "arcsinh": np.arcsinh,
    "arccosh": np.arccosh, "arctanh": np.arctanh, "sqrt": np.sqrt, "floor": np.floor,
    "ceil": np.ceil, "rint": np.rint, "trunc": np.trunc, "abs": np.abs, "min": np.minimum,
    "max": np.maximum, "arctan2": np.arctan2, "erf": _erf,
    "arccosh1p": lambda x: 2 * np.arcsinh(np.sqrt(0.5 * x)),
    "sigmoid": lambda x: 0.5 * (1 + np.tanh(0.5 * x)),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
}  # fmt: skip
"""Functions by name, for NumPy arrays in double precision."""

SCALAR = frozenset(("arctan2", "**", "//", "%"))
"""Operations for which there is no vectorising version, where they are of floating numbers."""


def _one(name: str) -> Build:
    return lambda graph, x: graph.call(name, x)


def _absolute(graph: Graph, x: int) -> int:
    value = graph.known(x)
    if value is not None:
        return graph.constant(abs(value))
    return graph.add("abs", graph.kind(x), (x,))


def _extreme(name: str) -> Build:
    def build(graph: Graph, first: int, *others: int) -> int:
        result = first
        for other in others:
            result, other = graph.alike(result, other)
            a, b = graph.known(result), graph.known(other)
            if a is not None and b is not None:
                result = graph.constant(min(a, b) if name == "min" else max(a, b))
            else:
                result = graph.add(name, graph.kind(result), (result, other))
        return result

    return build


def _binary(op: str) -> Build:
    return lambda graph, x, y: graph.binary(op, x, y)


def _scaled(name: str, factor: float) -> Build:
    return lambda graph, x: graph.binary("*", graph.call(name, x), graph.constant(factor))


def _log(graph: Graph, x: int, base: int | None = None) -> int:
    found = graph.call("log", x)
    return found if base is None else graph.binary("/", found, graph.call("log", base))


def _cast(kind: str) -> Build:
    return lambda graph, x: graph.cast(x, kind)


def _whole(name: str) -> Build:
    """math.floor and the like, which give whole numbers."""
    return lambda graph, x: x if graph.kind(x) == INT else graph.cast(graph.call(name, x), INT)


def _where(graph: Graph, test: int, yes: int, no: int) -> int:
    if graph.kind(test) != BOOL:
        test = graph.binary("!=", test, graph.constant(0))
    return graph.select(test, yes, no)


def _sign(graph: Graph, x: int) -> int:
    zero, one = graph.constant(0), graph.constant(1)
    x, zero, one = graph.alike(x, zero, one)
    below = graph.select(graph.binary("<", x, zero), graph.negative(one), zero)
    return graph.select(graph.binary(">", x, zero), one, below)


def _hypot(graph: Graph, x: int, y: int) -> int:
    squares = graph.binary("+", graph.binary("*", x, x), graph.binary("*", y, y))
    return graph.call("sqrt", squares)


def _square(graph: Graph, x: int) -> int:
    return graph.binary("*", x, x)


def _clip(graph: Graph, x: int, low: int, high: int) -> int:
    return _extreme("min")(graph, _extreme("max")(graph, x, low), high)


def _is_nan(graph: Graph, x: int) -> int:
    return graph.binary("!=", x, x)


@functools.cache
def _meanings() -> dict[Any, Build]:
    table: dict[Any, Build] = {}
    same = {
        "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arcsinh": "asinh",
        "arccosh": "acosh", "arctanh": "atanh",
    }  # fmt: skip
    for name in EVALUATED:
        for owner in (np, *LIBRARIES):
            if hasattr(owner, name):
                table[getattr(owner, name)] = _one(name)
        if hasattr(math, same.get(name, name)):
            table[getattr(math, same.get(name, name))] = _one(name)
    table |= {
        builtins.abs: _absolute, np.abs: _absolute, math.fabs: _absolute, np.fabs: _absolute,
        builtins.min: _extreme("min"), np.minimum: _extreme("min"), np.fmin: _extreme("min"),
        builtins.max: _extreme("max"), np.maximum: _extreme("max"), np.fmax: _extreme("max"),
        math.pow: _binary("**"), np.power: _binary("**"), builtins.pow: _binary("**"),
        math.log: _log, math.log2: _scaled("log", 1 / math.log(2)),
        np.log2: _scaled("log", 1 / math.log(2)), math.log10: _scaled("log", 1 / math.log(10)),
        np.log10: _scaled("log", 1 / math.log(10)), np.exp2: _exp2, math.atan2: _arctan2,
        np.arctan2: _arctan2, math.hypot: _hypot, np.hypot: _hypot, np.square: _square,
        np.where: _where, np.sign: _sign, np.clip: _clip, np.isnan: _is_nan, math.isnan: _is_nan,
        math.floor: _whole("floor"), math.ceil: _whole("ceil"), math.trunc: _whole("trunc"),
        builtins.round: _whole("rint"), builtins.float: _cast(FLOAT), builtins.int: _cast(INT),
        builtins.bool: _cast(BOOL), np.float32: _cast(FLOAT), np.float64: _cast(FLOAT),
        np.int32: _cast(INT), np.int64: _cast(INT), np.intp: _cast(INT), np.bool_: _cast(BOOL),
    }  # fmt: skip
    if hasattr(math, "exp2"):
        table[math.exp2] = _exp2
    return table


def _exp2(graph: Graph, x: int) -> int:
    return graph.call("exp", graph.binary("*", x, graph.constant(math.log(2))))


def _arctan2(graph: Graph, y: int, x: int) -> int:
    return graph.call("arctan2", y, x)


def meaning(function: object) -> Build | None:
    """How a call of a function is written in a graph; None for functions not known here."""
    try:
        return _meanings().get(function)
    except TypeError:  # not hashable
        return None


def _over(top: Callable[[Graph, int], int]) -> Callable[..., int]:
    """The derivative 1 / top(x)."""
    return lambda g, at, x: g.binary("/", g.constant(1.0), top(g, x))


def _one_minus_square(graph: Graph, x: int) -> int:
    return graph.binary("-", graph.constant(1.0), _square(graph, x))


def _gelu_slope(graph: Graph, at: int, x: int) -> int:
    root = graph.binary("*", x, graph.constant(math.sqrt(0.5)))
    normal = graph.binary("*", graph.constant(0.5), graph.call("erf", root))
    distribution = graph.binary("+", graph.constant(0.5), normal)
    bell = graph.call("exp", graph.binary("*", graph.constant(-0.5), _square(graph, x)))
    density = graph.binary("*", graph.constant(1 / math.sqrt(2 * math.pi)), bell)
    return graph.binary("+", distribution, graph.binary("*", x, density))


def _erf_slope(graph: Graph, at: int, x: int) -> int:
    bell = graph.call("exp", graph.negative(_square(graph, x)))
    return graph.binary("*", graph.constant(2 / math.sqrt(math.pi)), bell)


def _sigmoid_slope(graph: Graph, at: int, x: int) -> int:
    return graph.binary("*", at, graph.binary("-", graph.constant(1.0), at))


SLOPES: dict[str, Callable[..., int]] = {
    # Each takes the graph, the node of the result and that of the argument.
    "exp": lambda g, at, x: at,
    "expm1": lambda g, at, x: g.binary("+", at, g.constant(1.0)),
    "log": _over(lambda g, x: x),
    "log1p": _over(lambda g, x: g.binary("+", g.constant(1.0), x)),
    "sqrt": lambda g, at, x: g.binary("/", g.constant(0.5), at),
    "tanh": lambda g, at, x: _one_minus_square(g, at),
    "sigmoid": _sigmoid_slope,
    "sin": lambda g, at, x: g.call("cos", x),
    "cos": lambda g, at, x: g.negative(g.call("sin", x)),
    "tan": lambda g, at, x: g.binary("+", g.constant(1.0), _square(g, at)),
    "arcsin": _over(lambda g, x: g.call("sqrt", _one_minus_square(g, x))),
    "arccos": lambda g, at, x: g.negative(SLOPES["arcsin"](g, at, x)),
    "arctan": _over(lambda g, x: g.binary("+", g.constant(1.0), _square(g, x))),
    "sinh": lambda g, at, x: g.call("cosh", x),
    "cosh": lambda g, at, x: g.call("sinh", x),
    "arcsinh": _over(
        lambda g, x: g.call("sqrt", g.binary("+", _square(g, x), g.constant(1.0)))
    ),
    # (x − 1)(x + 1), as x² − 1 loses its digits near 1
    "arccosh": _over(
        lambda g, x: g.call(
            "sqrt",
            g.binary(
                "*", g.binary("-", x, g.constant(1.0)), g.binary("+", x, g.constant(1.0))
            ),
        )
    ),
    "arccosh1p": _over(
        # As the function itself writes it, so that both share the root.
        lambda g, x: g.call(
            "sqrt", g.binary("*", x, g.binary("+", g.call("abs", x), g.constant(2.0)))
        )
    ),
    "arctanh": _over(_one_minus_square),
    "erf": _erf_slope,
    "gelu": _gelu_slope,
}  # fmt: skip
"""Derivatives of functions of one argument."""

STEPS = frozenset(("floor", "ceil", "rint", "trunc"))
"""Functions whose derivative is 0 wherever there is one."""
