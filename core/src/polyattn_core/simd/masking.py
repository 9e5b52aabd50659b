"""Mask programs in kernels: which keys matter, is a tile empty or full, which pairs are visible.

A program (see :mod:`polyattn_core.masks.program`) is encoded as one row of integers a step, with
all its tables in two flat arrays. Kernels have it interpreted a tile at a time, so every
combination of masks runs in the same compiled kernel, at a cost that does not grow with the number
of pairs in tiles that are empty or full. The interpreter is compiled once, on its own, and called
through its address: it is no part of each kernel's compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import carray
from numba.core import types
from numba.extending import intrinsic

from .jit import callback, inline
from .transpose import BLOCK, visible_block
from .vector import I64, pointer

BAND, BELOW, EQUAL, KEYS, QUERIES, MODULO, BLOCKS, DENSE, PREDICATE, AND, OR, NOT = range(12)
_CODES = {
    name: code
    for code, name in enumerate(
        "band below equal keys queries modulo blocks dense predicate and or not".split()
    )
}
EMPTY, PARTIAL, FULL = 0, 1, 2
_WIDTH = 8  # code, two integers, offset of the table, strides along batch, head, row, column

NO_STEPS = np.zeros((0, _WIDTH), np.int64)
NO_INTEGERS = np.zeros(1, np.int64)
NO_BYTES = np.zeros(1, np.uint8)


class Step(Protocol):
    """A primitive of a mask program."""

    @property
    def kind(self) -> str: ...
    @property
    def integers(self) -> tuple[int, ...]: ...
    @property
    def table(self) -> npt.NDArray[Any] | None: ...
    @property
    def keep(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class EncodedMask:
    """A mask program as kernels read it."""

    steps: npt.NDArray[np.int64]
    integers: npt.NDArray[np.int64]
    octets: npt.NDArray[np.uint8]
    depth: int
    keep: tuple[Any, ...] = ()


NO_MASK = EncodedMask(NO_STEPS, NO_INTEGERS, NO_BYTES, 0)


def encode(program: Iterable[Step]) -> EncodedMask:
    """Encode a program. A single table is used where it lies; several are put together."""
    program = tuple(program)
    steps = np.zeros((len(program), _WIDTH), np.int64)
    tables: dict[Any, list[npt.NDArray[Any]]] = {np.int64: [], np.uint8: []}
    used = {np.int64: 0, np.uint8: 0}
    depth = height = 0
    for row, step in zip(steps, program, strict=True):
        row[0] = _CODES[step.kind]
        row[1 : 1 + len(step.integers)] = step.integers
        if step.kind in ("and", "or", "not"):
            height += 1 - step.integers[0]
        else:
            height += 1
        depth = max(depth, height)
        if step.table is None:
            continue
        table = np.ascontiguousarray(step.table)
        kind = np.uint8 if table.dtype == np.uint8 else np.int64
        row[3] = used[kind]
        strides = [
            0 if size == 1 else stride // table.itemsize
            for size, stride in zip(table.shape, table.strides, strict=True)
        ]
        if table.ndim == 4:
            row[4:8] = strides
        elif strides:
            row[4] = strides[0]
            if step.kind == "equal":
                # The key's half of the row lies behind the queries' half.
                row[7] = 1
        tables[kind].append(table.reshape(-1))
        used[kind] += table.size
    return EncodedMask(
        steps,
        _together(tables[np.int64], NO_INTEGERS),
        _together(tables[np.uint8], NO_BYTES),
        depth,
        tuple(step.keep for step in program if step.keep is not None),
    )


def _together(tables: list[npt.NDArray[Any]], nothing: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not tables:
        return nothing
    return tables[0] if len(tables) == 1 else np.concatenate(tables)


@intrinsic  # type: ignore[untyped-decorator]
def _call_predicate(typing, address, batch, head, query, queries, key, keys, out, at, width):  # type: ignore[no-untyped-def]
    """Call a compiled predicate, which fills `out` for a tile."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        place = pointer(context, builder, signature.args[7], args[7])
        place = builder.gep(place, [args[8]])
        octet = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [I64] * 7 + [octet])
        function = builder.inttoptr(args[0], function_type.as_pointer())
        passed = [*args[1:7], args[9], builder.bitcast(place, octet)]
        builder.call(function, passed)
        return context.get_dummy_value()

    integer = types.int64
    arguments = (integer,) * 7 + (out, integer, integer)
    return types.void(*arguments), emit


@inline
def key_range(steps, integers, batch, first, count, keys, low, high):  # type: ignore[no-untyped-def]
    """Keys outside the returned range are hidden from queries first … first + count − 1.

    `low` and `high` are a stack as deep as the program.
    """
    top = -1
    for i in range(steps.shape[0]):
        code = steps[i, 0]
        if code == AND or code == OR:
            operands = steps[i, 1]
            base = top - operands + 1
            for j in range(base + 1, top + 1):
                if code == AND:
                    low[base] = max(low[base], low[j])
                    high[base] = min(high[base], high[j])
                else:
                    low[base] = min(low[base], low[j])
                    high[base] = max(high[base], high[j])
            top = base
        elif code == NOT:
            low[top] = 0
            high[top] = keys
        else:
            top += 1
            low[top] = 0
            high[top] = keys
            if code == BAND:
                low[top] = max(0, first + steps[i, 1])
                high[top] = min(keys, first + count + steps[i, 2])
            elif code == BELOW:
                high[top] = min(keys, integers[steps[i, 3] + batch * steps[i, 4]])
    if top < 0:
        return 0, keys
    return low[0], max(low[0], high[0])


@inline
def _class_of_bytes(octets, start, row_step, column_step, rows, columns):  # type: ignore[no-untyped-def]
    visible = 0
    for r in range(rows):
        at = start + r * row_step
        if column_step == 1:  # said, so that the sum is of vectors
            for c in range(columns):
                visible += 1 if octets[at + c] != 0 else 0
        else:
            for c in range(columns):
                visible += 1 if octets[at + c * column_step] != 0 else 0
    if visible == 0:
        return EMPTY
    return FULL if visible == rows * columns else PARTIAL


@inline
def _class_of_ids(integers, base, first, count, queries, key, width):  # type: ignore[no-untyped-def]
    low = high = integers[base + first]
    for j in range(1, count):
        low = min(low, integers[base + first + j])
        high = max(high, integers[base + first + j])
    key_low = key_high = integers[base + queries + key]
    for j in range(1, width):
        key_low = min(key_low, integers[base + queries + key + j])
        key_high = max(key_high, integers[base + queries + key + j])
    if low > key_high or key_low > high:
        return EMPTY
    return FULL if low == high == key_low == key_high else PARTIAL


@inline
def classify(steps, integers, octets, batch, head, first, count, queries, key, width, stack):  # type: ignore[no-untyped-def]
    """Is the tile of `count` queries × `width` keys empty, partly or fully visible?

    PARTIAL may also be the answer where nothing cheap is known.
    """
    top = -1
    for i in range(steps.shape[0]):
        code = steps[i, 0]
        if code == AND or code == OR:
            base = top - steps[i, 1] + 1
            for j in range(base + 1, top + 1):
                if code == AND:
                    stack[base] = min(stack[base], stack[j])
                else:
                    stack[base] = max(stack[base], stack[j])
            top = base
            continue
        if code == NOT:
            stack[top] = FULL - stack[top]
            continue
        top += 1
        found = PARTIAL
        start = steps[i, 3] + batch * steps[i, 4] + head * steps[i, 5]
        if code == BAND:
            low, high = steps[i, 1], steps[i, 2]
            if key + width - 1 < first + low or key > first + count - 1 + high:
                found = EMPTY
            elif key >= first + count - 1 + low and key + width - 1 <= first + high:
                found = FULL
        elif code == BELOW:
            length = integers[start]
            if key >= length:
                found = EMPTY
            elif key + width <= length:
                found = FULL
        elif code == EQUAL:
            found = _class_of_ids(integers, start, first, count, queries, key, width)
        elif code == KEYS:
            found = _class_of_bytes(octets, start + key, 0, 1, 1, width)
        elif code == QUERIES:
            found = _class_of_bytes(octets, start + first, 0, 1, 1, count)
        elif code == MODULO:
            if steps[i, 1] == 1:
                found = FULL
        elif code == BLOCKS:
            row, last_row = first // steps[i, 1], (first + count - 1) // steps[i, 1]
            column, last_column = key // steps[i, 2], (key + width - 1) // steps[i, 2]
            found = _class_of_bytes(
                octets, start + row * steps[i, 6] + column * steps[i, 7],
                steps[i, 6], steps[i, 7], last_row - row + 1, last_column - column + 1,
            )  # fmt: skip
        elif code == DENSE:
            found = _class_of_bytes(
                octets, start + first * steps[i, 6] + key * steps[i, 7],
                steps[i, 6], steps[i, 7], count, width,
            )  # fmt: skip
        stack[top] = found
    return FULL if top < 0 else stack[0]


@inline
def fill(steps, integers, octets, batch, head, first, count, queries, key, width, wide, out):  # type: ignore[no-untyped-def]
    """Write which pairs of a tile are visible to out[: width · wide], as [key, query] bytes.

    `out` holds as many tiles of bytes as the program is deep. Queries beyond `count` are invisible.
    """
    size = width * wide
    top = -1
    for i in range(steps.shape[0]):
        code = steps[i, 0]
        if code == AND or code == OR:
            base = top - steps[i, 1] + 1
            for j in range(base + 1, top + 1):
                if code == AND:
                    for x in range(size):
                        out[base * size + x] &= out[j * size + x]
                else:
                    for x in range(size):
                        out[base * size + x] |= out[j * size + x]
            top = base
            continue
        if code == NOT:
            for x in range(size):
                out[top * size + x] ^= 1
            continue
        top += 1
        tile = top * size
        start = steps[i, 3] + batch * steps[i, 4] + head * steps[i, 5]
        if code == BAND:
            for k in range(width):
                # Query j of the tile sees key k iff lowest ≤ j ≤ highest.
                lowest = np.int32(min(max(key + k - first - steps[i, 2], 0), wide))
                highest = np.int32(min(max(key + k - first - steps[i, 1], -1), wide - 1))
                for j in range(wide):
                    inside = (np.int32(j) >= lowest) & (np.int32(j) <= highest)
                    out[tile + k * wide + j] = np.uint8(inside)
        elif code == BELOW or code == KEYS:
            for k in range(width):
                if code == BELOW:
                    seen = np.uint8(key + k < integers[start])
                else:
                    seen = np.uint8(octets[start + key + k] != 0)
                for j in range(wide):
                    out[tile + k * wide + j] = seen
        elif code == EQUAL:
            for k in range(width):
                own = integers[start + queries + key + k]
                for j in range(count):
                    out[tile + k * wide + j] = np.uint8(integers[start + first + j] == own)
        elif code == QUERIES:
            for k in range(width):
                for j in range(count):
                    out[tile + k * wide + j] = np.uint8(octets[start + first + j] != 0)
        elif code == MODULO:
            for k in range(width):
                for j in range(wide):
                    distance = first + j + steps[i, 2] - key - k
                    out[tile + k * wide + j] = np.uint8(distance % steps[i, 1] == 0)
        elif code == BLOCKS:
            for j in range(count):
                row = start + (first + j) // steps[i, 1] * steps[i, 6]
                for k in range(width):
                    seen = octets[row + (key + k) // steps[i, 2] * steps[i, 7]]
                    out[tile + k * wide + j] = np.uint8(seen != 0)
        elif code == DENSE:
            row_step, key_step = steps[i, 6], steps[i, 7]
            corner = start + first * row_step + key * key_step
            rows, whole = count - count % BLOCK, width - width % BLOCK
            if key_step != 1:
                rows = 0
            for j in range(0, rows, BLOCK):
                for k in range(0, whole, BLOCK):
                    at = corner + j * row_step + k
                    visible_block(octets, at, row_step, out, tile + k * wide + j, wide)
            for k in range(width):
                for j in range(rows if k < whole else 0, count):
                    seen = octets[corner + j * row_step + k * key_step]
                    out[tile + k * wide + j] = np.uint8(seen != 0)
        elif code == PREDICATE:
            _call_predicate(steps[i, 1], batch, head, first, count, key, width, out, tile, wide)
    # At the end, as a `not` would have turned it round.
    for k in range(width):
        for j in range(count, wide):
            out[k * wide + j] = 0


# The place of a tile, as the interpreter is told it.
BATCH, HEAD, FIRST, COUNT, QUERY_COUNT, KEY_COUNT, KEY, WIDTH, WIDE = range(9)
PLACE_SIZE = 9


def _key_range(steps, count, integers, octets, place, stack, seen):  # type: ignore[no-untyped-def]
    low, high = key_range(
        carray(steps, (count, _WIDTH)), integers, place[BATCH], place[FIRST],
        place[COUNT], place[KEY_COUNT], stack, carray(stack, 2 * count)[count:],
    )  # fmt: skip
    stack[0], stack[1] = low, high
    return 0


def _classify(steps, count, integers, octets, place, stack, seen):  # type: ignore[no-untyped-def]
    return classify(
        carray(steps, (count, _WIDTH)), integers, octets, place[BATCH],
        place[HEAD], place[FIRST], place[COUNT], place[QUERY_COUNT], place[KEY], place[WIDTH],
        stack,
    )  # fmt: skip


def _fill(steps, count, integers, octets, place, stack, seen):  # type: ignore[no-untyped-def]
    fill(
        carray(steps, (count, _WIDTH)), integers, octets, place[BATCH],
        place[HEAD], place[FIRST], place[COUNT], place[QUERY_COUNT], place[KEY], place[WIDTH],
        place[WIDE], seen,
    )  # fmt: skip
    return 0


@functools.cache
def interpreter() -> SimpleNamespace:
    """The compiled interpreter: `key_range`, `classify` and `fill`, each with an `.address`."""
    integers, octets = types.CPointer(types.int64), types.CPointer(types.uint8)
    signature = types.int64(integers, types.int64, integers, octets, integers, integers, octets)
    return SimpleNamespace(
        key_range=callback(_key_range, signature, "mask"),
        classify=callback(_classify, signature, "mask"),
        fill=callback(_fill, signature, "mask"),
    )


def _every_key(steps, count, integers, octets, place, stack, seen):  # type: ignore[no-untyped-def]
    stack[0], stack[1] = 0, place[KEY_COUNT]
    return 0


@functools.cache
def every_key() -> Any:
    """A `key_range` that leaves nothing out, so that tiles begin at the same keys in every call."""
    integers, octets = types.CPointer(types.int64), types.CPointer(types.uint8)
    signature = types.int64(integers, types.int64, integers, octets, integers, integers, octets)
    return callback(_every_key, signature, "mask")


@intrinsic  # type: ignore[untyped-decorator]
def interpret(typing, address, steps, integers, octets, place, stack, seen):  # type: ignore[no-untyped-def]
    """Call a function of the interpreter. `stack` holds 2 integers a step of the program."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kinds = signature.args
        count = context.make_array(kinds[1])(context, builder, args[1]).shape
        passed = [
            pointer(context, builder, kinds[1], args[1]), builder.extract_value(count, 0),
            *[pointer(context, builder, kinds[i], args[i]) for i in range(2, 7)],
        ]  # fmt: skip
        function_type = ir.FunctionType(I64, [value.type for value in passed])
        function = builder.inttoptr(args[0], function_type.as_pointer())
        return builder.call(function, passed)

    return types.int64(types.int64, steps, integers, octets, place, stack, seen), emit
