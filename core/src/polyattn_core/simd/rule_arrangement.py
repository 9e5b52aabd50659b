"""A score rule's graph arranged for the loops of its pass: sums and products by where they change.

Of x / ((1 − |q|²)(1 − |k|²)) one factor changes with the query only and one with the key only. Both
reciprocals are taken outside the loop over pairs, which is left with two multiplications. What a
rule writes is regrouped like this within its rounding errors, as the compiler regroups it anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable

from .rule_graph import FLOAT, Graph

TILE, KEY, QUERY, PAIR = range(4)
"""Where a number changes: what changes with both changes with the union of their bits."""
_LEVELS = {"batch": TILE, "head": TILE, "key": KEY, "column": KEY, "query": QUERY, "row": QUERY}

_INVERSE = {"+": "-", "*": "/"}
_NEUTRAL = {"+": 0.0, "*": 1.0}


class Levels:
    """The level of each node of a graph, that of nodes added later too."""

    def __init__(self, graph: Graph, parameters: Container[str]) -> None:
        self.graph, self.parameters = graph, parameters
        self._found: list[int] = []

    def __getitem__(self, at: int) -> int:
        for node in self.graph.nodes[len(self._found) : at + 1]:
            if node.op == "input":
                level = _LEVELS.get(node.value, TILE if node.value in self.parameters else PAIR)
            else:
                level = TILE
                for arg in node.args:
                    level |= self._found[arg] if arg >= 0 else TILE
            self._found.append(level)
        return self._found[at]


def arranged(graph: Graph, roots: Iterable[int], parameters: Container[str]) -> dict[int, int]:
    """What to compute instead of each node that the roots depend on; added to the graph."""
    return _Arranger(graph, tuple(roots), parameters).new


class _Arranger:
    def __init__(self, graph: Graph, roots: tuple[int, ...], parameters: Container[str]) -> None:
        self.graph, self.levels = graph, Levels(graph, parameters)
        order = graph.needed(roots)
        self.uses = Counter(roots)
        for at in order:
            self.uses.update(graph.nodes[at].args)
        self.new: dict[int, int] = {-1: -1}
        for at in order:
            self.new[at] = self._arranged(at)

    def _arranged(self, at: int) -> int:
        graph, node = self.graph, self.graph.nodes[at]
        if node.kind == FLOAT and node.op in ("+", "-"):
            return self._regrouped(at, "+")
        if node.kind == FLOAT and node.op in ("*", "/"):
            return self._regrouped(at, "*")
        args = tuple(self.new[arg] for arg in node.args)
        if node.op == "arccosh":
            over = self._minus_one(node.args[0])
            if over is not None:
                return graph.call("arccosh1p", over)
        return at if args == node.args else graph.add(node.op, node.kind, args, node.value)

    def _minus_one(self, at: int) -> int | None:
        """x where a sum is 1 + x."""
        node = self.graph.nodes[at]
        if node.op == "+" and 1 in map(self.graph.known, node.args):
            return self.new[min(node.args, key=lambda arg: self.graph.known(arg) == 1)]
        return None

    # ---- sums and products ----------------------------------------------------------------------

    def _regrouped(self, at: int, op: str) -> int:
        """A sum or product as what each level has of it, the lower levels first."""
        parts, negative = self._collect(at, op)
        levels = {level: self._join(op, parts, level) for level in range(4)}
        lowest = next((k for k in (KEY, QUERY, PAIR) if levels[k] is not None), TILE)
        if lowest in (KEY, QUERY):
            levels[lowest] = self._combine(op, levels[TILE], levels[lowest])
            levels[TILE] = None
        if negative:
            signed = next(k for k in (TILE, KEY, QUERY, PAIR) if levels[k] is not None)
            levels[signed] = self.graph.negative(levels[signed])  # type: ignore[arg-type]
        outer = self._combine(op, self._combine(op, levels[TILE], levels[KEY]), levels[QUERY])
        whole = self._combine(op, outer, levels[PAIR])
        return self.graph.constant(_NEUTRAL[op]) if whole is None else whole

    def _collect(self, at: int, op: str) -> tuple[dict[tuple[int, bool], list[int]], bool]:
        """The parts by level and by whether they are taken away; whether a product is negative."""
        parts: dict[tuple[int, bool], list[int]] = {}
        graph, negative = self.graph, False
        waiting = [(at, False)]
        while waiting:
            part, inverse = waiting.pop()
            node = graph.nodes[part]
            inside = part == at or self.uses[part] == 1 or self._free(part, op)
            if inside and node.kind == FLOAT and node.op in (op, _INVERSE[op]):
                turned = inverse != (node.op != op)
                waiting += [(node.args[1], turned), (node.args[0], inverse)]
            elif inside and node.op == "neg":
                waiting.append((node.args[0], inverse != (op == "+")))
                negative ^= op == "*"
            else:
                own = self.new[part]
                parts.setdefault((self.levels[own], inverse), []).append(own)
        return parts, negative

    def _free(self, at: int, op: str) -> bool:
        """Does it cost nothing between pairs to take a node apart that others use too?"""
        node = self.graph.nodes[at]
        if self.levels[at] < PAIR:
            return True
        if node.op not in (op, _INVERSE[op]):
            return False
        if op == "+":
            return any(self.graph.known(arg) is not None for arg in node.args)
        return all(self.levels[arg] < PAIR for arg in node.args)

    def _join(self, op: str, parts: dict[tuple[int, bool], list[int]], level: int) -> int | None:
        """All parts of a level in one; a product of reciprocals is the reciprocal of a product."""
        straight = self._reduce(op, parts.get((level, False), ()))
        turned = self._reduce(op, parts.get((level, True), ()))
        if turned is None:
            return straight
        if straight is None:
            straight = self.graph.constant(_NEUTRAL[op])
        return self.graph.binary(_INVERSE[op], straight, turned)

    def _reduce(self, op: str, parts: Iterable[int]) -> int | None:
        whole = None
        for part in parts:
            whole = self._combine(op, whole, part)
        return whole

    def _combine(self, op: str, left: int | None, right: int | None) -> int | None:
        if left is None or right is None:
            return right if left is None else left
        return self.graph.binary(op, left, right)
