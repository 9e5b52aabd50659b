"""The graph of a score rule: operations on numbers, each written once.

A node is an operation on earlier nodes; equal nodes are one. What is constant is computed at once,
and what adds 0 or multiplies by 1 vanishes, so derivatives can be written without care for size.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FLOAT, INT, BOOL = "float", "int", "bool"

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "//": operator.floordiv, "%": operator.mod, "**": operator.pow,
    "&": operator.and_, "|": operator.or_, "^": operator.xor,
    "<<": operator.lshift, ">>": operator.rshift,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    `op` is an operator, the name of a function, or one of: `input` (named by `value`), `constant`,
    `size` (of axis `value[1]` of the array `value[0]`), `load` (from the array `value`; the first
    argument is −1 or the node that says whether the place is looked at), `cast`, `select`.
    """

    op: str
    kind: str
    args: tuple[int, ...] = ()
    value: Any = None


class Graph:
    """Nodes in an order in which arguments come first."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[Any, int] = {}

    def add(self, op: str, kind: str, args: tuple[int, ...] = (), value: Any = None) -> int:
        """The number of a node, made where there is none."""
        # 0.0 and -0.0, 1 and True are different constants.
        key = (op, kind, args, repr(value))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self.nodes)
            self.nodes.append(Node(op, kind, args, value))
        return found

    def kind(self, at: int) -> str:
        """Kind of number of a node."""
        return self.nodes[at].kind

    def constant(self, value: float | int | bool) -> int:
        """A constant."""
        if isinstance(value, bool):
            return self.add("constant", BOOL, value=value)
        if isinstance(value, int):
            return self.add("constant", INT, value=value)
        return self.add("constant", FLOAT, value=float(value))

    def known(self, at: int) -> Any:
        """The value of a constant; None of anything else."""
        node = self.nodes[at]
        return node.value if node.op == "constant" else None

    def cast(self, at: int, kind: str) -> int:
        """The same number as another kind."""
        if self.kind(at) == kind:
            return at
        value = self.known(at)
        if value is not None and not (kind == INT and not math.isfinite(value)):
            return self.constant({FLOAT: float, INT: int, BOOL: bool}[kind](value))
        return self.add("cast", kind, (at,))

    def floats(self, *args: int) -> tuple[int, ...]:
        """Numbers as floating ones."""
        return tuple(self.cast(at, FLOAT) for at in args)

    def alike(self, *args: int) -> tuple[int, ...]:
        """Numbers made the same kind: floating where one is."""
        kind = FLOAT if any(self.kind(at) == FLOAT for at in args) else INT
        return tuple(self.cast(at, kind) for at in args)

    def binary(self, op: str, left: int, right: int) -> int:
        """An arithmetic operation or a comparison."""
        left, right = self.floats(left, right) if op == "/" else self.alike(left, right)
        a, b, kind = self.known(left), self.known(right), self.kind(left)
        if op in COMPARISONS:
            if a is not None and b is not None:
                return self.constant(bool(COMPARISONS[op](a, b)))
            return self.add(op, BOOL, (left, right))
        if a is not None and b is not None:
            try:
                return self.constant(ARITHMETIC[op](a, b))
            except (ArithmeticError, ValueError):  # such as 1 / 0: left to the run
                return self.add(op, kind, (left, right))
        if (op == "+" and a == 0) or (op == "*" and a == 1):
            return right
        if (op in "+-" and b == 0) or (op in ("*", "/", "**") and b == 1):
            return left
        if op == "-" and a == 0:
            return self.negative(right)
        if op == "*" and (a == -1 or b == -1):
            return self.negative(right if a == -1 else left)
        if op == "**" and isinstance(b, int | float) and b == int(b) and 0 <= b <= 8:
            return self._power(left, int(b))
        if op == "**" and b == 0.5:
            return self.call("sqrt", left)
        return self.add(op, kind, (left, right))

    def _power(self, base: int, exponent: int) -> int:
        if exponent == 0:
            return self.cast(self.constant(1), self.kind(base))
        half = self._power(base, exponent // 2) if exponent > 1 else base
        if exponent == 1:
            return base
        square = self.binary("*", half, half)
        return self.binary("*", square, base) if exponent % 2 else square

    def negative(self, at: int) -> int:
        """−x."""
        value = self.known(at)
        if value is not None:
            return self.constant(-value)
        node = self.nodes[at]
        return node.args[0] if node.op == "neg" else self.add("neg", node.kind, (at,))

    def call(self, name: str, *args: int) -> int:
        """A function of floating numbers."""
        return self.add(name, FLOAT, self.floats(*args))

    def select(self, test: int, yes: int, no: int) -> int:
        """`yes` where the test holds, else `no`."""
        value = self.known(test)
        if value is not None:
            return yes if value else no
        if yes == no:
            return yes
        if not self.kind(yes) == self.kind(no) == BOOL:
            yes, no = self.alike(yes, no)
        return self.add("select", self.kind(yes), (test, yes, no))

    def both(self, left: int, right: int) -> int:
        """Logical and."""
        a, b = self.known(left), self.known(right)
        if a is not None:
            return right if a else left
        if b is not None:
            return left if b else right
        return self.add("and", BOOL, (left, right))

    def either(self, left: int, right: int) -> int:
        """Logical or."""
        return self.negation(self.both(self.negation(left), self.negation(right)))

    def negation(self, at: int) -> int:
        """Logical not."""
        value = self.known(at)
        if value is not None:
            return self.constant(not value)
        node = self.nodes[at]
        return node.args[0] if node.op == "not" else self.add("not", BOOL, (at,))

    def needed(self, roots: tuple[int, ...]) -> list[int]:
        """The nodes that the roots depend on, arguments first."""
        wanted, waiting = set(), list(roots)
        while waiting:
            at = waiting.pop()
            if at >= 0 and at not in wanted:
                wanted.add(at)
                waiting.extend(self.nodes[at].args)
        return sorted(wanted)
