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
import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types
from numba.core.errors import NumbaError

from ..errors import KernelError
from . import rule_checks as checks
from . import rule_emission as emission
from . import target
from .content import digest
from .jit import OPTIONS, callback
from .rule_derivatives import NoDerivative, partial_derivatives
from .rule_emission import Kind
from .rule_graph import BOOL, FLOAT, INT, Graph
from .rule_reader import ArrayParameter, NotWhole, Unreadable, indexed_parameters, read

Array = npt.NDArray[Any]

POSITIONS = {"batch": 0, "b": 0, "head": 1, "h": 1, "query": 2, "i": 2, "key": 3, "j": 3}
_WORDS = ("batch", "head", "query", "key")


@dataclass(frozen=True)
class Statistic:
    """A number computed from each query or key vector, and its pullback."""

    name: str
    forward: Callable[[Array], Array]
    pullback: Callable[[Array, Array], Array]


squared_norm = Statistic(
    "squared_norm",
    lambda x: np.einsum("...d,...d->...", x, x),
    lambda x, gradient: 2 * x * gradient[..., None],
)
"""|x|²."""


@dataclass(frozen=True)
class _Reading:
    """A rule read for parameters of certain kinds."""

    graph: Graph
    result: int
    inputs: dict[str, int]


class ScoreRule:
    """A compiled-on-demand score rule; made by :func:`score_rule`."""

    def __init__(
        self, function: Callable[..., Any], row: Statistic | None, column: Statistic | None
    ) -> None:
        self.function = getattr(function, "py_func", function)
        self.name = getattr(self.function, "__name__", repr(function))
        if not inspect.isfunction(self.function):
            raise KernelError(f"the score rule {self.name} must be a function written in Python")
        self.__doc__ = self.function.__doc__
        self.__module__, self.__qualname__ = self.function.__module__, self.function.__qualname__
        names = list(inspect.signature(self.function).parameters)
        if not names:
            raise KernelError(f"the score rule {self.name} takes no argument for the score")
        self.arguments = tuple(names)
        self.row, self.column = row, column
        for given, word in ((row, "row"), (column, "column")):
            if (given is not None) != (word in names[1:]):
                raise KernelError(
                    f"the score rule {self.name} takes {names}; an argument {word!r} and a "
                    f"statistic {word}= go together"
                )
        special = {*POSITIONS, "row", "column"}
        self.parameters = tuple(name for name in names[1:] if name not in special)
        self.arrays = indexed_parameters(self.function, self.parameters)
        """Those of the parameters that are arrays, with their number of axes."""
        self._derivative: Callable[..., Any] | None = None
        self._compiled: dict[Any, Any] = {}
        self._read: dict[Any, _Reading | str] = {}
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
        self._derivative = python
        self._compiled = {key: code for key, code in self._compiled.items() if not key[1]}
        self._checked.clear()
        return function

    @property
    def place(self) -> str:
        """File and line."""
        code = self.function.__code__
        return f"{code.co_filename}:{code.co_firstlineno}"

    @property
    def differentiable(self) -> bool:
        """Does the rule have a derivative, given or derived?"""
        return not self.why_not_differentiable

    @property
    def why_not_differentiable(self) -> str:
        """Why there is no derivative; empty where there is one."""
        return self.obstacle(self._usual_kinds())

    def obstacle(self, kinds: Mapping[str, Kind]) -> str:
        """Why there is no derivative for parameters of these kinds; empty where there is one."""
        if self._derivative is not None:
            return ""
        reading = self._reading(kinds)
        if isinstance(reading, str):
            return reading
        try:
            partial_derivatives(reading.graph, reading.result, tuple(reading.inputs.values()))
        except NoDerivative as error:
            return str(error)
        return ""

    @property
    def vectorises(self) -> bool:
        """Will the compiled pass run in vectors?"""
        reading = self._reading(self._usual_kinds())
        if isinstance(reading, str):
            return False
        graph = reading.graph
        return not any(
            graph.nodes[at].op in ("arctan2", "**", "//", "%")
            for at in graph.needed((reading.result,))
        )

    def _usual_kinds(self) -> dict[str, Kind]:
        """The kinds of parameters that the source leads to expect."""
        for kind in (FLOAT, INT):
            kinds = {name: Kind(kind, self.arrays.get(name, 0)) for name in self.parameters}
            try:
                self._reading(kinds)
            except NotWhole:
                continue
            break
        return kinds

    def kinds(self, values: Sequence[Any]) -> dict[str, Kind]:
        """The kinds of these parameters."""
        found = {}
        for name, value in zip(self.parameters, values, strict=True):
            array = np.asarray(value)
            kind = {"f": FLOAT, "i": INT, "u": INT, "b": BOOL}.get(array.dtype.kind, "")
            if array.dtype.name == "bfloat16":
                kind = FLOAT
            if not kind:
                raise KernelError(
                    f"{name} of the score rule {self.name} is {value!r}; it is made of numbers"
                )
            if name in self.arrays:
                found[name] = Kind(kind, array.ndim)
            else:
                whole = kind == INT and array.ndim == 0 and self.readable
                found[name] = Kind(INT if whole else FLOAT)
        return found

    @property
    def readable(self) -> bool:
        """Is the rule read, or compiled as it is written?"""
        return not isinstance(self._reading(self._usual_kinds()), str)

    def _key(self, kinds: Mapping[str, Kind]) -> Any:
        return tuple(kinds.values())

    def _reading(self, kinds: Mapping[str, Kind]) -> _Reading | str:
        """The rule's graph, or why there is none."""
        key = self._key(kinds)
        found = self._read.get(key)
        if found is None:
            graph = Graph()
            try:
                arguments, inputs = self._inputs(graph, kinds)
                result = read(self.function, graph, arguments)
                if isinstance(result, tuple):
                    raise KernelError(
                        f"the score rule {self.name} ({self.place}) returns {len(result)} values; "
                        "it must return one number"
                    )
                found = _Reading(graph, result, inputs)
            except Unreadable as error:
                found = str(error)
            self._read[key] = found
        return found

    def _inputs(
        self, graph: Graph, kinds: Mapping[str, Kind]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """What the function's arguments stand for, and which of them derivatives are by."""
        arguments: dict[str, Any] = {}
        inputs: dict[str, int] = {}
        for at, name in enumerate(self.arguments):
            kind = kinds.get(name)
            if at == 0 or name in ("row", "column"):
                arguments[name] = inputs[name] = graph.add("input", FLOAT, value=name)
            elif kind is None:
                arguments[name] = graph.add("input", INT, value=_WORDS[POSITIONS[name]])
            elif kind.ndim:
                arguments[name] = ArrayParameter(name, kind.ndim, kind.kind)
            else:
                arguments[name] = graph.add("input", kind.kind, value=name)
                if kind.kind == FLOAT:
                    inputs[name] = arguments[name]
        return arguments, dict(sorted(inputs.items(), key=lambda item: self._order(item[0])))

    def _order(self, name: str) -> int:
        """The place of a partial derivative among those of a given derivative."""
        first = (self.arguments[0], "row", "column")
        return first.index(name) if name in first else 3 + self.parameters.index(name)

    # ---- compiling ------------------------------------------------------------------------------

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
        kinds = self._usual_kinds() if kinds is None else kinds
        key = (dtype, backward, self._key(kinds), proven)
        found = self._compiled.get(key)
        if found is None:
            # Of two threads the first one's is kept: its address may be in use already.
            found = self._compiled.setdefault(key, self._compile(dtype, backward, kinds, proven))
        return int(found.address)

    def _compile(self, dtype: str, backward: bool, kinds: Mapping[str, Kind], proven: bool) -> Any:
        number = types.float32 if dtype == "float32" else types.float64
        numbers, integers = types.CPointer(number), types.CPointer(types.int64)
        wide = target.tile(dtype).queries
        scope = emission.scope(dtype, wide)
        source, tag = self._source(dtype, backward, kinds, proven, scope)
        exec(source, scope)
        passed = (numbers, numbers, integers, *[numbers] * (6 if backward else 3))
        # What the arguments mean is in their names, which are no part of the code.
        tag = f"{self.name}({', '.join(self.arguments)}) {tag} {dtype} {wide}"
        try:
            return callback(scope["tile_pass"], types.void(*passed), tag)
        except NumbaError as error:
            raise KernelError(
                f"the score rule {self.name} ({self.place}) cannot be compiled: {error}"
            ) from error

    def _source(
        self, dtype: str, backward: bool, kinds: Mapping[str, Kind], proven: bool, scope: Any
    ) -> tuple[str, str]:
        """Source of the pass, and what tells it from others."""
        reading = self._reading(kinds)
        if not backward:
            if isinstance(reading, str):
                return self._as_written(self.function, False, kinds, dtype, scope, reading)
            emitter = emission.Emitter(
                reading.graph, [reading.result], kinds, dtype, proven, scope["WIDE"]
            )
            source = emission.forward_source(emitter, reading.result)
        else:
            given = self._given(kinds)
            if isinstance(given, str):
                if self._derivative is None:
                    raise KernelError(f"the score rule {self.name} has no derivative: {given}")
                return self._as_written(self._derivative, True, kinds, dtype, scope, given)
            graph, partials, loads = given
            roots = [*partials.values(), *loads.values(), *loads]
            emitter = emission.Emitter(graph, roots, kinds, dtype, proven, scope["WIDE"])
            source = emission.backward_source(emitter, partials, loads, self.arguments[0])
        return source, hashlib.sha256(source.encode()).hexdigest()

    def _given(
        self, kinds: Mapping[str, Kind]
    ) -> tuple[Graph, dict[str, int], dict[int, int]] | str:
        """Graph of the derivatives by name and by element read; or why there is none."""
        reading = self._reading(kinds)
        if self._derivative is None:
            if isinstance(reading, str):
                return reading
            graph = reading.graph
            loads = self._learned_loads(reading)
            try:
                found = partial_derivatives(
                    graph, reading.result, [*reading.inputs.values(), *loads]
                )
            except NoDerivative as error:
                return str(error)
            partials = dict(zip(reading.inputs, found, strict=False))
            return graph, partials, dict(zip(loads, found[len(partials) :], strict=True))
        if isinstance(reading, str):
            return reading
        graph = reading.graph
        arguments, inputs = self._inputs(graph, kinds)
        try:
            result = read(self._derivative, graph, arguments)
        except Unreadable as error:
            return str(error)
        names = self._partials(kinds)
        if not isinstance(result, tuple) or len(result) != len(names):
            count = f"{len(result)} values" if isinstance(result, tuple) else "no tuple"
            code = self._derivative.__code__
            raise KernelError(
                f"the score rule {self.name} ({code.co_filename}:{code.co_firstlineno}): its "
                f"derivative returns {count}; it must return a tuple of the partial derivatives "
                f"by {', '.join(names)}"
            )
        partials = {n: at for n, at in zip(names, result, strict=True) if n in inputs}
        loads = self._learned_loads(reading)
        try:
            found = partial_derivatives(graph, reading.result, loads)
        except NoDerivative as error:
            return str(error)
        return graph, partials, dict(zip(loads, found, strict=True))

    def _learned_loads(self, reading: _Reading) -> list[int]:
        graph = reading.graph
        return [x for x in checks.loads_in(graph, reading.result) if graph.kind(x) == FLOAT]

    def _partials(self, kinds: Mapping[str, Kind]) -> list[str]:
        """What a given derivative returns the partial derivatives by."""
        names = [self.arguments[0], *(n for n in ("row", "column") if n in self.arguments[1:])]
        return [*names, *(name for name, kind in kinds.items() if kind.ndim == 0)]

    def _as_written(
        self, function: Callable[..., Any], backward: bool, kinds: Mapping[str, Kind], dtype: str,
        scope: dict[str, Any], why: str,
    ) -> tuple[str, str]:  # fmt: skip
        """Source of a pass that calls the function as it is."""
        if self.arrays:
            raise KernelError(
                f"the score rule {self.name} ({self.place}) indexes {', '.join(self.arrays)}, "
                f"which it can only where it is read, and that fails: {why}"
            )
        scope["rule"] = numba.njit(**OPTIONS)(function)
        slots = emission.places(kinds, dtype)
        words = {
            "batch": "meta[0]", "head": "meta[1]", "query": "(meta[2] + j)",
            "key": "(meta[3] + k)", "row": "row[j]", "column": "column[k]",
        }  # fmt: skip
        taken = []
        for name in self.arguments[1:]:
            if name in kinds:
                whole = kinds[name].kind != FLOAT
                read = f"integer_at(parameters, {slots[name]})"
                taken.append(read if whole else f"parameters[{slots[name]}]")
            else:
                taken.append(words[_WORDS[POSITIONS[name]] if name in POSITIONS else name])
        call = f"rule({', '.join(['scores[at]', *taken])})"
        tag = f"{digest(function)} {self._key(kinds)}"
        loop = [
            "    for k in range(meta[4]):",
            "        of_column = ZERO",
            "        for j in range(WIDE):",
            "            at = k * WIDE + j",
        ]
        if not backward:
            head = "def tile_pass(scores, unused, meta, row, column, parameters):"
            return "\n".join([head, *loop, f"            scores[at] = {call}"]), tag
        names = self._partials(kinds)
        own = [n for n in names if n in kinds]
        adds = {"row": "d_row[j]", "column": "of_column"} | {n: f"s_{n}" for n in own}
        lines = [
            "def tile_pass(scores, gradient, meta, row, column, parameters, d_row, d_column, d_parameters):",  # noqa: E501
            *[f"    s_{n} = ZERO" for n in own],
            *loop,
            "            incoming = gradient[at]",
            "            live = incoming != ZERO",
            # Taken apart, so that another number of partial derivatives does not compile.
            f"            {', '.join(f'by_{n}' for n in names)}, = {call}",
            f"            gradient[at] = by_{names[0]} * incoming if live else ZERO",
            *[f"            {adds[n]} += by_{n} * incoming if live else ZERO" for n in names[1:]],
            *(["        d_column[k] += of_column"] if self.column else []),
            *[f"    d_parameters[{slots[n]}] += s_{n}" for n in own if kinds[n].kind == FLOAT],
        ]
        return "\n".join(lines), tag

    # ---- trials ---------------------------------------------------------------------------------

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
            found = self._proven[key] = self._try_reads(values, shape)
            self._kept = (*getattr(self, "_kept", ())[-256:], values)
        return found

    def _try_reads(self, values: Sequence[Any], shape: tuple[int, int, int, int]) -> bool:
        reading = self._reading(self.kinds(values))
        if isinstance(reading, str):
            return True
        arrays = {
            name: np.asarray(value) for name, value in zip(self.parameters, values, strict=True)
        }
        for name in self.arrays:
            if arrays[name].size == 0:
                raise KernelError(f"{name} of the score rule {self.name} is empty")
        known: dict[str, Any] = {
            word: (0, size - 1) for word, size in zip(_WORDS, shape, strict=True)
        }
        for name, array in arrays.items():
            is_number = name not in self.arrays
            known[name] = (float(array.min()), float(array.max())) if is_number else array
        if checks.always_in_range(reading.graph, reading.result, known):
            return True
        rng = np.random.default_rng(0)
        axes = np.ix_(*(checks.corners(size, rng) for size in shape))
        inputs: dict[str, Any] = dict(zip(_WORDS, axes, strict=True))
        inputs |= {self.arguments[0]: np.zeros(()), "row": np.ones(()), "column": np.ones(())}
        inputs |= {n: self._by_head(n, a, inputs["head"]) for n, a in arrays.items()}

        def told(at: int, axis: int, index: Any) -> None:
            name, text, line = reading.graph.nodes[at].value
            file = self.function.__code__.co_filename
            raise KernelError(
                f"the score rule {self.name} ({file}:{line}) reads `{text}` out of range: index "
                f"{int(index)} on axis {axis} of {name}, whose shape is {arrays[name].shape}, for "
                f"{shape[2]} queries and {shape[3]} keys"
            )

        checks.evaluate(reading.graph, checks.loads_in(reading.graph, reading.result), inputs, told)
        return False

    def _by_head(self, name: str, array: Array, head: Array) -> Array:
        """A parameter as evaluation takes it: numbers by head looked up, arrays whole."""
        return array if name in self.arrays or array.ndim == 0 else array.reshape(-1)[
            head if array.size > 1 else 0 * head
        ]  # fmt: skip

    def check_derivative(self, values: Sequence[Any], samples: Mapping[str, Array]) -> None:
        """Compare the derivative with differences of the rule at some points, once.

        `samples` are the score, statistics and positions there.

        Raises
        ------
        KernelError
            Where they differ.
        """
        kinds = self.kinds(values)
        key = self._key(kinds)
        if key in self._checked:
            return
        arrays = {n: np.asarray(v) for n, v in zip(self.parameters, values, strict=True)}
        inputs: dict[str, Any] = {self.arguments[0]: samples["score"]}
        inputs |= {name: samples[name] for name in self.arguments if name in ("row", "column")}
        inputs |= {n: self._by_head(n, a, samples["head"]) for n, a in arrays.items()}
        positions = {word: samples[word] for word in _WORDS}
        names = [n for n in self._partials(kinds) if n not in kinds or kinds[n].kind == FLOAT]
        function, derivative = self._callables(kinds, positions, names)
        found = checks.disagreement(function, derivative, inputs, names)
        if found:
            given = self._derivative
            code = (given or self.function).__code__
            which = "given" if given else "derived"
            raise KernelError(
                f"the {which} derivative of the score rule {self.name} "
                f"({code.co_filename}:{code.co_firstlineno}) {found}"
            )
        self._checked.add(key)

    def _callables(self, kinds: Any, positions: Any, names: Sequence[str]) -> tuple[Any, Any]:
        """The rule and its derivative as functions of arrays."""
        reading, given = self._reading(kinds), self._given(kinds)

        def by_graph(graph: Graph, roots: Sequence[int]) -> Any:
            return lambda **inputs: checks.evaluate(graph, roots, {**positions, **inputs})

        def as_written(python: Any) -> Any:
            jitted = numba.njit(**OPTIONS)(python)

            def call(**inputs: Any) -> list[Any]:
                given = {
                    **{short: positions[_WORDS[at]] for short, at in POSITIONS.items()},
                    **inputs,
                }
                columns = np.broadcast_arrays(*(given[name] for name in self.arguments))
                lines = [jitted(*line) for line in zip(*(c.ravel() for c in columns), strict=True)]
                return list(np.array(lines, np.float64).reshape(len(lines), -1).T)

            return call

        function = (
            as_written(self.function)
            if isinstance(reading, str)
            else by_graph(reading.graph, [reading.result])
        )
        if not isinstance(given, str):
            graph, partials, _ = given
            derivative = by_graph(graph, [partials[name] for name in names])
        else:
            every, whole = self._partials(kinds), as_written(self._derivative)

            def derivative(**inputs: Any) -> list[Any]:
                found = dict(zip(every, whole(**inputs), strict=True))
                return [found[name] for name in names]

        return lambda **inputs: function(**inputs)[0], derivative

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
