"""The edge engine: sums, products and soft-max over the edges of a sparse graph.

Edges are rows of a compressed matrix: those of query i are ``indptr[i]`` … ``indptr[i + 1]``, and
``indices`` says at which key each ends. Vectors are (nodes, heads, size), numbers of edges (edges,
heads), both contiguous. Rows are shared between threads in blocks; every result is written by one
row, so that it does not depend on their number.

The transposed graph, with ``order`` telling which edge of the original each of its edges is, turns
sums over a query's keys into sums over a key's queries: all that the backward passes need.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.core import types

from . import threads
from .jit import Kernel
from .mathematics import exp
from .scores import counter_type, take_task

Array = npt.NDArray[Any]

BLOCK = 64
"""Rows of a task."""
_SMALL = 1 << 16  # numbers touched below which starting another thread costs more than it saves


@functools.cache
def edge_kernels(dtype: str) -> SimpleNamespace:
    """The kernels of a dtype; each is compiled on its first call."""
    number = np.dtype(dtype).type
    zero, one, lowest = number(0), number(1), number(-np.inf)

    def weighted_sum(indptr, indices, order, weights, value, edge_value, out, counter):  # type: ignore[no-untyped-def]
        rows, heads, size = out.shape
        while True:
            first = take_task(counter) * BLOCK
            if first >= rows:
                return
            for i in range(first, min(first + BLOCK, rows)):
                for h in range(heads):
                    for d in range(size):
                        out[i, h, d] = zero
                for e in range(indptr[i], indptr[i + 1]):
                    j = indices[e]
                    at = order[e] if order.size > 0 else e
                    for h in range(heads):
                        w = weights[at, h]
                        for d in range(size):
                            out[i, h, d] += w * value[j, h, d]
                        if edge_value.size > 0:
                            for d in range(size):
                                out[i, h, d] += w * edge_value[at, h, d]

    def products(indptr, indices, left, right, edge, out, counter):  # type: ignore[no-untyped-def]
        rows, heads, size = left.shape
        while True:
            first = take_task(counter) * BLOCK
            if first >= rows:
                return
            for i in range(first, min(first + BLOCK, rows)):
                for e in range(indptr[i], indptr[i + 1]):
                    j = indices[e]
                    for h in range(heads):
                        total = zero
                        for d in range(size):
                            total += left[i, h, d] * right[j, h, d]
                        if edge.size > 0:
                            for d in range(size):
                                total += left[i, h, d] * edge[e, h, d]
                        out[e, h] = total

    def additive(indptr, indices, left, right, edge, attention, slope, out, counter):  # type: ignore[no-untyped-def]
        rows, heads, size = left.shape
        while True:
            first = take_task(counter) * BLOCK
            if first >= rows:
                return
            for i in range(first, min(first + BLOCK, rows)):
                for e in range(indptr[i], indptr[i + 1]):
                    j = indices[e]
                    for h in range(heads):
                        total = zero
                        for d in range(size):
                            x = left[i, h, d] + right[j, h, d]
                            if edge.size > 0:
                                x += edge[e, h, d]
                            total += attention[h, d] * (x if x > zero else slope[0] * x)
                        out[e, h] = total

    def additive_backward(
        indptr, indices, order, left, right, edge, attention, slope, gradient, d_left, d_edge,
        d_attention, counter,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        rows, heads, size = left.shape
        while True:
            task = take_task(counter)
            first = task * BLOCK
            if first >= rows:
                return
            for i in range(first, min(first + BLOCK, rows)):
                for h in range(heads):
                    for d in range(size):
                        d_left[i, h, d] = zero
                for e in range(indptr[i], indptr[i + 1]):
                    j = indices[e]
                    at = order[e] if order.size > 0 else e
                    for h in range(heads):
                        g = gradient[at, h]
                        for d in range(size):
                            x = left[i, h, d] + right[j, h, d]
                            if edge.size > 0:
                                x += edge[at, h, d]
                            bend = one if x > zero else slope[0]
                            step = g * attention[h, d] * bend
                            d_left[i, h, d] += step
                            if d_edge.size > 0:
                                d_edge[at, h, d] = step
                            if d_attention.size > 0:
                                d_attention[task, h, d] += g * bend * x

    def softmax(indptr, scores, weights, log_sum, counter):  # type: ignore[no-untyped-def]
        rows, heads = log_sum.shape
        while True:
            first = take_task(counter) * BLOCK
            if first >= rows:
                return
            for i in range(first, min(first + BLOCK, rows)):
                start, stop = indptr[i], indptr[i + 1]
                for h in range(heads):
                    most = lowest
                    for e in range(start, stop):
                        # NaN stays, because it is not at most anything.
                        most = most if scores[e, h] <= most else scores[e, h]
                    if most == lowest:
                        log_sum[i, h] = lowest
                        for e in range(start, stop):
                            weights[e, h] = zero
                        continue
                    total = zero
                    for e in range(start, stop):
                        w = exp(scores[e, h] - most)
                        weights[e, h] = w
                        total += w
                    for e in range(start, stop):
                        weights[e, h] /= total
                    log_sum[i, h] = most + np.log(total)

    def softmax_backward(indptr, weights, gradient, out, counter):  # type: ignore[no-untyped-def]
        rows, heads = indptr.size - 1, weights.shape[1]
        while True:
            first = take_task(counter) * BLOCK
            if first >= rows:
                return
            for i in range(first, min(first + BLOCK, rows)):
                for h in range(heads):
                    mean = zero
                    for e in range(indptr[i], indptr[i + 1]):
                        mean += weights[e, h] * gradient[e, h]
                    for e in range(indptr[i], indptr[i + 1]):
                        out[e, h] = weights[e, h] * (gradient[e, h] - mean)

    scalar = types.float32 if dtype == "float32" else types.float64
    whole = types.Array(types.int64, 1, "C", readonly=True)

    def given(*ranks: int) -> list[Any]:
        return [types.Array(scalar, rank, "C", readonly=True) for rank in ranks]

    def written(*ranks: int) -> list[Any]:
        return [types.Array(scalar, rank, "C") for rank in ranks]

    def kernel(function: Callable[..., Any], *arguments: Any) -> Kernel:
        return Kernel(function, types.void(*arguments, counter_type()), dtype)

    return SimpleNamespace(
        weighted_sum=kernel(weighted_sum, whole, whole, whole, *given(2, 3, 3), *written(3)),
        products=kernel(products, whole, whole, *given(3, 3, 3), *written(2)),
        additive=kernel(additive, whole, whole, *given(3, 3, 3, 2, 1), *written(2)),
        additive_backward=kernel(
            additive_backward, whole, whole, whole, *given(3, 3, 3, 2, 1, 2), *written(3, 3, 3)
        ),
        softmax=kernel(softmax, whole, *given(2), *written(2, 2)),
        softmax_backward=kernel(softmax_backward, whole, *given(2, 2), *written(2)),
    )  # fmt: skip


_NO_ORDER = np.zeros(0, np.int64)


class Edges:
    """A sparse graph in both directions.

    Parameters
    ----------
    indptr, indices
        The rows, int64: the keys of each query.
    keys
        Number of keys.
    limit
        Threads to use; all by default.
    """

    def __init__(self, indptr: Array, indices: Array, keys: int, limit: int | None = None) -> None:
        self.indptr = np.ascontiguousarray(indptr, np.int64)
        self.indices = np.ascontiguousarray(indices, np.int64)
        self.queries, self.keys, self.limit = len(self.indptr) - 1, keys, limit

    def __len__(self) -> int:
        return len(self.indices)

    @functools.cached_property
    def rows(self) -> Array:
        """The query of each edge."""
        return np.repeat(np.arange(self.queries), np.diff(self.indptr))

    @functools.cached_property
    def transposed(self) -> tuple[Array, Array, Array]:
        """`indptr` and `indices` by key, and which edge each is."""
        order = np.argsort(self.indices, kind="stable")
        counts = np.bincount(self.indices, minlength=self.keys)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return indptr, self.rows[order], order

    def _run(self, name: str, arguments: tuple[Any, ...], rows: int, width: int) -> None:
        out = arguments[-1]
        work = (len(self) + rows) * width
        kernel = getattr(edge_kernels(out.dtype.name), name)
        workers = 1 if work < _SMALL else min(self.limit or threads.limit(), threads.limit())
        threads.run(kernel.compile(), arguments, -(-rows // BLOCK), workers)

    def sum(self, weights: Array, value: Array, edge_value: Array | None = None) -> Array:
        """Σⱼ w (v + e) for each query, (queries, heads, size)."""
        out = np.empty((self.queries, *value.shape[1:]), value.dtype)
        edge = _or_none(edge_value, value.dtype)
        arguments = (self.indptr, self.indices, _NO_ORDER, weights, value, edge, out)
        self._run("weighted_sum", arguments, self.queries, value[0].size)
        return out

    def sum_back(self, weights: Array, value: Array) -> Array:
        """Σᵢ w v for each key: the transposed of `sum`."""
        out = np.empty((self.keys, *value.shape[1:]), value.dtype)
        arguments = (*self.transposed, weights, value, _or_none(None, value.dtype), out)
        self._run("weighted_sum", arguments, self.keys, value[0].size)
        return out

    def products(self, left: Array, right: Array, edge: Array | None = None) -> Array:
        """l·(r + e) for each edge."""
        out = np.empty((len(self), left.shape[1]), left.dtype)
        arguments = (self.indptr, self.indices, left, right, _or_none(edge, left.dtype), out)
        self._run("products", arguments, self.queries, left[0].size)
        return out

    def additive(
        self, left: Array, right: Array, edge: Array | None, attention: Array, slope: float
    ) -> Array:
        """a·leaky(l + r + e) for each edge, where `slope` is that of negative numbers."""
        out = np.empty((len(self), left.shape[1]), left.dtype)
        bend = np.full(1, slope, left.dtype)
        edge = _or_none(edge, left.dtype)
        arguments = (self.indptr, self.indices, left, right, edge, attention, bend, out)
        self._run("additive", arguments, self.queries, left[0].size)
        return out

    def additive_backward(
        self, left: Array, right: Array, edge: Array | None, attention: Array, slope: float,
        gradient: Array,
    ) -> tuple[Array, Array, Array | None, Array]:  # fmt: skip
        """Gradients by left, right, edge and attention."""
        dtype = left.dtype
        none = _or_none(None, dtype)
        bend = np.full(1, slope, dtype)
        d_left, d_right = np.empty_like(left), np.empty_like(right)
        d_edge = none if edge is None else np.empty_like(edge)
        d_attention = np.zeros((-(-self.queries // BLOCK), *attention.shape), dtype)
        given = none if edge is None else edge
        width = left[0].size
        one = (left, right, given, attention, bend, gradient, d_left, d_edge, d_attention)
        arguments = (self.indptr, self.indices, _NO_ORDER, *one)
        self._run("additive_backward", arguments, self.queries, width)
        other = (right, left, given, attention, bend, gradient, d_right, none, none)
        self._run("additive_backward", (*self.transposed, *other), self.keys, width)
        return d_left, d_right, None if edge is None else d_edge, d_attention.sum(axis=0)

    def softmax(self, scores: Array) -> tuple[Array, Array]:
        """Weights of each query's edges, and the log-sum-exp (queries, heads); −∞ where none."""
        weights = np.empty_like(scores)
        log_sum = np.empty((self.queries, scores.shape[1]), scores.dtype)
        arguments = (self.indptr, scores, weights, log_sum)
        self._run("softmax", arguments, self.queries, 4 * scores.shape[1])
        return weights, log_sum

    def softmax_backward(self, weights: Array, gradient: Array) -> Array:
        """The gradient by the scores from that by the weights."""
        out = np.empty_like(weights)
        arguments = (self.indptr, weights, gradient, out)
        self._run("softmax_backward", arguments, self.queries, 4 * weights.shape[1])
        return out


def _or_none(array: Array | None, dtype: np.dtype[Any]) -> Array:
    return np.zeros((0, 0, 0), dtype) if array is None else array
