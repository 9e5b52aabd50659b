"""The minimum spanning tree of points."""

from __future__ import annotations

import functools

import numpy as np
from numba.core import types

from polyattn_core.simd.jit import Kernel


def _spanning_tree(points, distance, done, deaths):
    """Prim's algorithm: squared lengths of the edges, in the order in which they are found."""
    n, size = points.shape
    for i in range(n):
        distance[i], done[i] = np.inf, False
    current = 0
    for edge in range(n - 1):
        done[current] = True
        best, nearest = np.inf, -1
        for i in range(n):
            if done[i]:
                continue
            squared = 0.0
            for d in range(size):
                difference = points[i, d] - points[current, d]
                squared += difference * difference
            if squared < distance[i]:
                distance[i] = squared
            if nearest < 0 or distance[i] < best:
                best, nearest = distance[i], i
        deaths[edge] = best
        current = nearest


@functools.cache
def spanning_tree_kernel():
    """The kernel, in float64."""
    points = types.Array(types.float64, 2, "C", readonly=True)
    vector = types.float64[::1]
    return Kernel(_spanning_tree, types.void(points, vector, types.boolean[::1], vector), "float64")
