"""What a score rule is by its source: its arguments, and graphs of it and of its derivatives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import KernelError
from .rule_checks import loads_in
from .rule_derivatives import NoDerivative, partial_derivatives
from .rule_emission import Kind
from .rule_graph import BOOL, FLOAT, INT, Graph
from .rule_reader import ArrayParameter, NotWhole, Unreadable, indexed_parameters, read

POSITIONS = {"batch": 0, "b": 0, "head": 1, "h": 1, "query": 2, "i": 2, "key": 3, "j": 3}
WORDS = ("batch", "head", "query", "key")

Array = npt.NDArray[Any]


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
class Reading:
    """A rule read for parameters of certain kinds."""

    graph: Graph
    result: int
    inputs: dict[str, int]


class RuleDefinition:
    """A score rule as its source tells it, before anything is compiled."""

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
        self.given: Callable[..., Any] | None = None
        """The derivative, where one was given."""
        self._read: dict[Any, Reading | str] = {}

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
        return self.obstacle(self.usual_kinds())

    def obstacle(self, kinds: Mapping[str, Kind]) -> str:
        """Why there is no derivative for parameters of these kinds; empty where there is one."""
        if self.given is not None:
            return ""
        reading = self.reading(kinds)
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
        reading = self.reading(self.usual_kinds())
        if isinstance(reading, str):
            return False
        graph = reading.graph
        return not any(
            graph.nodes[at].op in ("arctan2", "**", "//", "%")
            for at in graph.needed((reading.result,))
        )

    def usual_kinds(self) -> dict[str, Kind]:
        """The kinds of parameters that the source leads to expect."""
        for kind in (FLOAT, INT):
            kinds = {name: Kind(kind, self.arrays.get(name, 0)) for name in self.parameters}
            try:
                self.reading(kinds)
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
        return not isinstance(self.reading(self.usual_kinds()), str)

    def key(self, kinds: Mapping[str, Kind]) -> Any:
        return tuple(kinds.values())

    def reading(self, kinds: Mapping[str, Kind]) -> Reading | str:
        """The rule's graph, or why there is none."""
        key = self.key(kinds)
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
                found = Reading(graph, result, inputs)
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
                arguments[name] = graph.add("input", INT, value=WORDS[POSITIONS[name]])
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

    def derivatives(
        self, kinds: Mapping[str, Kind]
    ) -> tuple[Graph, dict[str, int], dict[int, int]] | str:
        """Graph of the derivatives by name and by element read; or why there is none."""
        reading = self.reading(kinds)
        if self.given is None:
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
            result = read(self.given, graph, arguments)
        except Unreadable as error:
            return str(error)
        names = self.partials(kinds)
        if not isinstance(result, tuple) or len(result) != len(names):
            count = f"{len(result)} values" if isinstance(result, tuple) else "no tuple"
            code = self.given.__code__
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

    def _learned_loads(self, reading: Reading) -> list[int]:
        graph = reading.graph
        return [x for x in loads_in(graph, reading.result) if graph.kind(x) == FLOAT]

    def partials(self, kinds: Mapping[str, Kind]) -> list[str]:
        """What a given derivative returns the partial derivatives by."""
        names = [self.arguments[0], *(n for n in ("row", "column") if n in self.arguments[1:])]
        return [*names, *(name for name, kind in kinds.items() if kind.ndim == 0)]
