"""Trials of a rule before anything runs: reads out of range, wrong derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .rule_functions import EVALUATED
from .rule_graph import ARITHMETIC, BOOL, COMPARISONS, FLOAT, INT, Graph

Array = npt.NDArray[Any]
Range = tuple[float, float]

_DTYPES: dict[str, type] = {FLOAT: np.float64, INT: np.int64, BOOL: np.bool_}
_ANYWHERE: Range = (-math.inf, math.inf)


def evaluate(
    graph: Graph, roots: Sequence[int], inputs: Mapping[str, Any],
    out_of_range: Callable[[int, int, Array], None] | None = None,
) -> list[Any]:  # fmt: skip
    """Values of nodes in NumPy, double precision. `inputs` broadcast against each other.

    `out_of_range` is told node, axis and index of reads outside an array; they read its first
    element.
    """
    found: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for at in graph.needed(tuple(roots)):
            found[at] = _value(graph, at, found, inputs, out_of_range)
    return [found[root] for root in roots]


def _value(graph: Graph, at: int, found: dict[int, Any], inputs: Any, told: Any) -> Any:
    node = graph.nodes[at]
    if node.op == "load":
        return _element(graph, at, found, inputs, told)
    args = [found[arg] for arg in node.args]
    match node.op:
        case "input":
            return inputs[node.value]
        case "constant":
            return np.asarray(node.value)
        case "size":
            return np.asarray(inputs[node.value[0]].shape[node.value[1]])
        case "cast":
            return np.asarray(args[0]).astype(_DTYPES[node.kind])
        case "select":
            return np.where(*args)
        case "neg":
            return np.negative(args[0])
        case "not":
            return np.logical_not(args[0])
        case "and":
            return np.logical_and(*args)
    function = EVALUATED.get(node.op) or ARITHMETIC.get(node.op) or COMPARISONS[node.op]
    return function(*args)


def _element(graph: Graph, at: int, found: dict[int, Any], inputs: Any, told: Any) -> Any:
    node = graph.nodes[at]
    array = inputs[node.value[0]]
    guard, *indices = node.args
    places = []
    for axis, index in enumerate(found[i] for i in indices):
        outside = (index < 0) | (index >= array.shape[axis])
        if guard >= 0:
            outside = outside & found[guard]
        if told is not None and np.any(outside):
            told(at, axis, np.broadcast_to(index, outside.shape)[outside][0])
        inside = (index >= 0) & (index < array.shape[axis])
        places.append(np.where(inside, index, 0))
    return array[tuple(places)]


def ranges(graph: Graph, root: int, known: Mapping[str, Any]) -> dict[int, Range]:
    """Between which numbers the nodes that lead to `root` lie, as far as that is easily told.

    `known` holds the range of each input of whole numbers, and the arrays.
    """
    found: dict[int, Range] = {}
    for at in graph.needed((root,)):
        found[at] = _range(graph, at, found, known)
    return found


def _range(graph: Graph, at: int, found: Mapping[int, Range], known: Mapping[str, Any]) -> Range:
    node = graph.nodes[at]
    inner = [found[arg] for arg in node.args if arg >= 0]
    match node.op:
        case "constant":
            return float(node.value), float(node.value)
        case "input":
            value = known.get(node.value)
            return value if isinstance(value, tuple) else _ANYWHERE
        case "size":
            size = float(known[node.value[0]].shape[node.value[1]])
            return size, size
        case "load" if node.kind == INT:
            array = known[node.value[0]]
            return (float(array.min()), float(array.max())) if array.size else _ANYWHERE
        case "+":
            return inner[0][0] + inner[1][0], inner[0][1] + inner[1][1]
        case "-":
            return inner[0][0] - inner[1][1], inner[0][1] - inner[1][0]
        case "*" if all(map(math.isfinite, (*inner[0], *inner[1]))):
            corners = [x * y for x in inner[0] for y in inner[1]]
            return min(corners), max(corners)
        case "neg":
            return -inner[0][1], -inner[0][0]
        case "abs":
            low, high = inner[0]
            most = max(abs(low), abs(high))
            return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), most
        case "min":
            return min(inner[0][0], inner[1][0]), min(inner[0][1], inner[1][1])
        case "max":
            return max(inner[0][0], inner[1][0]), max(inner[0][1], inner[1][1])
        case "select":
            return min(inner[1][0], inner[2][0]), max(inner[1][1], inner[2][1])
        case "%" if node.kind == INT and inner[1][0] > 0:
            return 0.0, inner[1][1] - 1
        case "//" if node.kind == INT and inner[1][0] == inner[1][1] > 0:
            return inner[0][0] // inner[1][0], inner[0][1] // inner[1][0]
        case "cast" if node.kind == INT and graph.kind(node.args[0]) == BOOL:
            return 0.0, 1.0
    return _ANYWHERE


def loads_in(graph: Graph, root: int) -> list[int]:
    """The reads of array elements that lead to a node."""
    return [at for at in graph.needed((root,)) if graph.nodes[at].op == "load"]


def always_in_range(graph: Graph, root: int, known: Mapping[str, Any]) -> bool:
    """Can no read leave its array, whatever the tile?"""
    found = ranges(graph, root, known)
    for at in loads_in(graph, root):
        array = known[graph.nodes[at].value[0]]
        for axis, index in enumerate(graph.nodes[at].args[1:]):
            low, high = found[index]
            if not 0 <= low <= high < array.shape[axis]:
                return False
    return True


def corners(size: int, rng: np.random.Generator) -> Array:
    """Positions along an axis: the ends, their neighbours, and some between."""
    ends = [0, 1, size // 2, size - 2, size - 1]
    few = rng.integers(0, size, 27)
    return np.unique(np.clip([*ends, *few], 0, size - 1))


def disagreement(
    function: Callable[..., Any], derivative: Callable[..., Sequence[Any]],
    inputs: Mapping[str, Array], names: Sequence[str],
) -> str | None:  # fmt: skip
    """Compare derivatives with differences of the function; a sentence where they differ.

    Points where the differences do not settle (kinks, steps, outside the domain) say nothing.
    """
    partials = derivative(**inputs)
    for name, partial in zip(names, partials, strict=True):
        point = np.asarray(inputs[name], np.float64)
        slopes = []
        for step in (2e-5, 1e-5):
            h = step * np.maximum(1, np.abs(point))
            ahead, behind = (
                np.asarray(function(**{**inputs, name: point + sign * h}), np.float64)
                for sign in (1, -1)
            )
            with np.errstate(invalid="ignore", over="ignore"):
                slopes.append((ahead - behind) / (2 * h))
        coarse, fine = slopes
        partial, coarse, fine = np.broadcast_arrays(partial, coarse, fine)
        scale = 1 + np.abs(fine)
        with np.errstate(invalid="ignore"):
            settled = (
                np.isfinite(fine) & np.isfinite(partial) & (np.abs(coarse - fine) < 1e-5 * scale)
            )
            wrong = settled & (np.abs(partial - fine) > 1e-3 * scale)
        if settled.any() and wrong.sum() > 0.1 * settled.sum():
            at = int(np.flatnonzero(wrong)[0])
            return f"by {name} is {partial.flat[at]:.6g} where differences give {fine.flat[at]:.6g}"
    return None
