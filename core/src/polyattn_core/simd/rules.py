"""Score rules: small scalar functions compiled into passes over a tile.

A rule maps the raw product of a query and a key, and whatever else its arguments name, to a score:

>>> from polyattn_core.simd.rules import score_rule, squared_norm
>>> import numpy as np
>>> TWO = np.float32(2)
>>> @score_rule(row=squared_norm, column=squared_norm)
... def negative_distance(dot, row, column, sharpness):
...     return -sharpness * (row + column - TWO * dot)
>>> @negative_distance.derivative
... def negative_distance_derivative(dot, row, column, sharpness):
...     return (TWO * sharpness, -sharpness, -sharpness, -(row + column - TWO * dot))

The first argument is the score so far. `row` and `column` are statistics of the query and the key;
`batch`, `head`, `query`, `key` (or `b`, `h`, `i`, `j`) are positions; every other name is a
parameter, one number a head. A derivative returns the partial derivatives by the first argument,
by `row` and `column` where the rule has them, and by each parameter, in that order.

A rule is compiled on its own, in a fraction of a second, to code that kernels call once a tile, so
kernels themselves are never compiled anew. Write constants as ``np.float32(…)``: a bare ``2.0`` is
a float64 and halves the speed in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types
from numba.core.errors import NumbaError
from numba.extending import intrinsic

from ..errors import KernelError
from . import target
from .content import digest
from .jit import OPTIONS, callback
from .vector import pointer

Array = npt.NDArray[Any]

POSITIONS = {"batch": 0, "b": 0, "head": 1, "h": 1, "query": 2, "i": 2, "key": 3, "j": 3}


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
        self._derivative: Callable[..., Any] | None = None
        self._compiled: dict[tuple[str, bool], Any] = {}

    def derivative(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: gives the rule its partial derivatives."""
        python = getattr(function, "py_func", function)
        names = tuple(inspect.signature(python).parameters)
        if names != self.arguments:
            raise KernelError(
                f"the derivative of {self.name} takes {names}; it must take {self.arguments}"
            )
        self._derivative = python
        self._compiled.pop(("float32", True), None)
        self._compiled.pop(("float64", True), None)
        return function

    @property
    def differentiable(self) -> bool:
        """Does the rule have a derivative?"""
        return self._derivative is not None

    def address(self, dtype: str, backward: bool) -> int:
        """Address of the compiled pass over a tile.

        Raises
        ------
        KernelError
            Where Numba cannot compile the rule, with its place in the source and Numba's reason.
        """
        found = self._compiled.get((dtype, backward))
        if found is None:
            # Of two threads the first one's is kept: its address may be in use already.
            found = self._compiled.setdefault((dtype, backward), self._compile(dtype, backward))
        return int(found.address)

    def _compile(self, dtype: str, backward: bool) -> Any:
        function = self._derivative if backward else self.function
        if function is None:
            raise KernelError(f"the score rule {self.name} has no derivative")
        number = types.float32 if dtype == "float32" else types.float64
        numbers, integers = types.CPointer(number), types.CPointer(types.int64)
        wide = target.tile(dtype).queries
        scope: dict[str, Any] = {
            "rule": numba.njit(**OPTIONS)(function),
            "WIDE": wide,
            "ZERO": np.dtype(dtype).type(0),
            "__name__": __name__,
        }
        exec(self._source(backward), scope)
        passed = (numbers, numbers, integers, *[numbers] * (6 if backward else 3))
        # What the arguments mean is in their names, which are no part of the code.
        tag = f"{self.name}({', '.join(self.arguments)}) {digest(function)} {dtype} {wide}"
        try:
            return callback(scope["tile_pass"], types.void(*passed), tag)
        except NumbaError as error:
            code = function.__code__
            raise KernelError(
                f"the score rule {self.name} ({code.co_filename}:{code.co_firstlineno}) cannot be "
                f"compiled: {error}"
            ) from error

    def _source(self, backward: bool) -> str:
        words = {"row": "row[j]", "column": "column_value"}
        positions = {
            "batch": "meta[0]",
            "head": "meta[1]",
            "query": "(meta[2] + j)",
            "key": "(meta[3] + k)",
        }
        by_index = list(positions.values())
        taken = []
        for name in self.arguments[1:]:
            if name in words:
                taken.append(words[name])
            elif name in POSITIONS:
                taken.append(by_index[POSITIONS[name]])
            else:
                taken.append(f"p{self.parameters.index(name)}")
        call = f"rule({', '.join(['scores[at]', *taken])})"
        unpack = [f"    p{i} = parameters[{i}]" for i in range(len(self.parameters))]
        column = ["        column_value = column[k]"] if self.column else []
        if not backward:
            lines = [
                "def tile_pass(scores, unused, meta, row, column, parameters):",
                *unpack,
                "    for k in range(meta[4]):",
                *column,
                "        for j in range(WIDE):",
                "            at = k * WIDE + j",
                f"            scores[at] = {call}",
            ]
            return "\n".join(lines)
        # Where the incoming gradient is 0 (masked pairs among them) nothing is added, so that a
        # derivative that is not finite behind a mask reaches nobody.
        partials = ["by_score"]
        rows, columns, sums, stores = [], [], [], []
        if self.row:
            partials.append("by_row")
            rows.append("            d_row[j] += by_row * incoming if live else ZERO")
        if self.column:
            partials.append("by_column")
            columns.append("            of_column += by_column * incoming if live else ZERO")
        for i in range(len(self.parameters)):
            partials.append(f"by_p{i}")
            sums.append(f"            s{i} += by_p{i} * incoming if live else ZERO")
            stores.append(f"    d_parameters[{i}] += s{i}")
        lines = [
            "def tile_pass(scores, gradient, meta, row, column, parameters, d_row, d_column, d_parameters):",  # noqa: E501
            *unpack,
            *[f"    s{i} = ZERO" for i in range(len(self.parameters))],
            "    for k in range(meta[4]):",
            *column,
            "        of_column = ZERO",
            "        for j in range(WIDE):",
            "            at = k * WIDE + j",
            "            incoming = gradient[at]",
            "            live = incoming != ZERO",
            # Taken apart, so that another number of partial derivatives does not compile.
            f"            {', '.join(partials)}, = {call}",
            "            gradient[at] = by_score * incoming if live else ZERO",
            *rows,
            *columns,
            *sums,
            *(["        d_column[k] += of_column"] if self.column else []),
            *stores,
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<score rule {self.name}({', '.join(self.arguments)})>"


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


@dataclass(frozen=True, slots=True)
class EncodedRules:
    """A chain of rules as kernels read it.

    A row of `table` is: forward address, backward address, index of the row statistic, of the
    column statistic (−1 for none), offset of the parameters, their number.
    """

    table: npt.NDArray[np.int64]
    parameters: Array
    row_statistics: tuple[Statistic, ...]
    column_statistics: tuple[Statistic, ...]


def encode_rules(
    chain: Sequence[tuple[ScoreRule, Sequence[Any]]], heads: int, dtype: str, *, backward: bool
) -> EncodedRules:
    """Encode rules with the values of their parameters (a number, or one a head).

    Raises
    ------
    KernelError
        Where a rule is given another number of parameters than it takes, or one of another shape.
    """
    table = np.zeros((len(chain), 6), np.int64)
    rows: list[Statistic] = []
    columns: list[Statistic] = []
    values: list[Array] = []
    for entry, (rule, parameters) in zip(table, chain, strict=True):
        entry[0] = rule.address(dtype, backward=False)
        if backward and rule.differentiable:
            entry[1] = rule.address(dtype, backward=True)
        entry[2] = len(rows) if rule.row else -1
        entry[3] = len(columns) if rule.column else -1
        rows.extend([rule.row] if rule.row else [])
        columns.extend([rule.column] if rule.column else [])
        entry[4], entry[5] = len(values), len(rule.parameters)
        if len(parameters) != len(rule.parameters):
            names = ", ".join(rule.parameters) or "none"
            raise KernelError(
                f"the score rule {rule.name} takes the parameters {names}; "
                f"it was given {len(parameters)} values"
            )
        for name, value in zip(rule.parameters, parameters, strict=True):
            array = np.asarray(value, dtype)
            if array.shape not in ((), (1,), (heads,)):
                raise KernelError(
                    f"{name} of the score rule {rule.name} has shape {array.shape}; "
                    f"it is a number, or one for each of the {heads} heads"
                )
            values.append(np.broadcast_to(array, (heads,)))
    stacked = np.stack(values, axis=1) if values else np.zeros((heads, 1), dtype)
    return EncodedRules(table, np.ascontiguousarray(stacked), tuple(rows), tuple(columns))


def _emit_call(builder: Any, address: Any, arguments: list[Any]) -> None:
    from llvmlite import ir

    function_type = ir.FunctionType(ir.VoidType(), [value.type for value in arguments])
    function = builder.inttoptr(address, function_type.as_pointer())
    builder.call(function, arguments)


@intrinsic  # type: ignore[untyped-decorator]
def call_forward(typing, address, scratch, scores, meta, row, columns, column, parameters, offset):  # type: ignore[no-untyped-def]
    """Run a rule's pass over the scores at scratch[scores]."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kinds = signature.args
        s = pointer(context, builder, kinds[1], args[1])
        m = pointer(context, builder, kinds[3], args[3])
        c = pointer(context, builder, kinds[5], args[5])
        p = pointer(context, builder, kinds[7], args[7])
        at = builder.gep(s, [args[2]])
        _emit_call(
            builder, args[0],
            [
                at, at, m, builder.gep(s, [args[4]]), builder.gep(c, [args[6]]),
                builder.gep(p, [args[8]]),
            ],
        )  # fmt: skip
        return context.get_dummy_value()

    integer = types.int64
    return types.void(
        integer, scratch, integer, meta, integer, columns, integer, parameters, integer
    ), emit


@intrinsic  # type: ignore[untyped-decorator]
def call_backward(  # type: ignore[no-untyped-def]
    typing, address, scratch, scores, gradient, meta, row, columns, column, parameters, offset,
    d_row, d_columns, d_column, d_parameters, d_offset,
):  # fmt: skip
    """Run a rule's derivative: the gradient at scratch[gradient] goes from after to before it."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kinds = signature.args
        s = pointer(context, builder, kinds[1], args[1])
        m = pointer(context, builder, kinds[4], args[4])
        c = pointer(context, builder, kinds[6], args[6])
        p = pointer(context, builder, kinds[8], args[8])
        dc = pointer(context, builder, kinds[11], args[11])
        dp = pointer(context, builder, kinds[13], args[13])
        _emit_call(
            builder, args[0],
            [
                builder.gep(s, [args[2]]), builder.gep(s, [args[3]]), m, builder.gep(s, [args[5]]),
                builder.gep(c, [args[7]]), builder.gep(p, [args[9]]), builder.gep(s, [args[10]]),
                builder.gep(dc, [args[12]]), builder.gep(dp, [args[14]]),
            ],
        )  # fmt: skip
        return context.get_dummy_value()

    integer = types.int64
    return types.void(
        integer, scratch, integer, integer, meta, integer, columns, integer, parameters, integer,
        integer, d_columns, integer, d_parameters, integer,
    ), emit  # fmt: skip
