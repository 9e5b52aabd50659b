"""Attention over arrays that are larger than one should hold at once: a block at a time.

Leading axes can always be divided: their elements know nothing of each other. Queries can be
divided where each row of the result depends on its own query alone and on no position, or where
all later keys are hidden. In that case a block of queries attends to the keys up to the last one
that it may see: positions are counted from the last query at the last key, so leaving out the keys
behind puts each query where it belongs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.arrays import merge_heads, split_heads

from ._files import Output

Array = npt.NDArray[Any]
Index = tuple[slice, ...]

MEMORY = 64 << 20
"""Bytes of queries and outputs in one block."""
WORK = 1 << 34
"""Multiply-adds in one block: some tenths of a second, so that progress is seen."""

_FEWEST = 64  # queries of one tile: fewer would waste work

_WHOLE = slice(None)
_LEADING: tuple[Any, ...] = (...,)


@dataclass(frozen=True)
class Inputs:
    """Model-level arrays of one call; `mask` and `bias` are (…, heads, queries, keys)."""

    query: Array
    key: Array
    value: Array
    mask: Array | None = None
    bias: Array | None = None
    side: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """How a call is divided into blocks."""

    axes: tuple[int, ...]
    """Sizes of the axes that may be divided: the leading ones, then perhaps the queries."""
    unit: int
    """Queries to one element of these axes."""
    limit: int
    """Queries to one block."""
    queries: bool
    """May the queries be divided?"""
    shortened: bool
    """Does a block see only the keys up to its last query?"""
    reason: str
    """Why queries are not divided; empty where they are."""

    def blocks(self) -> list[Index]:
        """The indices of the blocks."""
        return list(_divide(self.axes, self.unit, self.limit))


def plan(mechanism: Any, inputs: Inputs, statistics: tuple[str, ...], block: int | None) -> Plan:
    """Decide how to divide a call; `block` is the number of queries to aim at, if not by size."""
    query = inputs.query
    if query.ndim == 1:
        return _undivided("there is a single query")
    if inputs.side:
        return _undivided("side inputs belong to the call as a whole")
    lead = _lead(inputs)
    if lead is None:
        return _undivided("shapes do not fit")  # the mechanism will say which
    queries, keys = query.shape[-2], inputs.key.shape[-2]
    shortened, reason = _shortened(mechanism, statistics, queries, keys)
    if block is None:
        width = query.shape[-1] + inputs.value.shape[-1]
        block = max(min(MEMORY // (4 * width), WORK // (keys * width)), _FEWEST)
    if reason:
        return Plan(lead, queries, block, False, False, reason)
    return Plan((*lead, queries), 1, block, True, shortened, "")


def attend(
    mechanism: Any,
    inputs: Inputs,
    chosen: Plan,
    statistics: tuple[str, ...],
    output: Output,
    done: Callable[[int], None] = lambda queries: None,
) -> None:
    """Attend block by block into `output`; `done` is told how many queries each block had."""
    targets: dict[str, Array] = {}
    for index in chosen.blocks():
        part = _part(inputs, index, chosen)
        found = _compute(mechanism, part, statistics)
        for name, array in found.items():
            if name not in targets:
                shape = _whole_shape(name, array.shape, inputs, chosen)
                targets[name] = output.allocate(name, shape, array.dtype)
            _place(name, targets[name], array, index, chosen)
        done(math.prod(found["output"].shape[:-1]))


def _undivided(reason: str) -> Plan:
    return Plan((), 1, 1, False, False, reason)


def _lead(inputs: Inputs) -> tuple[int, ...] | None:
    """The leading axes of the call; None where sizes do not fit each other."""
    arrays = (inputs.query, inputs.key, inputs.value)
    if min(array.ndim for array in arrays) < 2 or 0 in {n for a in arrays for n in a.shape}:
        return None
    queries, keys = inputs.query.shape[-2], inputs.key.shape[-2]
    try:
        lead = np.broadcast_shapes(*(array.shape[:-2] for array in arrays))
        for array in (inputs.mask, inputs.bias):
            if array is not None:
                # The axis of heads is the mechanism's to check.
                full = (*lead, *array.shape[-3:-2], queries, keys)
                if np.broadcast_shapes(array.shape, full) != full:
                    return None
    except ValueError:
        return None
    return lead if inputs.value.shape[-2] == keys else None


def _shortened(
    mechanism: Any, statistics: tuple[str, ...], queries: int, keys: int
) -> tuple[bool, str]:
    """Whether blocks of queries see fewer keys, and why queries cannot be divided, if so."""
    able, config = mechanism.capabilities, mechanism.config
    causal, position = getattr(config, "causal", False), getattr(config, "position", None)
    if not able.partial:
        # A state that merges over keys exists only where rows do not depend on one another.
        return False, "its rows may depend on one another"
    if able.positional:
        return False, "its rule looks at positions"
    if "column_mass" in statistics:
        return False, "column_mass is a sum over all queries"
    if causal and queries > keys:
        return False, "there are more queries than keys"
    if position is not None and not causal:
        return False, f"position={position.kind} looks at distances to all keys"
    return bool(causal), ""


def _divide(axes: tuple[int, ...], unit: int, limit: int) -> Iterator[Index]:
    """Cut axes, the first ones first, until a block has no more than `limit` queries."""
    if not axes or math.prod(axes) * unit <= limit:
        yield (_WHOLE,) * len(axes)
        return
    first, *others = axes
    step = max(limit // (math.prod(others) * unit), 1)
    for start in range(0, first, step):
        here = slice(start, min(start + step, first))
        rest = _divide(tuple(others), unit, limit) if step == 1 else [(_WHOLE,) * len(others)]
        for inner in rest:
            yield (here, *inner)


def _part(inputs: Inputs, index: Index, chosen: Plan) -> Inputs:
    """The inputs of one block; views, nothing is copied."""
    if not chosen.axes:
        return inputs
    lead, rows = (index[:-1], index[-1]) if chosen.queries else (index, _WHOLE)
    columns = _WHOLE
    if chosen.shortened and rows.stop is not None:
        columns = slice(0, inputs.key.shape[-2] - inputs.query.shape[-2] + rows.stop)

    def pairs(array: Array | None) -> Array | None:
        if array is None:
            return None
        trailing = (_WHOLE, rows, columns)[-array.ndim :]
        sizes = array.shape[-len(trailing) :]
        inner = tuple(_WHOLE if n == 1 else at for n, at in zip(sizes, trailing, strict=True))
        return _at(array, lead, 3)[_LEADING + inner]

    return Inputs(
        _at(inputs.query, lead, 2)[..., rows, :],
        _at(inputs.key, lead, 2)[..., columns, :],
        _at(inputs.value, lead, 2)[..., columns, :],
        pairs(inputs.mask),
        pairs(inputs.bias),
        inputs.side,
    )


def _at(array: Array, lead: Index, trailing: int) -> Array:
    """`array` at an index of the leading axes that it is broadcast to."""
    own = max(array.ndim - trailing, 0)
    mine = lead[len(lead) - own :] if own else ()
    sizes = array.shape[:own]
    return array[tuple(_WHOLE if size == 1 else at for size, at in zip(sizes, mine, strict=True))]


def _compute(mechanism: Any, part: Inputs, statistics: tuple[str, ...]) -> dict[str, Array]:
    besides: dict[str, Any] = {"mask": part.mask, "bias": part.bias, **part.side}
    if not statistics:
        return {"output": mechanism(part.query, part.key, part.value, **besides)}
    # Statistics are of heads: the heads are split here, and their outputs merged again.
    config = mechanism.config
    key_heads = part.key.shape[-1] // config.head_dim
    single = part.query.ndim == 1
    seen = mechanism.observe(
        split_heads(np.atleast_2d(part.query), config.heads, "query"),
        split_heads(part.key, key_heads, "key"),
        split_heads(part.value, key_heads, "value"),
        *statistics,
        **besides,
    )
    output = merge_heads(seen.output)
    names = [*statistics, "top_keys"] if "top_weights" in statistics else statistics
    found = {name: getattr(seen, name) for name in names}
    return {"output": output[0] if single else output, **found}


def _whole_shape(
    name: str, shape: tuple[int, ...], inputs: Inputs, chosen: Plan
) -> tuple[int, ...]:
    """The shape of an array of the whole call, from that of its first block."""
    if not chosen.axes:
        return shape
    lead = chosen.axes[:-1] if chosen.queries else chosen.axes
    queries, keys = inputs.query.shape[-2], inputs.key.shape[-2]
    if name == "output":
        return (*lead, queries, shape[-1])
    tails = {
        "weights": (queries, keys),
        "column_mass": (keys,),
        "top_weights": (queries, shape[-1]),
        "top_keys": (queries, shape[-1]),
    }
    tail = tails.get(name, (queries,))
    return (*lead, shape[-1 - len(tail)], *tail)


def _place(name: str, target: Array, array: Array, index: Index, chosen: Plan) -> None:
    """Write the result of a block where it belongs; keys that it did not see keep weight 0."""
    if not chosen.queries:
        target[index] = array  # the axes behind are whole
        return
    lead, rows = index[:-1], index[-1]
    if name == "output":
        target[(*lead, rows, _WHOLE)] = array
    elif name.startswith("top_"):
        target[(*lead, _WHOLE, rows, _WHOLE)] = array
    elif name == "weights":
        target[(*lead, _WHOLE, rows, slice(0, array.shape[-1]))] = array
    else:
        target[(*lead, _WHOLE, rows)] = array
