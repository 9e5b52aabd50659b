"""The kernel of coherence: keys in, metrics, principal axis and cheapest cut out.

The key graph has the weights w(i, j) = (1 + cos)/2. Of sets A, B of keys with the sums S of unit
vectors, w(A, B) = (|A| |B| + S_A · S_B)/2, so that a walk along an order of the keys which adds
them up tells every cut on its way.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numba.core import types

from polyattn_core.simd import threads
from polyattn_core.simd.jit import Kernel, inline
from polyattn_core.simd.scores import counter_type, take_task
from polyattn_core.simd.vector import hold, raw

from .directions import direction, dot, gram_of, main_direction, unit_vectors

if TYPE_CHECKING:
    from polyattn_core.arrays import Array

_MOST_CUTS = 64
_POWERS = {"float32": (5, 7), "float64": (24, 0)}
"""Squarings and products: in float32 an axis among nearly equal ones is good enough."""


@inline
def _borders(n, window):  # type: ignore[no-untyped-def]
    """Number of places at which n keys in a row may be cut."""
    return (n - 1) // window if window > 0 else min(n - 1, _MOST_CUTS)


@inline
def _border(place, n, window):  # type: ignore[no-untyped-def]
    """Keys before one of these places: ends of windows, or evenly apart."""
    if window > 0:
        return (place + 1) * window
    if n - 1 <= _MOST_CUTS:
        return place + 1
    return int(np.rint(1.0 + place * ((n - 2) / (_MOST_CUTS - 1))))


@inline
def _walk(units, order, n, size, window, middle, whole, total, before, metrics):  # type: ignore[no-untyped-def]
    """The first two metrics of n ≥ 2 keys in an order; after how many keys they are cut.

    Parts are windows, or what is before and behind `middle`.
    """
    square = dot(whole, whole, size)
    volume = (float(n) * n + square) / 2 - n
    for j in range(size):
        total[j] = before[j] = 0.0
    least, cut_at, place, last = np.inf, 0, 0, 0
    border = _border(0, n, window)
    inside, even = 0.0, 1.0
    end = min(window, n) if window > 0 else (middle if middle > 0 else n)
    for done in range(1, n + 1):
        at = order[done - 1] * size
        for j in range(size):
            total[j] += units[at + j]
        if done == border and done < n:
            to_whole = dot(total, whole, size)
            cut = (float(done) * (n - done) + to_whole - dot(total, total, size)) / 2
            left = (float(n) * done + to_whole) / 2 - done
            normalised = cut / left + cut / (volume - left)
            # A side without weights inside or out counts as cut off.
            normalised = max(normalised, 0.0) if normalised < np.inf else 0.0
            if normalised < least:
                least, cut_at = normalised, done
            place += 1
            border = _border(place, n, window) if place < _borders(n, window) else n
        if done == end:
            part = float(done - last)
            own = 0.0
            for j in range(size):
                own += (total[j] - before[j]) ** 2
                before[j] = total[j]
            inside += (part * part + own) / 2
            even -= part * (part - 1) / (float(n) * (n - 1))
            last, end = done, min(done + window, n) if window > 0 else n
    # Without similarity, or with everything on one side, nothing crosses that could.
    metrics[0] = 1.0
    if volume > 1e-9 * n and last > 0 and even > 1e-15:
        metrics[0] = min(max(1 - (inside - n) / volume, 0.0) / even, 1.0)
    # n/(n − 1) = (n − s)/(n − 1) + s/(n − 1) is the cut of evenly similar keys, whatever the sizes.
    metrics[1] = min(least * (n - 1) / n, 1.0) if cut_at > 0 else 1.0
    return cut_at


@functools.cache
def _kernel(dtype: str, precision: str) -> Kernel:
    """The kernel for keys of a dtype, whose unit vectors have a precision."""
    number = np.dtype(precision).type
    zero, nearly = number(0), number(1 - np.finfo(precision).eps)
    powers = _POWERS[precision]

    def coherence(keys, window, cuts, moments, metrics, axes, borders, counter):  # type: ignore[no-untyped-def]
        heads, n, size = keys.shape
        cells = size * size
        memory = np.empty(n * size + 2 * cells + 2 * size, number)
        units, matrix = raw(memory), raw(memory[n * size :])
        square, axis = raw(memory[n * size + cells :]), raw(memory[n * size + 2 * cells :])
        following = raw(memory[n * size + 2 * cells + size :])
        sums = np.empty(cells + 4 * size)
        gram, whole, part = raw(sums), raw(sums[cells:]), raw(sums[cells + size :])
        total, before = raw(sums[cells + 2 * size :]), raw(sums[cells + 3 * size :])
        along, order, flat = np.empty(n, number), np.arange(n), raw(keys)
        while True:
            h = take_task(counter)
            if h >= heads:
                break
            count = unit_vectors(flat, h * n * size, n, size, number, units)
            for j in range(size):
                whole[j] = 0.0
            pairs, cosines, squares = 0.0, 0.0, 0.0
            step = window if window > 0 else max(count, 1)
            for first in range(0, count, step):
                rows = min(step, count - first)
                for j in range(size):
                    part[j] = 0.0
                for i in range(first, first + rows):
                    for j in range(size):
                        part[j] += units[i * size + j]
                for j in range(size):
                    whole[j] += part[j]
                if moments or window == 0:
                    gram_of(units, first * size, rows, size, zero, matrix, gram)
                    pairs += float(rows) * (rows - 1)
                    cosines += dot(part, part, size) - rows
                    squares += dot(gram, gram, cells) - rows
            mean = cosines / pairs if pairs > 0 else 1.0
            spread = math.sqrt(max(squares / pairs - mean * mean, 0.0)) if pairs > 0 else 0.0
            metrics[h, 2] = min(max(mean, 0.0), 1.0)
            metrics[h, 3] = 1 - min(spread, 1.0)
            metrics[h, 0] = metrics[h, 1] = 1.0
            borders[h] = np.nan
            for j in range(size):
                axes[h, j] = 0.0
            if count < 2 or not cuts:
                continue
            middle = 0
            if window == 0:
                for i in range(size):
                    for j in range(size):
                        product = gram[i * size + j] / count
                        product -= whole[i] / count * (whole[j] / count)
                        matrix[i * size + j] = number(product)
                main_direction(matrix, square, size, powers, number, nearly, axis, following)
                centre = 0.0
                for i in range(count):
                    place = zero
                    for j in range(size):
                        place += units[i * size + j] * axis[j]
                    along[i] = place
                    centre += place
                for i in range(count):
                    middle += along[i] < centre / count
                order = np.argsort(along[:count])
            cut = _walk(
                units, raw(order), count, size, window, middle, whole, total, before,
                raw(metrics[h]),
            )  # fmt: skip
            if window == 0:
                for j in range(size):
                    axes[h, j] = axis[j]
                borders[h] = (np.float64(along[order[cut - 1]]) + along[order[cut]]) / 2
            hold(order)
        hold(memory, sums, keys)

    kind = types.float32 if dtype == "float32" else types.float64
    signature = types.void(
        types.Array(kind, 3, "C", readonly=True), types.int64, types.boolean, types.boolean,
        types.float64[:, ::1], types.float64[:, ::1], types.float64[::1], counter_type(),
    )  # fmt: skip
    return Kernel(coherence, signature, f"{dtype} {precision}")


def measured(
    keys: Array, precision: str, *, window: int | None = None, cuts: bool = True,
    moments: bool = True,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Of keys (heads, n, d): metrics (heads, 4), principal axes (heads, d), places of the cuts.

    The metrics are in the order of `CoherenceMetric`.

    Without windows keys are cut along the axis, between those before and those behind the place.
    Axes are 0 and places NaN where there is no cut. Keys that are 0 or not finite do not count.
    O(n d² + n log n + d³) time.
    """
    heads, _, size = keys.shape
    metrics, axes, places = np.empty((heads, 4)), np.empty((heads, size)), np.empty(heads)
    given = (np.ascontiguousarray(keys), window or 0, cuts, moments, metrics, axes, places)
    threads.run(_kernel(keys.dtype.name, precision).compile(), given, heads, threads.limit())
    return metrics, axes, places


@functools.cache
def _sides_kernel(dtype: str) -> Kernel:
    def sides(tokens, axes, places, group, found, counter):  # type: ignore[no-untyped-def]
        batches, heads, n, size = tokens.shape
        flat = raw(tokens)
        while True:
            task = take_task(counter)
            if task >= batches * heads:
                break
            b, h = task // heads, task % heads
            place = places[b, h // group]
            axis = raw(axes[b, h // group])
            for i in range(n):
                at = (task * n + i) * size
                largest, factor = direction(flat, at, size)
                along = 0.0
                for j in range(size):
                    along += np.float64(flat[at + j]) / largest * factor * axis[j]
                if factor > 0 and abs(place) < np.inf:
                    found[b, h, i] = 1 if along > place else -1
                else:
                    found[b, h, i] = 0
        hold(tokens, axes)

    kind = types.float32 if dtype == "float32" else types.float64
    signature = types.void(
        types.Array(kind, 4, "C", readonly=True), types.float64[:, :, ::1], types.float64[:, ::1],
        types.int64, types.Array(kind, 3, "C"), counter_type(),
    )  # fmt: skip
    return Kernel(sides, signature, dtype)


def sides(tokens: Array, axes: Array, places: Array) -> Any:
    """−1 or 1 for each of the tokens (batch, heads, n, d), by the cuts of their (key) heads.

    0 where there is no cut, or a token has no direction.
    """
    batch, heads = tokens.shape[:2]
    found = np.empty(tokens.shape[:3], tokens.dtype)
    given = (np.ascontiguousarray(tokens), axes, places, heads // axes.shape[1], found)
    kernel = _sides_kernel(tokens.dtype.name).compile()
    threads.run(kernel, given, batch * heads, threads.limit())
    return found
