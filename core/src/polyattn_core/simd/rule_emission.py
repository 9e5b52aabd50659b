"""From the graph of a score rule to the source of its pass over a tile.

What depends on the head, on the key, on the query, or on both is computed where it changes, so that
the innermost loop runs over the lanes of a tile with as little as can be. Numbers of the queries
wait for it in a few rows of lanes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .rule_arrangement import KEY, PAIR, QUERY, TILE, Levels, arranged
from .rule_functions import EVALUATED, LIBRARIES
from .rule_graph import BOOL, FLOAT, INT, Graph

FARTHEST = 1 << 29
"""Positions that rules see are below this, so that their differences are numbers of 32 bits."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a parameter is: a floating number, a whole number, or an array of either or booleans."""

    kind: str = FLOAT
    ndim: int = 0

    def slots(self, dtype: str) -> int:
        """Numbers that it takes among the parameters: arrays pass address and shape."""
        if self.ndim == 0 and self.kind == FLOAT:
            return 1
        return (1 + self.ndim) * (2 if dtype == "float32" else 1)


def places(kinds: Mapping[str, Kind], dtype: str) -> dict[str, int]:
    """The first slot of each parameter."""
    found, at = {}, 0
    for name, kind in kinds.items():
        found[name] = at
        at += kind.slots(dtype)
    return found


@intrinsic  # type: ignore[untyped-decorator]
def integer_at(typing, numbers, at):  # type: ignore[no-untyped-def]
    """The 64-bit integer whose bytes lie at numbers[at]."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        size = 4 if signature.args[0].dtype is types.float32 else 8
        place = builder.gep(args[0], [args[1]])
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=size)

    return types.int64(numbers, types.int64), emit


def _loader(kind: Any, bits: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def load(typing, address, at):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            start = builder.inttoptr(args[0], bits.as_pointer())
            return builder.load(builder.gep(start, [args[1]]))

        return kind(types.int64, types.int64), emit

    return load


_LOADERS = {
    "float32": _loader(types.float32, ir.FloatType()),
    "float64": _loader(types.float64, ir.DoubleType()),
    INT: _loader(types.int64, ir.IntType(64)),
    BOOL: _loader(types.uint8, ir.IntType(8)),
}


@intrinsic  # type: ignore[untyped-decorator]
def add_at(typing, address, at, number):  # type: ignore[no-untyped-def]
    """Add to the element of an array given by its address."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        start = builder.inttoptr(args[0], args[2].type.as_pointer())
        place = builder.gep(start, [args[1]])
        builder.store(builder.fadd(builder.load(place), args[2]), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, number), emit


def _from_integer(kind: Any, to: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def small(typing, whole):  # type: ignore[no-untyped-def]
        """A floating number from a whole one of at most 32 bits, which processors do in vectors."""

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.sitofp(builder.trunc(args[0], ir.IntType(32)), to)

        return kind(types.int64), emit

    return small


_SMALL = {
    "float32": _from_integer(types.float32, ir.FloatType()),
    "float64": _from_integer(types.float64, ir.DoubleType()),
}


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def row_of_lanes(typing, like, size):  # type: ignore[no-untyped-def]
    """Room for `size` numbers on the stack, of the type of `like`."""
    if not isinstance(size, types.IntegerLiteral):
        return None
    count = size.literal_value

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        room = cgutils.alloca_once(builder, ir.ArrayType(args[0].type, count))
        room.align = 64
        return builder.bitcast(room, args[0].type.as_pointer())

    return types.CPointer(like)(like, size), emit


def scope(dtype: str, wide: int) -> dict[str, Any]:
    """The names that emitted source uses."""
    number = np.dtype(dtype).type
    names: dict[str, Any] = {
        "FLOAT": number, "ZERO": number(0), "ONE": number(1), "INF": number(np.inf),
        "NAN": number(np.nan), "WIDE": wide, "np": np, "math": math, "integer_at": integer_at,
        "add_at": add_at, "row_of_lanes": row_of_lanes, "small": _SMALL[dtype],
        "load_float": _LOADERS[dtype], "load_int": _LOADERS[INT], "load_bool": _LOADERS[BOOL],
        "__name__": __name__,
    }  # fmt: skip
    for library in LIBRARIES:
        names |= {name: getattr(library, name) for name in EVALUATED if hasattr(library, name)}
    return names


class Emitter:
    """Source of the values of some nodes."""

    def __init__(
        self, graph: Graph, roots: Sequence[int], kinds: Mapping[str, Kind], dtype: str,
        proven: bool, wide: int,
    ) -> None:  # fmt: skip
        self.graph, self.kinds, self.proven, self.dtype = graph, kinds, proven, dtype
        self.slots, self.words = places(kinds, dtype), 2 if dtype == "float32" else 1
        self.wide, self.levels = wide, Levels(graph, kinds)
        self.lines: tuple[list[str], ...] = ([], [], [], [])
        self.bounds: dict[int, tuple[float, float]] = {}
        self.start: dict[str, str] = {}
        self._instead = arranged(graph, roots, kinds)
        self.order = graph.needed(tuple(self._instead[root] for root in roots))
        for at in self.order:
            self._place(at)

    def node(self, at: int) -> int:
        """The node that is computed instead of one of the roots."""
        return self._instead[at]

    def name(self, at: int) -> str:
        """The name under which the value of a node is."""
        return f"v{at}"

    def row(self, name: str) -> str:
        """The name of a row of lanes, for what is of the queries."""
        return self._at_start(name, f"row_of_lanes(ZERO, {self.wide})")

    def _place(self, at: int) -> None:
        node, level, name = self.graph.nodes[at], self.levels[at], self.name(at)
        self.bounds[at] = self._bounds(at)
        line = f"{name} = {self._expression(at)}"
        self.lines[level].append(line)
        if level != QUERY:
            return
        if node.kind == FLOAT and node.op != "input":
            waiting = f"{self.row(f'row_{name}')}[j]"
            self.lines[QUERY].append(f"{waiting} = {name}")
            self.lines[PAIR].append(f"{name} = {waiting}")
        else:
            self.lines[PAIR].append(line)

    def _bounds(self, at: int) -> tuple[float, float]:
        """Between which a whole number lies, as far as positions tell."""
        node = self.graph.nodes[at]
        inner = [self.bounds[arg] for arg in node.args if arg >= 0]
        if node.op == "constant" and node.kind == INT:
            return node.value, node.value
        if node.op == "input" and node.value in ("batch", "head", "query", "key"):
            return 0, FARTHEST
        if node.op in "+-*" and node.kind == INT:
            (a, b), (c, d) = inner
            ends = {
                "+": (a + c, b + d),
                "-": (a - d, b - c),
                "*": tuple(f(x * y for x in (a, b) for y in (c, d)) for f in (min, max)),
            }[node.op]  # fmt: skip
            return ends  # type: ignore[return-value]
        if node.op == "neg" and node.kind == INT:
            return -inner[0][1], -inner[0][0]
        if node.op == "abs" and node.kind == INT:
            return 0, max(map(abs, inner[0]))
        return -math.inf, math.inf

    def _expression(self, at: int) -> str:
        node = self.graph.nodes[at]
        a = [self.name(arg) if arg >= 0 else "" for arg in node.args]
        match node.op:
            case "input":
                return self._input(node.value)
            case "constant":
                return _constant(node.value)
            case "size":
                return self._size(*node.value)
            case "load":
                return self._load(at)
            case "cast":
                return self._cast(at)
            case "select":
                return f"({a[1]} if {a[0]} else {a[2]})"
            case "neg":
                return f"-{a[0]}"
            case "not":
                return f"(not {a[0]})"
            case "and":
                return f"({a[0]} & {a[1]})"
            case "abs":
                return f"abs({a[0]})"
            case "min" | "max":
                return self._extreme(at)
            case "sqrt":
                return f"math.sqrt({a[0]})"
            case "arctan2":
                return f"math.atan2({a[0]}, {a[1]})"
            case "floor" | "ceil" | "rint" | "trunc":
                return f"np.{node.op}({a[0]})"
        if len(a) == 2:
            return f"({a[0]} {node.op} {a[1]})"
        return f"{node.op}({a[0]})"

    def _extreme(self, at: int) -> str:
        """The lesser or the greater of two; NaN stays NaN, on whichever side it is."""
        node = self.graph.nodes[at]
        (x, y), sign = node.args, ">" if node.op == "min" else "<"
        if self.graph.known(x) is not None:
            x, y = y, x
        known, a, b = self.graph.known(y), self.name(x), self.name(y)
        if node.kind != FLOAT or (known is not None and not math.isnan(known)):
            return f"({b} if {a} {sign} {b} else {a})"
        return f"({b} if ({a} {sign} {b}) | ({b} != {b}) else {a})"

    def _input(self, name: str) -> str:
        known = {
            "batch": "meta[0]", "head": "meta[1]", "query": "(first_query + j)",
            "key": "(first_key + k)", "row": "row[j]", "column": "column[k]",
        }  # fmt: skip
        if name in known:
            return known[name]
        if name not in self.kinds:
            return "scores[at]"
        slot = self.slots[name]
        return f"parameters[{slot}]" if self.kinds[name].kind == FLOAT else (
            f"integer_at(parameters, {slot})"
        )  # fmt: skip

    def _cast(self, at: int) -> str:
        node = self.graph.nodes[at]
        (inner,) = node.args
        name, kind = self.name(inner), self.graph.kind(inner)
        if kind == BOOL:
            return f"(ONE if {name} else ZERO)" if node.kind == FLOAT else f"(1 if {name} else 0)"
        if node.kind == BOOL:
            return f"({name} != 0)"
        if node.kind == INT:
            return f"int({name})"
        low, high = self.bounds[inner]
        near = low > -(1 << 31) and high < 1 << 31
        return f"small({name})" if near else f"FLOAT({name})"

    def _size(self, name: str, axis: int) -> str:
        """The name of the size of an axis of an array."""
        slot = self.slots[name] + (1 + axis) * self.words
        return self._at_start(f"size_{name}_{axis}", f"integer_at(parameters, {slot})")

    def _at_start(self, name: str, value: str) -> str:
        """A name given before everything else: what is loaded inside loops is loaded each time."""
        self.start.setdefault(name, value)
        return name

    def index(self, at: int) -> str:
        """The place in its array that a load reads."""
        node = self.graph.nodes[at]
        (name, _, _), (guard, *indices) = node.value, node.args
        whole = ""
        for axis, index in enumerate(indices):
            size = self._size(name, axis)
            own = self.name(index)
            if not self.proven:
                own = f"min(max({own}, 0), {size} - 1)"
            elif guard >= 0:
                own = f"({own} if {self.name(guard)} else 0)"
            whole = f"({whole}) * {size} + {own}" if whole else own
        return whole

    def _load(self, at: int) -> str:
        node = self.graph.nodes[at]
        name = node.value[0]
        array = self._at_start(f"array_{name}", f"integer_at(parameters, {self.slots[name]})")
        text = f"load_{node.kind}({array}, {self.index(at)})"
        return f"({text} != 0)" if node.kind == BOOL else text

    def head(self) -> list[str]:
        """The first lines of the pass."""
        # Lanes without a query must not read where it would be.
        lanes = "WIDE"
        if any(self.graph.nodes[at].op == "load" and self.levels[at] & QUERY for at in self.order):
            count = sum(kind.slots(self.dtype) for kind in self.kinds.values())
            lanes = f"min(WIDE, integer_at(parameters, {count}) - first_query)"
        return [
            "    first_query = meta[2]",
            "    first_key = meta[3]",
            f"    lanes = {lanes}",
            *[f"    {name} = {value}" for name, value in self.start.items()],
            *_indented(self.lines[TILE], 1),
            *self.for_queries(self.lines[QUERY]),
        ]

    def for_queries(self, lines: Sequence[str]) -> list[str]:
        """A loop over the lanes alone; no loop where it would be empty."""
        return ["    for j in range(lanes):", *_indented(lines, 2)] if lines else []


def _constant(value: Any) -> str:
    if isinstance(value, bool | int):
        return repr(value)
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INF" if value > 0 else "-INF"
    return f"FLOAT({value!r})"


def _indented(lines: Sequence[str], depth: int) -> list[str]:
    return ["    " * depth + line for line in lines]


def forward_source(emitter: Emitter, result: int) -> str:
    """Source of the pass that turns scores into those behind the rule."""
    lines = [
        "def tile_pass(scores, unused, meta, row, column, parameters):",
        *emitter.head(),
        "    for k in range(meta[4]):",
        *_indented(emitter.lines[KEY], 2),
        "        for j in range(lanes):",
        "            at = k * WIDE + j",
        *_indented(emitter.lines[PAIR], 3),
        f"            scores[at] = {emitter.name(emitter.node(result))}",
    ]
    return "\n".join(lines)


def backward_source(
    emitter: Emitter, partials: Mapping[str, int], loads: Mapping[int, int], score: str
) -> str:
    """Source of the pass that takes gradients from behind the rule to before it.

    `partials` are the derivatives by the first argument `score`, by `row`, `column` and floating
    parameters, as far as the rule has them; `loads` those by elements of arrays.
    """
    # Where the incoming gradient is 0 (masked pairs among them) nothing is added, so that a
    # derivative that is not finite behind a mask reaches nobody.
    sums: list[str] = []
    before: dict[int, list[str]] = {KEY: [], QUERY: []}
    after: dict[int, list[str]] = {TILE: [], KEY: [], QUERY: []}
    pairs: list[str] = []

    products: dict[str, str] = {}

    def times_incoming(partial: int) -> str:
        # Taken of every pair and chosen afterwards: a branch around it would be one around all
        # that it depends on, and no vectors.
        factor = emitter.name(emitter.node(partial))
        product = products.setdefault(factor, f"product{len(products)}")
        return f"{product} if live else ZERO"

    for name, partial in partials.items():
        value = times_incoming(partial)
        if name == score:
            pairs.append(f"gradient[at] = {value}")
        elif name == "row":
            pairs.append(f"d_row[j] += {value}")
        elif name == "column":
            before[KEY].append("of_column = ZERO")
            pairs.append(f"of_column += {value}")
            after[KEY].append("d_column[k] += of_column")
        else:
            sums.append(f"s_{name} = ZERO")
            pairs.append(f"s_{name} += {value}")
            after[TILE].append(f"d_parameters[{emitter.slots[name]}] += s_{name}")
    pointers: dict[str, str] = {}
    for load, partial in loads.items():
        at = emitter.node(load)
        name = emitter.graph.nodes[at].value[0]
        array = f"d_array_{name}"
        pointers[array] = f"integer_at(d_parameters, {emitter.slots[name]})"
        level, place, value = emitter.levels[at], emitter.index(at), times_incoming(partial)
        if level == PAIR:
            pairs.append(f"add_at({array}, {place}, {value})")
            continue
        # Elements that many pairs read are added to once, at the end.
        own = f"{emitter.row(f'row_l{at}')}[j]" if level == QUERY else f"l{at}"
        pairs.append(f"{own} += {value}")
        (sums if level == TILE else before[level]).append(f"{own} = ZERO")
        after[level].append(f"add_at({array}, {place}, {own})")
    after_queries = [*emitter.lines[QUERY], *after[QUERY]] if after[QUERY] else []
    lines = [
        "def tile_pass(scores, gradient, meta, row, column, parameters, d_row, d_column, d_parameters):",  # noqa: E501
        *emitter.head(),
        *[f"    {name} = {value}" for name, value in pointers.items()],
        *_indented(sums, 1),
        *emitter.for_queries(before[QUERY]),
        "    for k in range(meta[4]):",
        *_indented(emitter.lines[KEY], 2),
        *_indented(before[KEY], 2),
        "        for j in range(lanes):",
        "            at = k * WIDE + j",
        *_indented(emitter.lines[PAIR], 3),
        "            incoming = gradient[at]",
        "            live = incoming != ZERO",
        *[f"            {name} = {factor} * incoming" for factor, name in products.items()],
        *_indented(pairs, 3),
        *_indented(after[KEY], 2),
        *emitter.for_queries(after_queries),
        *_indented(after[TILE], 1),
    ]
    return "\n".join(lines)
