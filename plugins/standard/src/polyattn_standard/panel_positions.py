"""What a score of a panel owes to the place of its query and key: positions, and dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call
from polyattn_core.positions import distances

if TYPE_CHECKING:
    from .panels import Panel


def kept(seed: int, panel: Panel, shape: tuple[int, ...], keep: float) -> Array:
    """Which weights survive dropout: those that the streaming engine keeps, by the same hash."""
    whole = np.uint32
    heads, rows, keys = (np.arange(n, dtype=whole) for n in shape)
    x = np.full((1, 1, 1), seed, whole) + np.full(1, panel.batch, whole) * whole(0x9E3779B1)
    x = (x ^ heads[:, None, None]) * whole(0x85EBCA77)
    x = ((x ^ (x >> whole(15))) + (rows + whole(panel.rows.start))[:, None]) * whole(0xC2B2AE3D)
    x = ((x ^ (x >> whole(13))) + keys) * whole(0x27D4EB2F)
    x = (x ^ (x >> whole(16))) * whole(0x165667B1)
    x ^= x >> whole(15)
    return np.asarray((x >> whole(8)) * np.float32(2**-24) < np.float32(keep))


def all_distances(call: Call) -> Array:
    """All distances key − query, ascending."""
    return distances(call.shape.queries, call.shape.keys)


def rows_of(by_distance: Array, panel: Panel) -> Array:
    """Numbers (heads, distances) as (heads, rows, keys): a view, in which rows shift by one."""
    windows = np.lib.stride_tricks.sliding_window_view(by_distance, panel.keys, axis=1)
    return np.asarray(windows[:, ::-1][:, panel.rows])


def add_table(call: Call, panel: Panel, by_score: Array, buckets: Array) -> None:
    """Add the gradient by `position.table` to the sums of the panel."""
    keys, last = call.shape.keys, call.shape.queries - 1
    by_distance = np.zeros((len(by_score), len(buckets)), by_score.dtype)
    for row in range(by_score.shape[1]):
        first = last - panel.rows.start - row
        by_distance[:, first : first + keys] += by_score[:, row]
    table = panel.sums["position.table"]
    for head, own in enumerate(by_distance):
        table[head] += np.bincount(buckets, own, table.shape[1])
