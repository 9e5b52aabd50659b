"""Kernels: a fingerprint of memory, the minimum spanning tree of points, axes and cuts of keys."""

from __future__ import annotations

import functools

import numpy as np
from numba.core import types

from polyattn_core.simd.jit import Kernel, inline
from polyattn_core.simd.scores import counter_type, take_task
from polyattn_core.simd.vector import hold, raw

MIX = np.uint64(0x9E3779B97F4A7C15)
FOLD = np.uint64(0xFF51AFD7ED558CCD)
SHIFT, ODD = np.uint64(29), np.uint64(1)
_ROWS = 256  # whose products are summed before they are added in double precision


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


@inline
def _add_products(units, at, count, size, total):
    """total[i, j] += Σ u[i] · u[j] over rows, four at a time."""
    whole = count - count % 4
    for r in range(0, whole, 4):
        a = at + r * size
        b, c, d = a + size, a + 2 * size, a + 3 * size
        for i in range(size):
            w, x, y, z = units[a + i], units[b + i], units[c + i], units[d + i]
            row = i * size
            for j in range(size):
                total[row + j] += (w * units[a + j] + x * units[b + j]) + (
                    y * units[c + j] + z * units[d + j]
                )
    for r in range(whole, count):
        a = at + r * size
        for i in range(size):
            w = units[a + i]
            for j in range(size):
                total[i * size + j] += w * units[a + j]


@inline
def _times(left, at, matrix, to, into, size, zero):
    """Row to[into:] = left[at:] · matrix."""
    for j in range(size):
        to[into + j] = zero
    whole = size - size % 4
    for k in range(0, whole, 4):
        w, x, y, z = left[at + k], left[at + k + 1], left[at + k + 2], left[at + k + 3]
        a, b, c, d = k * size, (k + 1) * size, (k + 2) * size, (k + 3) * size
        for j in range(size):
            to[into + j] += (w * matrix[a + j] + x * matrix[b + j]) + (
                y * matrix[c + j] + z * matrix[d + j]
            )
    for k in range(whole, size):
        factor = left[at + k]
        for j in range(size):
            to[into + j] += factor * matrix[k * size + j]


@inline
def _trace(matrix, size, zero):
    total = zero
    for i in range(size):
        total += matrix[i * size + i]
    return total


@functools.cache
def axis_kernel(dtype: str):
    """The kernel ``(units, squarings, products, gram, axes, counter)`` of a dtype.

    Of unit vectors (heads, n, size): their products `gram` (heads, size, size) in float64, and a
    column `axes` (heads, size) of a high power of their covariance, which has any length.
    """
    number = np.dtype(dtype).type
    zero, one, nearly = number(0), number(1), number(1 - np.finfo(dtype).eps)

    def axis(units, squarings, products, gram, axes, counter):
        heads, n, size = units.shape
        cells = size * size
        memory = np.empty(2 * cells + 2 * size, number)
        matrix, square = raw(memory), raw(memory[cells:])
        vector, following = raw(memory[2 * cells :]), raw(memory[2 * cells + size :])
        mean_memory = np.empty(size, np.float64)
        mean = raw(mean_memory)
        flat, flat_gram, flat_axes = raw(units), raw(gram), raw(axes)
        while True:
            h = take_task(counter)
            if h >= heads:
                break
            start, of_gram = h * n * size, h * cells
            for x in range(cells):
                flat_gram[of_gram + x] = 0.0
            for i in range(size):
                mean[i] = 0.0
            for r in range(0, n, _ROWS):
                for x in range(cells):
                    matrix[x] = zero
                rows = min(_ROWS, n - r)
                _add_products(flat, start + r * size, rows, size, matrix)
                for x in range(cells):
                    flat_gram[of_gram + x] += matrix[x]
                for i in range(rows):
                    for j in range(size):
                        mean[j] += flat[start + (r + i) * size + j]
            for i in range(size):
                for j in range(size):
                    product = flat_gram[of_gram + i * size + j] / n - mean[i] * mean[j] / (n * n)
                    matrix[i * size + j] = number(product)
            for _ in range(squarings):
                trace = _trace(matrix, size, zero)
                factor = one / trace if trace > zero else one
                for x in range(cells):
                    matrix[x] *= factor
                for i in range(size):
                    _times(matrix, i * size, matrix, square, i * size, size, zero)
                if _trace(square, size, zero) > nearly:
                    break
                for x in range(cells):
                    matrix[x] = square[x]
            column = 0
            for i in range(1, size):
                if matrix[i * size + i] > matrix[column * size + column]:
                    column = i
            for i in range(size):
                vector[i] = matrix[column * size + i]
            for _ in range(products):
                _times(vector, 0, matrix, following, 0, size, zero)
                for i in range(size):
                    vector[i] = following[i]
            for i in range(size):
                flat_axes[h * size + i] = vector[i]
        hold(memory, mean_memory, units, gram, axes)

    kind = types.float32 if dtype == "float32" else types.float64
    signature = types.void(
        types.Array(kind, 3, "C", readonly=True), types.int64, types.int64,
        types.Array(types.float64, 3, "C"), types.Array(kind, 2, "C"), counter_type(),
    )  # fmt: skip
    return Kernel(axis, signature, dtype)


@functools.cache
def sums_kernel(dtype: str):
    """The kernel ``(units, order, ends, sums, counter)`` of a dtype.

    `sums` (heads, ends, size), in float64: of the first so many vectors, in that order.
    """

    def prefix_sums(units, order, ends, sums, counter):
        heads, n, size = units.shape
        memory = np.empty(size, np.float64)
        total, flat, flat_sums = raw(memory), raw(units), raw(sums)
        while True:
            h = take_task(counter)
            if h >= heads:
                break
            for j in range(size):
                total[j] = 0.0
            done = 0
            for end in range(ends.shape[1]):
                while done < ends[h, end]:
                    at = (h * n + order[h, done]) * size
                    for j in range(size):
                        total[j] += flat[at + j]
                    done += 1
                to = (h * ends.shape[1] + end) * size
                for j in range(size):
                    flat_sums[to + j] = total[j]
        hold(memory, units, sums)

    kind = types.float32 if dtype == "float32" else types.float64
    whole = types.Array(types.int64, 2, "A", readonly=True)
    signature = types.void(
        types.Array(kind, 3, "C", readonly=True), whole, whole, types.Array(types.float64, 3, "C"),
        counter_type(),
    )  # fmt: skip
    return Kernel(prefix_sums, signature, dtype)
