"""Inside kernels: unit vectors, sums of their products, and the direction of most variance."""

from __future__ import annotations

import math

import numpy as np

from polyattn_core.simd.jit import inline

_ROWS = 256  # whose products are summed before they are added in double precision


@inline
def direction(numbers, at, size):  # type: ignore[no-untyped-def]
    """What makes a vector x a unit vector x/largest · factor; a factor of 0 where it has none."""
    largest = 0.0
    for j in range(size):
        largest = max(largest, abs(np.float64(numbers[at + j])))
    square = 0.0
    for j in range(size):
        small = np.float64(numbers[at + j]) / largest
        square += small * small
    # Comparisons, as `isfinite` is a difference with itself, which may be taken for 0.
    known = largest > 0 and largest < np.inf and square < np.inf
    return largest, 1.0 / math.sqrt(square) if known else 0.0


@inline
def unit_vectors(numbers, at, n, size, number, units):  # type: ignore[no-untyped-def]
    """Unit vectors of rows, closed up where one has no direction; how many have one."""
    count = 0
    for i in range(n):
        row, to = at + i * size, count * size
        largest, factor = direction(numbers, row, size)
        if factor == 0:
            continue
        for j in range(size):
            units[to + j] = number(np.float64(numbers[row + j]) / largest * factor)
        count += 1
    return count


@inline
def _add_products(units, at, count, size, total):  # type: ignore[no-untyped-def]
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
def gram_of(units, at, count, size, zero, matrix, gram):  # type: ignore[no-untyped-def]
    """Sums of products of coordinates over rows, in double precision."""
    cells = size * size
    for x in range(cells):
        gram[x] = 0.0
    for r in range(0, count, _ROWS):
        for x in range(cells):
            matrix[x] = zero
        _add_products(units, at + r * size, min(_ROWS, count - r), size, matrix)
        for x in range(cells):
            gram[x] += matrix[x]


@inline
def _times(left, at, matrix, to, into, size, zero):  # type: ignore[no-untyped-def]
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
def _trace(matrix, size, zero):  # type: ignore[no-untyped-def]
    total = zero
    for i in range(size):
        total += matrix[i * size + i]
    return total


@inline
def dot(left, right, size):  # type: ignore[no-untyped-def]
    """Σ of products, in double precision."""
    total = 0.0
    for j in range(size):
        total += left[j] * right[j]
    return total


@inline
def main_direction(matrix, square, size, powers, number, nearly, axis, following):  # type: ignore[no-untyped-def]
    """The direction of most variance by a covariance matrix, which is lost; its sign its own.

    The matrix is squared until it has rank one, in units of its trace, and a column is multiplied
    by what is left: k squarings and m products are (m + 1) · 2ᵏ power iterations.
    """
    zero, one = number(0), number(1)
    for _ in range(powers[0]):
        trace = _trace(matrix, size, zero)
        factor = one / trace if trace > zero else one
        for x in range(size * size):
            matrix[x] *= factor
        for i in range(size):
            _times(matrix, i * size, matrix, square, i * size, size, zero)
        if _trace(square, size, zero) > nearly:
            break
        for x in range(size * size):
            matrix[x] = square[x]
    column = 0
    for i in range(1, size):
        if matrix[i * size + i] > matrix[column * size + column]:
            column = i
    for i in range(size):
        axis[i] = matrix[column * size + i]
    for _ in range(powers[1]):
        _times(axis, 0, matrix, following, 0, size, zero)
        for i in range(size):
            axis[i] = following[i]
    largest = 0
    for i in range(1, size):
        if abs(axis[i]) > abs(axis[largest]):
            largest = i
    length = math.sqrt(dot(axis, axis, size))
    for i in range(size):  # the first direction where nothing varies
        if length > 0:
            axis[i] /= length if axis[largest] > zero else -length
        else:
            axis[i] = one if i == 0 else zero
