"""Trials of a score rule before anything runs: does it read in range, is its derivative right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np

from ..errors import KernelError
from . import rule_checks as checks
from .jit import OPTIONS
from .rule_definition import POSITIONS, WORDS, Array, RuleDefinition
from .rule_graph import FLOAT, Graph


def reads_are_in_range(
    rule: RuleDefinition, values: Sequence[Any], shape: tuple[int, int, int, int]
) -> bool:
    """Are all places that a rule reads known to be in range, for (batch, heads, queries, keys)?

    Raises
    ------
    KernelError
        Where a trial over the corners and some other positions reads outside an array.
    """
    reading = rule.reading(rule.kinds(values))
    if isinstance(reading, str):
        return True
    arrays = {name: np.asarray(value) for name, value in zip(rule.parameters, values, strict=True)}
    for name in rule.arrays:
        if arrays[name].size == 0:
            raise KernelError(f"{name} of the score rule {rule.name} is empty")
    known: dict[str, Any] = {word: (0, size - 1) for word, size in zip(WORDS, shape, strict=True)}
    for name, array in arrays.items():
        is_number = name not in rule.arrays
        known[name] = (float(array.min()), float(array.max())) if is_number else array
    if checks.always_in_range(reading.graph, reading.result, known):
        return True
    rng = np.random.default_rng(0)
    axes = np.ix_(*(checks.corners(size, rng) for size in shape))
    inputs: dict[str, Any] = dict(zip(WORDS, axes, strict=True))
    inputs |= {rule.arguments[0]: np.zeros(()), "row": np.ones(()), "column": np.ones(())}
    inputs |= {n: _by_head(rule, n, a, inputs["head"]) for n, a in arrays.items()}

    def told(at: int, axis: int, index: Any) -> None:
        name, text, line = reading.graph.nodes[at].value
        file = rule.function.__code__.co_filename
        raise KernelError(
            f"the score rule {rule.name} ({file}:{line}) reads `{text}` out of range: index "
            f"{int(index)} on axis {axis} of {name}, whose shape is {arrays[name].shape}, for "
            f"{shape[2]} queries and {shape[3]} keys"
        )

    checks.evaluate(reading.graph, checks.loads_in(reading.graph, reading.result), inputs, told)
    return False


def check_derivative(
    rule: RuleDefinition, values: Sequence[Any], samples: Mapping[str, Array]
) -> None:
    """Compare the derivative with differences of the rule at some points.

    `samples` are the score, statistics and positions there.

    Raises
    ------
    KernelError
        Where they differ.
    """
    kinds = rule.kinds(values)
    arrays = {n: np.asarray(v) for n, v in zip(rule.parameters, values, strict=True)}
    inputs: dict[str, Any] = {rule.arguments[0]: samples["score"]}
    inputs |= {name: samples[name] for name in rule.arguments if name in ("row", "column")}
    inputs |= {n: _by_head(rule, n, a, samples["head"]) for n, a in arrays.items()}
    positions = {word: samples[word] for word in WORDS}
    names = [n for n in rule.partials(kinds) if n not in kinds or kinds[n].kind == FLOAT]
    function, derivative = _callables(rule, kinds, positions, names)
    found = checks.disagreement(function, derivative, inputs, names)
    if found:
        given = rule.given
        code = (given or rule.function).__code__
        which = "given" if given else "derived"
        raise KernelError(
            f"the {which} derivative of the score rule {rule.name} "
            f"({code.co_filename}:{code.co_firstlineno}) {found}"
        )


def _callables(
    rule: RuleDefinition, kinds: Any, positions: Any, names: Sequence[str]
) -> tuple[Any, Any]:
    """The rule and its derivative as functions of arrays."""
    reading, given = rule.reading(kinds), rule.derivatives(kinds)

    def by_graph(graph: Graph, roots: Sequence[int]) -> Any:
        return lambda **inputs: checks.evaluate(graph, roots, {**positions, **inputs})

    def as_written(python: Any) -> Any:
        jitted = numba.njit(**OPTIONS)(python)

        def call(**inputs: Any) -> list[Any]:
            given = {
                **{short: positions[WORDS[at]] for short, at in POSITIONS.items()},
                **inputs,
            }
            columns = np.broadcast_arrays(*(given[name] for name in rule.arguments))
            lines = [jitted(*line) for line in zip(*(c.ravel() for c in columns), strict=True)]
            return list(np.array(lines, np.float64).reshape(len(lines), -1).T)

        return call

    function = (
        as_written(rule.function)
        if isinstance(reading, str)
        else by_graph(reading.graph, [reading.result])
    )
    if not isinstance(given, str):
        graph, partials, _ = given
        derivative = by_graph(graph, [partials[name] for name in names])
    else:
        every, whole = rule.partials(kinds), as_written(rule.given)

        def derivative(**inputs: Any) -> list[Any]:
            found = dict(zip(every, whole(**inputs), strict=True))
            return [found[name] for name in names]

    return lambda **inputs: function(**inputs)[0], derivative


def _by_head(rule: RuleDefinition, name: str, array: Array, head: Array) -> Array:
    """A parameter as evaluation takes it: numbers by head looked up, arrays whole."""
    return array if name in rule.arrays or array.ndim == 0 else array.reshape(-1)[
        head if array.size > 1 else 0 * head
    ]  # fmt: skip
