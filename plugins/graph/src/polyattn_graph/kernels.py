"""The search for shortest paths, the hyperbolic score rule, and the edge engine of core."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.core import types

from polyattn_core.simd import threads
from polyattn_core.simd.edges import Edges
from polyattn_core.simd.jit import Kernel
from polyattn_core.simd.rules import Statistic, score_rule
from polyattn_core.simd.scores import counter_type, take_task

Array = npt.NDArray[Any]
ONE, ZERO = np.float32(1), np.float32(0)


def _breadth_first(indptr, indices, sources, most, distance, edge, counter):  # type: ignore[no-untyped-def]
    nodes = indptr.size - 1
    queue = np.empty(nodes, np.int64)
    while True:
        row = take_task(counter)
        if row >= sources.size:
            return
        for v in range(nodes):
            distance[row, v] = -1
        start = sources[row]
        distance[row, start] = 0
        queue[0] = start
        head, tail = 0, 1
        while head < tail:
            u = queue[head]
            head += 1
            if distance[row, u] == most:
                continue
            for e in range(indptr[u], indptr[u + 1]):
                v = indices[e]
                if distance[row, v] < 0:
                    distance[row, v] = distance[row, u] + 1
                    if edge.size > 0:
                        edge[row, v] = e
                    queue[tail] = v
                    tail += 1


@functools.cache
def _search_kernel() -> Kernel:
    whole = types.Array(types.int64, 1, "C", readonly=True)
    table = types.Array(types.int32, 2, "C")
    signature = types.void(whole, whole, whole, types.int64, table, table, counter_type())
    return Kernel(_breadth_first, signature, "int32")


def shortest_paths(
    indptr: Array, indices: Array, sources: Array, most: int, *, edges: bool = False
) -> tuple[Array, Array]:
    """Hops (sources, nodes), −1 where more than `most`; and the last edge of each path."""
    nodes = len(indptr) - 1
    distance = np.empty((len(sources), nodes), np.int32)
    last = np.full((len(sources), nodes) if edges else (0, 0), -1, np.int32)
    arguments = (indptr, indices, np.asarray(sources, np.int64), most, distance, last)
    threads.run(_search_kernel().compile(), arguments, len(sources), threads.limit())
    return distance, last


def _lift(x: Array) -> Array:
    found: Array = np.sqrt(1 + np.einsum("...d,...d->...", x, x))
    return found


hyperboloid_time = Statistic(
    "hyperboloid_time", _lift, lambda x, gradient: x * (gradient / _lift(x))[..., None]
)
"""√(1 + |x|²): the time of the point of the hyperboloid above x."""


@score_rule(row=hyperboloid_time, column=hyperboloid_time)
def dual_score(dot, row, column, flat, bent, rounding):  # type: ignore[no-untyped-def]
    """flat·⟨q, k⟩ − bent·d(q, k), the distance on the unit hyperboloid.

    The hyperbolic cosine of a distance of 0 differs from 1 by rounding, which the root would
    magnify.
    """
    excess = row * column - dot - ONE
    excess = ZERO if excess < rounding * row * column else excess
    return flat * dot - bent * np.log(ONE + excess + np.sqrt(excess * (excess + ONE + ONE)))


@dual_score.derivative
def dual_score_derivative(dot, row, column, flat, bent, rounding):  # type: ignore[no-untyped-def]
    excess = row * column - dot - ONE
    near = excess < rounding * row * column
    excess = ONE if near else excess
    root = np.sqrt(excess * (excess + ONE + ONE))
    # At a distance of 0 there is none.
    slope = ZERO if near else bent / root
    distance = ZERO if near else np.log(ONE + excess + root)
    return (flat + slope, -slope * column, -slope * row, dot, -distance, ZERO)


__all__ = ["Edges", "dual_score", "shortest_paths"]
