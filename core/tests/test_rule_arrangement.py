"""The arrangement of a rule's sums and products: exact in fractions, cheap between pairs."""

from __future__ import annotations

import ctypes
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from polyattn_core.simd import target
from polyattn_core.simd.rule_arrangement import KEY, PAIR, QUERY, TILE, Levels, arranged
from polyattn_core.simd.rule_graph import ARITHMETIC, FLOAT, Graph
from polyattn_core.simd.rules import score_rule, squared_norm

INPUTS = {"score": PAIR, "row": QUERY, "column": KEY, "cap": TILE}


def exactly(graph: Graph, root: int, inputs: dict[str, Fraction]) -> Fraction:
    """The value of a node without rounding."""
    found: dict[int, Fraction] = {}
    for at in graph.needed((root,)):
        node = graph.nodes[at]
        args = [found[arg] for arg in node.args]
        match node.op:
            case "input":
                found[at] = inputs[node.value]
            case "constant":
                found[at] = Fraction(node.value)
            case "neg":
                found[at] = -args[0]
            case _:
                found[at] = ARITHMETIC[node.op](*args)
    return found[root]


@st.composite
def graphs(draw: Any) -> tuple[Graph, list[int]]:
    """Sums, products and their inverses, many of them used more than once."""
    graph = Graph()
    nodes = [graph.add("input", FLOAT, value=name) for name in INPUTS]
    nodes += [graph.constant(value) for value in (1.0, 2.0, -0.5)]
    for _ in range(draw(st.integers(1, 12))):
        left, right = (draw(st.sampled_from(nodes)) for _ in range(2))
        op = draw(st.sampled_from("+-*/n"))
        nodes.append(graph.negative(left) if op == "n" else graph.binary(op, left, right))
    return graph, draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3))


@given(
    graphs(),
    st.fixed_dictionaries({name: st.fractions(-3, 3, max_denominator=7) for name in INPUTS}),
)
def test_rearranged_means_the_same(built: Any, inputs: dict[str, Fraction]) -> None:
    graph, roots = built
    try:
        expected = [exactly(graph, root, inputs) for root in roots]
    except ZeroDivisionError:
        assume(False)
    new = arranged(graph, roots, {"cap"})
    assert [exactly(graph, new[root], inputs) for root in roots] == expected


def distance(dot, row, column, cap):  # type: ignore[no-untyped-def]
    return -cap * math.acosh(1 + 2 * (row + column - 2 * dot) / ((1 - row) * (1 - column)))


def operations(rule: Any) -> dict[int, list[str]]:
    """What is left to compute at each level."""
    reading = rule.reading({"cap": rule.usual_kinds()["cap"]})
    graph, levels = reading.graph, Levels(reading.graph, {"cap"})
    root = arranged(graph, [reading.result], {"cap"})[reading.result]
    done: dict[int, list[str]] = {level: [] for level in range(4)}
    for at in graph.needed((root,)):
        if graph.nodes[at].op not in ("input", "constant"):
            done[levels[at]].append(graph.nodes[at].op)
    return done


def test_reciprocals_are_taken_outside_the_pairs() -> None:
    done = operations(score_rule(distance, row=squared_norm, column=squared_norm))
    assert "/" in done[KEY]
    assert "/" in done[QUERY]
    assert "/" not in done[PAIR]
    assert len(done[PAIR]) <= 8
    # 1 + x is never rounded, so that near points keep their distance.
    assert "arccosh1p" in done[PAIR]


def test_levels_of_later_nodes() -> None:
    graph = Graph()
    score, row, column, cap = (graph.add("input", FLOAT, value=name) for name in INPUTS)
    levels = Levels(graph, {"cap"})
    assert [levels[at] for at in (score, row, column, cap)] == list(INPUTS.values())
    assert levels[graph.binary("*", column, cap)] == KEY
    assert levels[graph.binary("+", graph.binary("*", column, cap), row)] == PAIR


def least(score, bound):  # type: ignore[no-untyped-def]
    return min(max(score, -2.0), bound)


@pytest.mark.parametrize("bound", [math.nan, 1.5])
def test_extremes_keep_nan(bound: float) -> None:
    rule = score_rule(least)
    scores = np.array([-9.0, np.nan, 0.5, 7.0])
    expected = np.minimum(np.maximum(scores, -2.0), bound)
    np.testing.assert_array_equal(np.ravel(trial(rule, scores, bound)), expected)


def trial(rule: Any, scores: Any, bound: float) -> Any:
    """The rule's compiled pass over scores."""
    wide = target.tile("float64").queries
    tile = np.zeros((1, wide))
    tile[0, : len(scores)] = scores
    meta, numbers = np.array([0, 0, 0, 0, 1]), np.array([bound])
    zeros = np.zeros(wide)
    compiled = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 6)(rule.address("float64", False))
    compiled(*(a.ctypes.data for a in (tile, tile, meta, zeros, zeros, numbers)))
    return tile[0, : len(scores)]
