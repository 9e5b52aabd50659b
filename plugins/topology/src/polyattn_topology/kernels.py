"""Kernels: a fingerprint of memory, the minimum spanning tree of points."""

from __future__ import annotations

import functools

import numpy as np
from numba.core import types

from polyattn_core.simd.jit import Kernel

MIX = np.uint64(0x9E3779B97F4A7C15)
FOLD = np.uint64(0xFF51AFD7ED558CCD)
SHIFT, ODD = np.uint64(29), np.uint64(1)


def _fingerprint(words, out):
    """Sum of hashed words times numbers that depend on their places; vectorises."""
    total = np.uint64(0)
    place = np.uint64(0)
    for i in range(words.shape[0]):
        place += MIX
        word = words[i]
        total += (word ^ (word >> SHIFT)) * FOLD * (place | ODD)
    out[0] = total


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
def fingerprint_kernel():
    """The kernel over 64-bit words."""
    words = types.Array(types.uint64, 1, "C", readonly=True)
    return Kernel(_fingerprint, types.void(words, types.uint64[::1]), "words")


@functools.cache
def spanning_tree_kernel():
    """The kernel, in float64."""
    points = types.Array(types.float64, 2, "C", readonly=True)
    vector = types.float64[::1]
    return Kernel(_spanning_tree, types.void(points, vector, types.boolean[::1], vector), "float64")
