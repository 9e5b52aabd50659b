"""A chain of score rules as kernels read it, and how kernels call them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..errors import KernelError
from .rule_graph import BOOL, FLOAT, INT
from .rules import ScoreRule, Statistic
from .vector import pointer

Array = npt.NDArray[Any]


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
    slots: tuple[dict[str, int], ...] = ()
    """For each rule, where its parameters begin."""
    arrays: dict[int, Array] = field(default_factory=dict)
    """Floating arrays by their slot; these and all others must live as long as kernels run."""
    keep: tuple[Array, ...] = ()


def encode_rules(
    chain: Sequence[tuple[ScoreRule, Sequence[Any]]], heads: int, dtype: str, *, backward: bool,
    shape: tuple[int, int, int, int] | None = None,
) -> EncodedRules:  # fmt: skip
    """Encode rules with the values of their parameters.

    `shape` (batch, heads, queries, keys) is that of the positions that rules with arrays see.

    Raises
    ------
    KernelError
        Where a rule is given another number of parameters than it takes, or one of another shape,
        or reads outside an array.
    """
    table = np.zeros((len(chain), 6), np.int64)
    rows: list[Statistic] = []
    columns: list[Statistic] = []
    values: list[Array] = []
    slots: list[dict[str, int]] = []
    arrays: dict[int, Array] = {}
    keep: list[Array] = []
    for entry, (rule, parameters) in zip(table, chain, strict=True):
        if len(parameters) != len(rule.parameters):
            names = ", ".join(rule.parameters) or "none"
            raise KernelError(
                f"the score rule {rule.name} takes the parameters {names}; "
                f"it was given {len(parameters)} values"
            )
        kinds = rule.kinds(parameters)
        if rule.arrays and shape is None:
            raise KernelError(f"the score rule {rule.name} indexes arrays: say shape=")
        proven = shape is None or rule.proven(parameters, shape)
        entry[4] = len(values)
        slots.append({})
        for (name, kind), value in zip(kinds.items(), parameters, strict=True):
            slots[-1][name] = len(values)
            if name in rule.arrays:
                wanted = {FLOAT: dtype, INT: "int64", BOOL: "bool"}[kind.kind]
                array = np.ascontiguousarray(value, wanted)
                keep.append(array)
                if kind.kind == FLOAT:
                    arrays[len(values)] = array
                values.extend(_words((array.ctypes.data, *array.shape), heads, dtype))
                continue
            array = np.asarray(value, dtype)
            if array.shape not in ((), (1,), (heads,)):
                raise KernelError(
                    f"{name} of the score rule {rule.name} has shape {array.shape}; "
                    f"it is a number, or one for each of the {heads} heads"
                )
            if kind.kind == INT:
                values.extend(_words((int(value),), heads, dtype))
            else:
                values.append(np.broadcast_to(array, (heads,)))
        if rule.arrays and shape is not None:
            values.extend(_words((shape[2],), heads, dtype))
        entry[5] = len(values) - entry[4]
        entry[0] = rule.address(dtype, False, kinds, proven)
        if backward and not rule.obstacle(kinds):
            entry[1] = rule.address(dtype, True, kinds, proven)
        entry[2] = len(rows) if rule.row else -1
        entry[3] = len(columns) if rule.column else -1
        rows.extend([rule.row] if rule.row else [])
        columns.extend([rule.column] if rule.column else [])
    stacked = np.stack(values, axis=1) if values else np.zeros((heads, 1), dtype)
    return EncodedRules(
        table, np.ascontiguousarray(stacked), tuple(rows), tuple(columns), tuple(slots), arrays,
        tuple(keep),
    )  # fmt: skip


def _words(integers: Sequence[int], heads: int, dtype: str) -> list[Array]:
    """Whole numbers of 64 bits as the bytes of floating ones, the same for each head."""
    numbers = np.array(integers, np.int64).view(dtype)
    return [np.broadcast_to(number, (heads,)) for number in numbers]


def array_gradients(encoded: EncodedRules, d_parameters: Array, rooms: int) -> dict[int, Array]:
    """Zeros for the gradients of arrays, by slot: (rooms, …); writes their addresses for kernels.

    `d_parameters` (units, heads, slots) is what the kernel is given. Units have a room each, or all
    the same one.
    """
    found = {}
    for slot, array in encoded.arrays.items():
        room = found[slot] = np.zeros((rooms, *array.shape), array.dtype)
        for unit in range(len(d_parameters)):
            address = room[unit % rooms].ctypes.data
            words = np.array([address], np.int64).view(array.dtype)
            d_parameters[unit, :, slot : slot + len(words)] = words
    return found


def _emit_call(builder: Any, address: Any, arguments: list[Any]) -> None:
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
