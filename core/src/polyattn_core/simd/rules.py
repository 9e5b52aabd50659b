"""Score rules: small scalar functions compiled into passes over a tile.

A rule maps the score so far, and whatever else its arguments name, to a score:

>>> import math
>>> from polyattn_core.simd.rules import score_rule, squared_norm
>>> @score_rule
... def tanh_cap(score, cap):
...     return cap * math.tanh(score / cap)
>>> @score_rule(row=squared_norm, column=squared_norm)
... def negative_distance(dot, row, column, sharpness):
...     return -sharpness * (row + column - 2.0 * dot)

The first argument is the score so far: at first the product of query and key times the scale. `row`
and `column` are statistics of the query and the key; `batch`, `head`, `query`, `key` (or `b`, `h`,
`i`, `j`) are positions, counted from 0; every other name is a parameter. A parameter is a number,
one number for each head, or, where the rule indexes it, an array:

>>> @score_rule
... def relative(score, h, i, j, table, offset):
...     return score + table[h, i - j + offset]
>>> @score_rule
... def same_document(score, b, i, j, ids):
...     return score if ids[b, i] == ids[b, j] else -math.inf

A rule is read, not only compiled: numbers and functions take the precision of the kernel, functions
of `math` and NumPy become versions that vectorise, and the derivative is derived. It may hold
assignments, `if`, `for` over a fixed range, calls of other such functions. A rule with anything
else is compiled as it is written (constants as ``np.float32(…)`` then), its parameters are numbers,
and it has gradients where its derivative is given:

>>> @negative_distance.derivative
... def negative_distance_derivative(dot, row, column, sharpness):
...     return (2.0 * sharpness, -sharpness, -sharpness, -(row + column - 2.0 * dot))

which are the partial derivatives by the first argument, by `row` and `column` where the rule has
them, and by each parameter that is a number, in that order.

A rule is compiled on its own, in a fraction of a second, to code that kernels call once a tile, so
kernels themselves are never compiled anew.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from ..errors import KernelError
from . import rule_trials
from .rule_definition import POSITIONS, Array, RuleDefinition, Statistic, squared_norm
from .rule_emission import Kind
from .rule_passes import compile_pass


class ScoreRule(RuleDefinition):
    """A compiled-on-demand score rule; made by :func:`score_rule`."""

    def __init__(
        self, function: Callable[..., Any], row: Statistic | None, column: Statistic | None
    ) -> None:
        super().__init__(function, row, column)
        self._compiled: dict[Any, Any] = {}
        self._proven: dict[Any, bool] = {}
        self._checked: set[Any] = set()

    def derivative(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: gives the rule its partial derivatives."""
        python = getattr(function, "py_func", function)
        names = tuple(inspect.signature(python).parameters)
        if names != self.arguments:
            raise KernelError(
                f"the derivative of {self.name} takes {names}; it must take {self.arguments}"
            )
        self.given = python
        self._compiled = {key: code for key, code in self._compiled.items() if not key[1]}
        self._checked.clear()
        return function

    def address(
        self, dtype: str, backward: bool, kinds: Mapping[str, Kind] | None = None,
        proven: bool = False,
    ) -> int:  # fmt: skip
        """Address of the compiled pass over a tile, for parameters of the given kinds.

        `proven`: no read can leave its array; otherwise places are clamped.

        Raises
        ------
        KernelError
            Where Numba cannot compile the rule, with its place in the source and Numba's reason.
        """
        kinds = self.usual_kinds() if kinds is None else kinds
        key = (dtype, backward, self.key(kinds), proven)
        found = self._compiled.get(key)
        if found is None:
            # Of two threads the first one's is kept: its address may be in use already.
            found = self._compiled.setdefault(
                key, compile_pass(self, dtype, backward, kinds, proven)
            )
        return int(found.address)

    def proven(self, values: Sequence[Any], shape: tuple[int, int, int, int]) -> bool:
        """Check the places that the rule reads in a call of (batch, heads, queries, keys).

        Returns whether all reads are known to be in range; those of other rules are clamped.

        Raises
        ------
        KernelError
            Where a trial over the corners and some other positions reads outside an array.
        """
        if not self.arrays:
            return True
        key = (shape, *(id(value) for value in values))
        found = self._proven.get(key)
        if found is None:
            if len(self._proven) > 64:
                self._proven.clear()
            # The values are kept, as others could take their identities.
            found = self._proven[key] = rule_trials.reads_are_in_range(self, values, shape)
            self._kept = (*getattr(self, "_kept", ())[-256:], values)
        return found

    def check_derivative(self, values: Sequence[Any], samples: Mapping[str, Array]) -> None:
        """Compare the derivative with differences of the rule at some points, once.

        `samples` are the score, statistics and positions there.

        Raises
        ------
        KernelError
            Where they differ.
        """
        key = self.key(self.kinds(values))
        if key not in self._checked:
            rule_trials.check_derivative(self, values, samples)
            self._checked.add(key)

    def __repr__(self) -> str:
        return f"<score rule {self.name}({', '.join(self.arguments)})>"

    def __reduce__(self) -> str:
        self.reference()
        return self.__qualname__

    def reference(self) -> str:
        """`module:name`, by which the rule is found again.

        Raises
        ------
        KernelError
            Where no import finds it: local to a function, or of a script or a prompt.
        """
        where = f"{self.__module__}:{self.__qualname__}"
        problem = ""
        if "<" in self.__qualname__:
            problem = "it is local to a function"
        elif self.__module__ == "__main__":
            problem = "it is defined in the script or prompt that runs"
        elif find_rule(where) is not self:
            problem = f"{where} is something else"
        if problem:
            raise KernelError(
                f"the score rule {self.name} ({self.place}) cannot be written down: {problem}; "
                "define it at the top of a module that can be imported"
            )
        return where


def find_rule(reference: str) -> Any:
    """What `module:name` refers to; None where there is nothing."""
    module, _, name = reference.partition(":")
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError):
        return None


@overload
def score_rule(function: Callable[..., Any], /) -> ScoreRule: ...
@overload
def score_rule(
    *, row: Statistic | None = None, column: Statistic | None = None
) -> Callable[[Callable[..., Any]], ScoreRule]: ...
def score_rule(
    function: Callable[..., Any] | None = None,
    /,
    *,
    row: Statistic | None = None,
    column: Statistic | None = None,
) -> ScoreRule | Callable[[Callable[..., Any]], ScoreRule]:
    """Make a scalar function a score rule; see the module's description."""
    if function is not None:
        return ScoreRule(function, row, column)
    return lambda inner: ScoreRule(inner, row, column)


__all__ = ["POSITIONS", "ScoreRule", "Statistic", "find_rule", "score_rule", "squared_norm"]
