"""The dear stage: transport costs to the candidates, their soft-max, and its gradients.

A cost is the mean over directions of the 1-D transport cost, which pairs what is sorted. Where all
distributions have equally many numbers, it is a sum over one run of memory; where they differ, two
pointers walk along both quantile functions.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core import types

from polyattn_core.simd import target
from polyattn_core.simd.jit import Kernel, inline
from polyattn_core.simd.mathematics import exp
from polyattn_core.simd.scores import counter_type, take_task
from polyattn_core.simd.vector import hold, raw

from .emission import operations

_ROWS = 16  # queries of a task


@functools.cache
def _costs(dtype: str):  # type: ignore[no-untyped-def]
    number = np.dtype(dtype).type
    zero, one, two = number(0), number(1), number(2)

    @inline
    def between(x, y, power):  # type: ignore[no-untyped-def]
        """|x − y|ᵖ."""
        gap = abs(x - y)
        if power == one:
            return gap
        return gap * gap if power == two else gap**power

    @inline
    def slope(x, y, power):  # type: ignore[no-untyped-def]
        """Its derivative by x."""
        gap = x - y
        if power == two:
            return two * gap
        sign = one if gap > zero else (-one if gap < zero else zero)
        return sign if power == one else power * sign * abs(gap) ** (power - one)

    @inline
    def power_cost(x, at, y, to, size, power):  # type: ignore[no-untyped-def]
        """Mean of |x − y|ᵖ over sorted numbers of two distributions of equally many."""
        total = zero
        for d in range(size):
            total += abs(x[at + d] - y[to + d]) ** power
        return total / number(size)

    @inline
    def uneven_cost(x, i, m, y, j, n, line, power):  # type: ignore[no-untyped-def]
        """Mean over directions of the transport cost of distributions i of x and j of y.

        `x` and `y` are flat; a distribution is `line` = (directions, numbers of x, of y) large.
        """
        directions, across, along = line
        total = zero
        for r in range(directions):
            at, to = (i * directions + r) * across, (j * directions + r) * along
            s, t, reached = 0, 0, 0
            while s < m and t < n:
                # In units of 1/(m n), so that levels are whole numbers.
                following = min((s + 1) * n, (t + 1) * m)
                total += number(following - reached) * between(x[at + s], y[to + t], power)
                reached = following
                s += 1 if (s + 1) * n == following else 0
                t += 1 if (t + 1) * m == following else 0
        return total / number(directions * m * n)

    @inline
    def pull_back(x, i, m, y, j, n, line, even, power, gradient, d_x, d_y):  # type: ignore[no-untyped-def]
        """Add the gradient of a cost to those of x and y."""
        directions, across, along = line
        size = directions * across
        if even:
            at, to = i * size, j * size
            factor = gradient / number(size)
            for d in range(size):
                part = factor * slope(x[at + d], y[to + d], power)
                d_x[at + d] += part
                d_y[to + d] -= part
            return
        factor = gradient / number(directions * m * n)
        for r in range(directions):
            at, to = (i * directions + r) * across, (j * directions + r) * along
            s, t, reached = 0, 0, 0
            while s < m and t < n:
                following = min((s + 1) * n, (t + 1) * m)
                share = factor * number(following - reached)
                part = share * slope(x[at + s], y[to + t], power)
                d_x[at + s] += part
                d_y[to + t] -= part
                reached = following
                s += 1 if (s + 1) * n == following else 0
                t += 1 if (t + 1) * m == following else 0

    return power_cost, uneven_cost, pull_back


@functools.cache
def gathered_kernel(dtype: str) -> Kernel:
    """``(index, x, m, y, n, value, even, numbers, weights, log_sum_exp, out, counter)``.

    `x` (batch, heads, queries, directions, numbers) and `y` (batch, key heads, keys, …) are sorted,
    `m` and `n` their lengths; `numbers` are the sharpness and the power.
    """
    number = np.dtype(dtype).type
    lowest, zero, one = number(-np.inf), number(0), number(1)
    two = number(2)
    power_cost, uneven_cost, _ = _costs(dtype)
    ops = operations(dtype)
    squares, distances, gathered_sum = ops.squares, ops.distances, ops.gathered_sum
    room = target.tile(dtype).lanes

    def gathered(index, x, m, y, n, value, even, numbers, weights, log_sum_exp, out, counter):  # type: ignore[no-untyped-def]
        batches, heads, queries, candidates = index.shape
        key_heads, keys = y.shape[1], y.shape[2]
        group = heads // key_heads
        line = (x.shape[3], x.shape[4], y.shape[4])
        length = x.shape[3] * x.shape[4]
        flat_x, flat_y, flat_value, flat_out = raw(x), raw(y), raw(value), raw(out)
        flat_m, flat_n, flat_weights, flat_index = raw(m), raw(n), raw(weights), raw(index)
        row_memory, place_memory = (
            np.empty(candidates + room, number),
            np.empty(candidates, np.int64),
        )
        row, places = raw(row_memory), raw(place_memory)
        blocks = (queries + _ROWS - 1) // _ROWS
        size = value.shape[3]
        sharpness, power = numbers[0], numbers[1]
        factor = -sharpness / number(length)
        while True:
            task = take_task(counter)
            if task >= batches * heads * blocks:
                break
            b = task // (heads * blocks)
            h = task // blocks % heads
            k = h // group
            first = task % blocks * _ROWS
            for i in range(first, min(first + _ROWS, queries)):
                own = (b * heads + h) * queries + i
                base_row = (b * key_heads + k) * keys
                count = 0
                chosen = own * candidates
                while count < candidates and flat_index[chosen + count] >= 0:
                    count += 1
                if even and (power == one or power == two):
                    for c in range(count):
                        places[c] = (base_row + flat_index[chosen + c]) * length
                    if power == two:
                        squares(flat_x, own * length, flat_y, places, count, length, factor, row)
                    else:
                        distances(flat_x, own * length, flat_y, places, count, length, factor, row)
                else:
                    for c in range(count):
                        j = base_row + flat_index[chosen + c]
                        if even:
                            cost = power_cost(
                                flat_x, own * length, flat_y, j * length, length, power
                            )
                        else:
                            cost = uneven_cost(
                                flat_x, own, flat_m[own], flat_y, j, flat_n[j], line, power
                            )
                        row[c] = -sharpness * cost
                for c in range(count):
                    places[c] = (base_row + flat_index[chosen + c]) * size
                most = lowest
                for c in range(count):
                    most = max(most, row[c])
                total = zero
                base = zero if most == lowest else most
                for c in range(count):
                    row[c] = exp(row[c] - base)
                for c in range(count):
                    total += row[c]
                log_sum_exp[b, h, i] = base + np.log(total) if count > 0 else lowest
                share = one / total if count > 0 else zero
                for c in range(count):
                    row[c] *= share
                for c in range(count):
                    flat_weights[chosen + c] = row[c]
                for c in range(count, candidates):
                    flat_weights[chosen + c] = zero
                gathered_sum(flat_out, own * size, row, 0, places, count, flat_value, size)
        hold(x, y, value, out, m, n, weights, index, row_memory, place_memory)

    kind = types.float32 if dtype == "float32" else types.float64
    lengths = types.Array(types.int64, 3, "C")
    signature = types.void(
        types.Array(types.int32, 4, "C"), types.Array(kind, 5, "C"), lengths,
        types.Array(kind, 5, "C"), lengths, types.Array(kind, 4, "C", readonly=True), types.boolean,
        types.Array(kind, 1, "C"), types.Array(kind, 4, "C"), types.Array(kind, 3, "C"),
        types.Array(kind, 4, "C"), counter_type(),
    )  # fmt: skip
    return Kernel(gathered, signature, dtype)


@functools.cache
def gathered_gradient_kernel(dtype: str) -> Kernel:
    """``(index, x, m, y, n, value, even, numbers, weights, gradient, d_x, d_y, d_value, counter)``.

    A task is a key head, since its queries add to the gradients of the same keys.
    """
    number = np.dtype(dtype).type
    zero = number(0)
    _, _, pull_back = _costs(dtype)

    def gradients(
        index, x, m, y, n, value, even, numbers, weights, gradient, d_x, d_y, d_value, counter
    ):  # type: ignore[no-untyped-def]
        batches, heads, queries, candidates = index.shape
        key_heads, keys = y.shape[1], y.shape[2]
        group = heads // key_heads
        line = (x.shape[3], x.shape[4], y.shape[4])
        flat_x, flat_y, flat_dx, flat_dy = x.ravel(), y.ravel(), d_x.ravel(), d_y.ravel()
        size = value.shape[3]
        sharpness, power = numbers[0], numbers[1]
        slopes = np.empty(candidates, number)
        while True:
            task = take_task(counter)
            if task >= batches * key_heads:
                break
            b, k = task // key_heads, task % key_heads
            for h in range(k * group, (k + 1) * group):
                for i in range(queries):
                    incoming = gradient[b, h, i]
                    mean, count = zero, 0
                    while count < candidates and index[b, h, i, count] >= 0:
                        j = index[b, h, i, count]
                        weight, theirs, to = (
                            weights[b, h, i, count],
                            value[b, k, j],
                            d_value[b, k, j],
                        )
                        product = zero
                        for d in range(size):
                            product += incoming[d] * theirs[d]
                            to[d] += weight * incoming[d]
                        slopes[count] = product
                        mean += weight * product
                        count += 1
                    for c in range(count):
                        j = index[b, h, i, c]
                        by_cost = -sharpness * weights[b, h, i, c] * (slopes[c] - mean)
                        pull_back(
                            flat_x, (b * heads + h) * queries + i, m[b, h, i], flat_y,
                            (b * key_heads + k) * keys + j, n[b, k, j], line, even, power, by_cost,
                            flat_dx, flat_dy,
                        )  # fmt: skip

    kind = types.float32 if dtype == "float32" else types.float64
    lengths = types.Array(types.int64, 3, "C")
    four, five = types.Array(kind, 4, "C"), types.Array(kind, 5, "C")
    given = types.Array(kind, 4, "C", readonly=True)
    signature = types.void(
        types.Array(types.int32, 4, "C"), five, lengths, five, lengths, given, types.boolean,
        types.Array(kind, 1, "C"), four, given, five, five, four, counter_type(),
    )  # fmt: skip
    return Kernel(gradients, signature, dtype)
