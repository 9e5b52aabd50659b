"""From the source of a score rule to its graph.

Read are: assignments, `if`, `for` over a fixed range, conditional expressions, arithmetic,
comparisons, the functions of :mod:`rule_functions` by whatever name, elements of array parameters,
and calls of other Python functions made of the same. Both sides of an `if` are computed and one is
chosen, so that the whole runs in vectors.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import KernelError
from .rule_functions import meaning
from .rule_graph import BOOL, FLOAT, INT, Graph

_OPERATORS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.Pow: "**", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<",
    ast.RShift: ">>", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==",
    ast.NotEq: "!=",
}  # fmt: skip
_MOST_TURNS = 64


class Unreadable(Exception):
    """The source holds something that is not read here; says what, and where."""


class ArrayParameter:
    """A parameter that the rule indexes; its axes and kind are known when it is passed."""

    def __init__(self, name: str, ndim: int, kind: str) -> None:
        self.name, self.ndim, self.kind = name, ndim, kind


def source_of(function: Callable[..., Any]) -> ast.FunctionDef | ast.Lambda:
    """The syntax tree of a function, with the line numbers of its file."""
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError, ValueError):
        raise Unreadable("its source is not at hand") from None
    ast.increment_lineno(tree, max(first, 1) - 1)
    name = function.__name__
    kinds: Any = ast.Lambda if name == "<lambda>" else ast.FunctionDef
    found = [
        node for node in ast.walk(tree)
        if isinstance(node, kinds) and getattr(node, "name", name) == name
    ]  # fmt: skip
    if len(found) != 1:
        raise Unreadable("its source cannot be told from others on its lines")
    return found[0]


class NotWhole(KernelError):
    """An index is not a whole number."""


def indexed_parameters(function: Callable[..., Any], names: Sequence[str]) -> dict[str, int]:
    """Arguments that the function looks into (`x[…]`, `x.shape`, `len(x)`), with their axes."""
    try:
        tree = source_of(function)
    except Unreadable:
        return {}
    found: dict[str, int] = {}
    for node in ast.walk(tree):
        inner: Any = None
        if isinstance(node, ast.Subscript):
            inner = node.value
        elif isinstance(node, ast.Attribute) and node.attr == "shape":
            inner = node.value
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "len" and node.args:
            inner = node.args[0]
        if isinstance(inner, ast.Name) and inner.id in names:
            parts = getattr(getattr(node, "slice", None), "elts", None)
            found[inner.id] = max(found.get(inner.id, 1), len(parts) if parts else 1)
    return found


def read(function: Callable[..., Any], graph: Graph, arguments: Mapping[str, Any]) -> Any:
    """The result of a function as a node, or a tuple of nodes.

    Raises
    ------
    Unreadable
        Where it does what graphs cannot say.
    KernelError
        Where it does what no rule may do: raise, return nothing or what is not a number.
    """
    return _Reader(function, graph, ()).run(dict(arguments))


class _Reader:
    def __init__(
        self, function: Callable[..., Any], graph: Graph, callers: tuple[Any, ...],
        guard: int | None = None,
    ) -> None:  # fmt: skip
        self.function, self.graph, self.callers = function, graph, (*callers, function)
        self.guard = guard
        self.cells = inspect.getclosurevars(function).nonlocals if function.__closure__ else {}

    def place(self, node: Any) -> str:
        return f"{self.function.__code__.co_filename}:{getattr(node, 'lineno', '?')}"

    def unreadable(self, node: Any, what: str) -> Unreadable:
        return Unreadable(f"{self.place(node)}: {what}")

    def refused(self, node: Any, what: str) -> KernelError:
        name = self.callers[0].__name__
        return KernelError(f"the score rule {name} ({self.place(node)}) {what}")

    def run(self, names: dict[str, Any]) -> Any:
        tree = source_of(self.function)
        if isinstance(tree, ast.Lambda):
            return self.returned(tree, self.value(tree.body, names))
        result = self.block(tree.body, names)
        if result is None:
            raise self.refused(tree, "can end without returning a number")
        return result

    # ---- statements ---------------------------------------------------------------------------

    def block(self, body: Sequence[ast.stmt], names: dict[str, Any]) -> Any:
        """Run statements; what they return, or None where they go on behind the last."""
        for at, statement in enumerate(body):
            rest = body[at + 1 :]
            match statement:
                case ast.Return(value=None):
                    raise self.refused(statement, "returns nothing; it must return a number")
                case ast.Return(value=value):
                    return self.returned(statement, self.value(value, names))
                case ast.Assign(targets=targets, value=value):
                    found = self.value(value, names)
                    for target in targets:
                        self.assign(target, found, names)
                case ast.AnnAssign(target=target, value=value) if value is not None:
                    self.assign(target, self.value(value, names), names)
                case ast.AugAssign(target=target, op=op, value=value):
                    whole = ast.BinOp(ast.Name(target.id, ast.Load()), op, value)  # type: ignore[union-attr]
                    ast.copy_location(whole, statement)
                    ast.fix_missing_locations(whole)
                    self.assign(target, self.value(whole, names), names)
                case ast.If():
                    found = self.branch(statement, rest, names)
                    if found is not None:
                        return found[0]
                case ast.For():
                    turns = self.turns(statement, names)
                    copies = [part for turn in turns for part in (turn, *statement.body)]
                    return self.block([*copies, *rest], names)
                case ast.Expr(value=ast.Constant()) | ast.Pass():
                    pass
                case ast.Raise() | ast.Assert():
                    raise self.refused(
                        statement, "may raise; inside a kernel nothing can: return −inf or NaN"
                    )
                case _:
                    word = type(statement).__name__.lower()
                    raise self.unreadable(statement, f"a `{word}` statement")
        return None

    def turns(self, loop: ast.For, names: dict[str, Any]) -> list[ast.stmt]:
        """For each turn of a loop over a fixed range, the assignment that begins it."""
        call = loop.iter
        if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "range") or any(
            isinstance(node, ast.Break | ast.Continue) for node in ast.walk(loop)
        ):
            raise self.unreadable(loop, "a loop, other than a plain one over a fixed range")
        bounds = [self.graph.known(self.number(a, names)) for a in call.args]
        if not all(type(bound) is int for bound in bounds) or len(range(*bounds)) > _MOST_TURNS:
            raise self.unreadable(loop, f"a loop over a range that is not fixed, to {_MOST_TURNS}")
        made: list[ast.stmt] = []
        for turn in range(*bounds):
            begin = ast.Assign([loop.target], ast.Constant(turn))
            made.append(ast.fix_missing_locations(ast.copy_location(begin, loop)))
        return made

    def branch(self, statement: ast.If, rest: Sequence[ast.stmt], names: dict[str, Any]) -> Any:
        """Both sides; a result in a tuple where one of them returns."""
        test = self.truth(statement.test, names)
        before, sides = self.guard, []
        returns = any(isinstance(node, ast.Return) for node in ast.walk(statement))
        for way, body in ((test, statement.body), (self.graph.negation(test), statement.orelse)):
            self.guard = way if before is None else self.graph.both(before, way)
            own = dict(names)
            sides.append((self.block([*body, *rest] if returns else body, own), own))
            self.guard = before
        (yes, after), (no, otherwise) = sides
        if returns:
            if yes is None or no is None:
                raise self.refused(statement, "can end without returning a number")
            return (self.joined(statement, test, yes, no),)
        for name in after.keys() & otherwise.keys():
            names[name] = self.joined(statement, test, after[name], otherwise[name])
        return None

    def joined(self, node: Any, test: int, yes: Any, no: Any) -> Any:
        if yes is no:
            return yes
        if isinstance(yes, tuple) and isinstance(no, tuple) and len(yes) == len(no):
            return tuple(self.joined(node, test, a, b) for a, b in zip(yes, no, strict=True))
        if isinstance(yes, int) and isinstance(no, int):
            return self.graph.select(test, yes, no)
        raise self.unreadable(node, "the sides of an `if` give different things")

    def assign(self, target: Any, value: Any, names: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            names[target.id] = value
        elif isinstance(target, ast.Tuple) and isinstance(value, tuple):
            if len(target.elts) != len(value):
                raise self.unreadable(target, "an assignment to another number of names")
            for inner, part in zip(target.elts, value, strict=True):
                self.assign(inner, part, names)
        else:
            raise self.unreadable(target, "an assignment to something other than names")

    def returned(self, node: Any, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self.returned(node, part) for part in value)
        if isinstance(value, int):
            return self.graph.cast(value, FLOAT) if len(self.callers) == 1 else value
        raise self.refused(node, "does not return a number")

    # ---- expressions --------------------------------------------------------------------------

    def number(self, node: ast.expr, names: dict[str, Any]) -> int:
        value = self.value(node, names)
        if isinstance(value, int):
            return value
        raise self.unreadable(node, f"`{ast.unparse(node)}`, which is not a number")

    def truth(self, node: ast.expr, names: dict[str, Any]) -> int:
        at = self.number(node, names)
        if self.graph.kind(at) == BOOL:
            return at
        return self.graph.binary("!=", at, self.graph.constant(0))

    def value(self, node: Any, names: dict[str, Any]) -> Any:
        """A node of the graph, a tuple of such, an array parameter, or a Python object."""
        graph = self.graph
        match node:
            case ast.Constant(value=value):
                return self.wrapped(value)
            case ast.Name(id=name):
                return self.named(node, name, names)
            case ast.Attribute(value=inner, attr=name):
                owner = self.value(inner, names)
                if isinstance(owner, ArrayParameter):
                    if name == "shape":
                        return self.shape(owner)
                    raise self.unreadable(node, f"`{ast.unparse(node)}`")
                if isinstance(owner, int | tuple):
                    raise self.unreadable(node, f"`{ast.unparse(node)}`")
                try:
                    return self.wrapped(getattr(owner, name))
                except AttributeError:
                    raise self.unreadable(node, f"`{ast.unparse(node)}`") from None
            case ast.Tuple(elts=parts):
                return tuple(self.value(part, names) for part in parts)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                sign = _OPERATORS[type(op)]
                a, b = self.number(left, names), self.number(right, names)
                if graph.kind(a) == graph.kind(b) == BOOL and sign in "&|":
                    return graph.both(a, b) if sign == "&" else graph.either(a, b)
                return graph.binary(sign, a, b)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                at = self.number(inner, names)
                return graph.negative(at if graph.kind(at) != BOOL else graph.cast(at, INT))
            case ast.UnaryOp(op=ast.UAdd(), operand=inner):
                return self.number(inner, names)
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return graph.negation(self.truth(inner, names))
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self.comparison(node, left, ops, others, names)
            case ast.BoolOp(op=op, values=values):
                return self.logic(isinstance(op, ast.And), values, names)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                at = self.truth(test, names)
                yes = self.guarded(at, body, names)
                no = self.guarded(graph.negation(at), orelse, names)
                return self.joined(node, at, yes, no)
            case ast.Subscript(value=inner, slice=index):
                return self.element(node, self.value(inner, names), index, names)
            case ast.Call():
                return self.call(node, names)
        raise self.unreadable(node, f"`{ast.unparse(node)}`")

    def named(self, node: Any, name: str, names: dict[str, Any]) -> Any:
        if name in names:
            return names[name]
        for scope in (self.cells, self.function.__globals__, vars(builtins)):
            if name in scope:
                return self.wrapped(scope[name])
        raise self.refused(node, f"uses {name}, which is not defined")

    def wrapped(self, value: Any) -> Any:
        if isinstance(value, bool | np.bool_):
            return self.graph.constant(bool(value))
        if isinstance(value, int | np.integer):
            return self.graph.constant(int(value))
        if isinstance(value, float | np.floating):
            return self.graph.constant(float(value))
        return value

    def guarded(self, test: int, node: ast.expr, names: dict[str, Any]) -> Any:
        before = self.guard
        self.guard = test if before is None else self.graph.both(before, test)
        try:
            return self.value(node, names)
        finally:
            self.guard = before

    def comparison(self, node: Any, left: Any, ops: Any, others: Any, names: Any) -> int:
        result: int | None = None
        a = self.number(left, names)
        for op, other in zip(ops, others, strict=True):
            if type(op) not in _OPERATORS:
                raise self.unreadable(node, f"`{ast.unparse(node)}`")
            b = self.number(other, names)
            this = self.graph.binary(_OPERATORS[type(op)], a, b)
            result = this if result is None else self.graph.both(result, this)
            a = b
        assert result is not None
        return result

    def logic(self, every: bool, values: Sequence[ast.expr], names: dict[str, Any]) -> int:
        graph, before = self.graph, self.guard
        result = self.truth(values[0], names)
        for value in values[1:]:
            go_on = result if every else graph.negation(result)
            self.guard = go_on if before is None else graph.both(before, go_on)
            other = self.truth(value, names)
            result = graph.both(result, other) if every else graph.either(result, other)
            self.guard = before
        return result

    def shape(self, array: ArrayParameter) -> tuple[int, ...]:
        return tuple(
            self.graph.add("size", INT, value=(array.name, axis)) for axis in range(array.ndim)
        )

    def element(self, node: Any, owner: Any, index: ast.expr, names: dict[str, Any]) -> Any:
        graph = self.graph
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        if isinstance(owner, tuple):
            at = graph.known(self.number(index, names))
            if type(at) is not int or not -len(owner) <= at < len(owner):
                raise self.refused(node, f"reads `{ast.unparse(node)}`, which is out of range")
            return owner[at]
        if not isinstance(owner, ArrayParameter):
            raise self.unreadable(node, f"`{ast.unparse(node)}`; pass arrays as parameters")
        if len(parts) != owner.ndim:
            raise self.refused(
                node, f"reads `{ast.unparse(node)}`, but {owner.name} has {owner.ndim} axes"
            )
        places = []
        for axis, part in enumerate(parts):
            at = self.number(part, names)
            if graph.kind(at) == FLOAT:
                text = f"reads `{ast.unparse(node)}`: an index must be a whole number"
                raise NotWhole(*self.refused(node, text).args)
            at = graph.cast(at, INT)
            known = graph.known(at)
            if known is not None and known < 0:  # from the end, as in Python
                at = graph.binary("+", self.shape(owner)[axis], at)
            places.append(at)
        guard = -1 if self.guard is None else self.guard
        line = getattr(node, "lineno", 0)
        return graph.add(
            "load", owner.kind, (guard, *places), (owner.name, ast.unparse(node), line)
        )

    def call(self, node: ast.Call, names: dict[str, Any]) -> Any:
        if node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise self.unreadable(node, f"`{ast.unparse(node)}`, called with keywords")
        function = self.value(node.func, names)
        values = [self.value(arg, names) for arg in node.args]
        if function is len and len(values) == 1 and isinstance(values[0], ArrayParameter):
            return self.shape(values[0])[0]
        build = meaning(function)
        if build is not None:
            if not all(isinstance(value, int) for value in values):
                raise self.unreadable(node, f"`{ast.unparse(node)}`")
            try:
                return build(self.graph, *values)
            except TypeError:
                raise self.refused(
                    node, f"calls `{ast.unparse(node)}` with another number of arguments"
                ) from None
        python = getattr(function, "py_func", function)
        if not inspect.isfunction(python) or python in self.callers:
            raise self.unreadable(node, f"the call `{ast.unparse(node)}`")
        try:
            bound = inspect.signature(python).bind(*values)
        except TypeError as error:
            raise self.refused(node, f"calls `{ast.unparse(node)}`: {error}") from None
        inner = dict(bound.arguments)
        bound.apply_defaults()
        defaults = {k: self.wrapped(v) for k, v in bound.arguments.items() if k not in inner}
        inner |= defaults
        return _Reader(python, self.graph, self.callers, self.guard).run(inner)
