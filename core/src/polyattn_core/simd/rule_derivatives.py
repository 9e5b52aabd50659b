"""Derivatives of graphs, by the chain rule forwards."""

from __future__ import annotations

from collections.abc import Sequence

from .rule_functions import SLOPES, STEPS
from .rule_graph import FLOAT, Graph


class NoDerivative(Exception):
    """An operation has no derivative that is known here."""


def partial_derivatives(graph: Graph, result: int, inputs: Sequence[int]) -> list[int]:
    """The nodes of the derivatives of `result` by each of the inputs; added to the graph."""
    order = graph.needed((result,))
    return [_derivative(graph, order, result, by) for by in inputs]


def _derivative(graph: Graph, order: Sequence[int], result: int, by: int) -> int:
    zero = graph.constant(0.0)
    slopes: dict[int, int] = {by: graph.constant(1.0)}
    for at in order:
        node = graph.nodes[at]
        if at == by or node.kind != FLOAT or not any(arg in slopes for arg in node.args):
            continue
        found = _chain(
            graph, at, [slopes.get(arg, zero) if arg >= 0 else zero for arg in node.args]
        )
        if graph.known(found) != 0:
            slopes[at] = found
    return slopes.get(result, zero)


def _times(graph: Graph, a: int, b: int) -> int:
    """a · b, where 0 times anything is 0: an input on which nothing depends has no NaN."""
    if graph.known(a) == 0 or graph.known(b) == 0:
        return graph.constant(0.0)
    return graph.binary("*", a, b)


def _chain(graph: Graph, at: int, inner: list[int]) -> int:
    """The derivative of a node from those of its arguments."""
    node = graph.nodes[at]
    args = node.args
    match node.op:
        case "+" | "-":
            return graph.binary(node.op, inner[0], inner[1])
        case "neg":
            return graph.negative(inner[0])
        case "*":
            first = _times(graph, inner[0], args[1])
            return graph.binary("+", first, _times(graph, args[0], inner[1]))
        case "/":
            over = _times(graph, at, inner[1])
            return graph.binary("/", graph.binary("-", inner[0], over), args[1])
        case "**":
            less = graph.binary("-", args[1], graph.constant(1.0))
            power = graph.binary("*", args[1], graph.binary("**", args[0], less))
            first = _times(graph, inner[0], power)
            if graph.known(inner[1]) == 0:
                return first
            growth = graph.binary("*", at, graph.call("log", args[0]))
            return graph.binary("+", first, _times(graph, inner[1], growth))
        case "%":
            turns = graph.call("floor", graph.binary("/", args[0], args[1]))
            return graph.binary("-", inner[0], _times(graph, inner[1], turns))
        case "abs":
            zero = graph.constant(0.0)
            falling = graph.select(graph.binary("<", args[0], zero), graph.negative(inner[0]), zero)
            return graph.select(graph.binary(">", args[0], zero), inner[0], falling)
        case "min" | "max":
            sign = "<=" if node.op == "min" else ">="
            return graph.select(graph.binary(sign, args[0], args[1]), inner[0], inner[1])
        case "select":
            return graph.select(args[0], inner[1], inner[2])
        case "arctan2":
            length = graph.binary(
                "+", graph.binary("*", args[0], args[0]), graph.binary("*", args[1], args[1])
            )
            across = graph.binary(
                "-", _times(graph, inner[0], args[1]), _times(graph, inner[1], args[0])
            )
            return graph.binary("/", across, length)
        case "//":
            return graph.constant(0.0)
        case "cast":
            return graph.constant(0.0)
    if node.op in STEPS:
        return graph.constant(0.0)
    if node.op in SLOPES:
        return _times(graph, inner[0], SLOPES[node.op](graph, at, args[0]))
    raise NoDerivative(f"the derivative of {node.op} is not known")
