"""The front of the decode kernel: a few queries against keys and values as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import key_rules, masking, threads
from .decode import PLAN_SIZE, decode_kernel
from .masking import NO_MASK, EncodedMask
from .rules import ScoreRule

Array = npt.NDArray[Any]
Rules = Sequence[tuple[ScoreRule, Sequence[Any]]]

_SMALL = 1 << 21  # multiply-adds below which starting another thread costs more than it saves
_LEAST_CHUNK = 512  # keys, below which a chunk is not worth its merge
_TASKS = 8  # of each thread, so that one that starts late is no loss


@dataclass(slots=True)
class Stored:
    """Keys and values where they lie: (units, key heads, rows, elements) in one of the formats."""

    format: str
    key: Array
    value: Array
    runs: Array
    """(runs, 5): unit, row, position of the first key, number of keys, that of earlier runs."""
    starts: Array
    """Where the runs of each sequence start, and where the last ones end."""
    totals: Array
    """Keys that each sequence has in all: positions of masks count in these."""
    key_scales: Array | None = None
    value_scales: Array | None = None
    """(units, key heads, groups, rows), with a vector's room behind the last row."""
    key_width: int = 0
    value_width: int = 0
    """Numbers in a stored row, where elements hold several or rows are padded."""
    group: int = 0
    """Numbers that share a scale."""

    @property
    def most(self) -> int:
        """Keys of the sequence that has the most."""
        if not len(self.runs):
            return 0
        ends = np.maximum(self.starts[1:] - 1, 0)
        held = self.runs[ends, 3] + self.runs[ends, 4]
        return int(np.where(self.starts[1:] > self.starts[:-1], held, 0).max())


@dataclass(slots=True)
class Scores:
    """What becomes of the products: per sequence, or the same for all where there is one."""

    scale: float
    rules: Sequence[Rules] = ((),)
    masks: Sequence[EncodedMask] = (NO_MASK,)
    bias: Array | None = None
    """(bias batches, heads, queries, keys), with strides 0 where it is broadcast."""
    bias_batch: Array | None = None
    bias_shift: Array | None = None
    """Added to key positions to find their bias."""
    sink: Array | None = None


def supports(rules: Rules) -> bool:
    """Can these rules run along keys? Without statistics, their parameters floating numbers."""
    return all(
        rule.row is None
        and rule.column is None
        and not rule.arrays
        and all(kind.kind == "float" for kind in rule.kinds(values).values())
        for rule, values in rules
    )


def contiguous(key: Array, value: Array, start: int, total: int) -> Stored:
    """Plain arrays (batch, key heads, keys, size), whose first key is at position `start`."""
    batch, keys = key.shape[0], key.shape[2]
    runs = np.zeros((batch, 5), np.int64)
    runs[:, 0] = np.arange(batch)
    runs[:, 2], runs[:, 3] = start, keys
    return Stored(
        key.dtype.name, key, value, runs, np.arange(batch + 1), np.full(batch, total),
    )  # fmt: skip


def attend(
    query: Array, stored: Stored, scores: Scores, limit: int | None = None
) -> tuple[Array, Array]:
    """The output (batch, heads, queries, value size) and the log-sum-exp (batch, heads, queries).

    The value size is the width of the stored values.
    """
    batch, heads, queries, size = query.shape
    dtype = query.dtype
    key_heads, most = stored.key.shape[1], stored.most
    key_width = stored.key_width or stored.key.shape[3]
    value_width = stored.value_width or stored.value.shape[3]
    units = batch * key_heads
    work = batch * heads * queries * most * (size + value_width)
    workers = 1 if work < _SMALL else min(limit or threads.limit(), threads.limit())
    chunks = 1
    if units < _TASKS * workers:
        chunks = max(1, min(-(-_TASKS * workers // units), most // _LEAST_CHUNK))

    mask, steps, integers, octets = _together(scores.masks)
    chain = [rule for rule, _ in scores.rules[0]]
    addresses = np.array([key_rules.address(rule, dtype.name) for rule in chain], np.int64)
    plan = np.zeros(PLAN_SIZE, np.int64)
    plan[0], plan[1] = chunks, mask.depth
    if mask.depth:
        code = masking.interpreter()
        plan[2], plan[3] = code.classify.address, code.fill.address
    plan[4] = scores.bias is not None
    plan[5:9] = key_width, value_width, stored.group, stored.group
    plan[9] = len(chain)
    zeros = np.zeros(batch, np.int64)
    bias = np.zeros((1, 1, 1, 1), dtype) if scores.bias is None else scores.bias
    no_scales = np.zeros((0, 0, 0, 0), np.float32)
    sink = np.zeros(0, dtype) if scores.sink is None else np.ascontiguousarray(scores.sink, dtype)
    # Written as (…, queries, heads, size), so that merging heads afterwards is a view.
    out = np.empty((batch, queries, heads, value_width), dtype).transpose(0, 2, 1, 3)
    logs = np.empty((batch, heads, queries), dtype)
    arguments = (
        query, stored.key, stored.value,
        no_scales if stored.key_scales is None else stored.key_scales,
        no_scales if stored.value_scales is None else stored.value_scales,
        dtype.type(scores.scale), plan, stored.runs, stored.starts, stored.totals, addresses,
        key_rules.offsets(chain), _parameters(scores.rules, heads, dtype), bias,
        zeros if scores.bias_batch is None else scores.bias_batch,
        zeros if scores.bias_shift is None else scores.bias_shift,
        steps, integers, octets, sink,
        np.empty((chunks * batch, heads, queries, value_width), dtype),
        np.empty((chunks * batch, heads, queries), dtype), np.zeros(units, np.int64), out, logs,
    )  # fmt: skip
    threads.run(decode_kernel(stored.format).compile(), arguments, units * chunks, workers)
    return out, logs


def _together(masks: Sequence[EncodedMask]) -> tuple[EncodedMask, Array, Array, Array]:
    """The programs of masks that differ in their numbers alone, with their tables put together."""
    first = masks[0]
    if len(masks) == 1:
        return first, first.steps[None], first.integers, first.octets
    steps = np.stack([mask.steps for mask in masks])
    octets = np.isin(steps[0, :, 0], (masking.KEYS, masking.QUERIES, masking.BLOCKS, masking.DENSE))
    for kind, tables in (
        (~octets, [m.integers for m in masks]),
        (octets, [m.octets for m in masks]),
    ):
        before = np.cumsum([0, *(table.size for table in tables)])[:-1]
        steps[:, kind, 3] += before[:, None]
    together = [
        np.concatenate(tables)
        for tables in ([m.integers for m in masks], [m.octets for m in masks])
    ]
    return first, steps, together[0], together[1]


def _parameters(rules: Sequence[Rules], heads: int, dtype: Any) -> Array:
    """(1 or batch, heads, parameters of all rules)."""
    values = [
        [
            np.broadcast_to(np.asarray(value, dtype), (heads,))
            for _, given in chain
            for value in given
        ]
        for chain in rules
    ]
    if not values[0]:
        return np.zeros((1, heads, 1), dtype)
    return np.ascontiguousarray(np.stack(values).transpose(0, 2, 1))


__all__ = ["Scores", "Stored", "attend", "contiguous", "supports"]
