"""The weighted graph of the keys: all pairs, streamed, or nearest neighbours, kept sparse.

Arrays are (batch, heads, keys, …). Weights are wᵢⱼ = exp(−‖kᵢ − kⱼ‖²/2σ²) for i ≠ j, without loops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from polyattn_core.arrays import Array

if TYPE_CHECKING:
    from .kernels import Edges

Pairs = Iterable[tuple[Array, Array]]
"""The gradient Σ Y Xᵀ by the weights W."""

_PAIRS = 1 << 15  # of keys, from which the median distance is taken
_SEARCHED = 1 << 22  # products in memory at once during the search for neighbours
_SPARE = 4  # neighbours beyond the k nearest that the search in working precision keeps
_WIDTH = 128  # columns of a gradient that are handled at once


class KeyGraph(ABC):
    """A graph of the keys with Gaussian weights.

    Parameters
    ----------
    key
        (batch, heads, keys, size).
    sigma
        The bandwidth; the median distance of visible keys where None.
    visible
        (batch, keys); the others have no edges.
    threads
        Threads to use.
    """

    def __init__(
        self, key: Array, sigma: float | None, visible: Array | None, threads: int | None
    ) -> None:
        self.visible, self.threads = visible, threads
        self.shape = key.shape[:3]
        if visible is not None:
            key = np.where(visible[:, None, :, None], key, key.dtype.type(0))
        batch, heads = self.shape[:2]
        self._median: list[list[tuple[Array, Array]]] = []
        if sigma is None:
            # Halves of the two distances in the middle, for the gradient: see `_pull_sigma`.
            self.sigma = np.ones((batch, heads, 1, 1), key.dtype)
            for b in range(batch):
                among = np.arange(self.shape[2]) if visible is None else visible[b].nonzero()[0]
                pairs = _pairs(among)
                self._median.append([])
                for h in range(heads):
                    middle, self.sigma[b, h] = _median_distance(key[b, h], pairs)
                    self._median[b].append(middle)
        else:
            self.sigma = np.full((batch, heads, 1, 1), sigma, key.dtype)
        centre = key.mean(axis=2, keepdims=True)
        self.points = np.ascontiguousarray((key - centre) / self.sigma)
        """The keys in units of the bandwidth, around their mean."""
        if visible is not None:
            self.points *= visible[:, None, :, None]

    positive: ClassVar[bool] = False
    """Is the matrix of the weights positive semi-definite once its diagonal is 1 instead of 0?"""

    @abstractmethod
    def weigh(self, x: Array) -> Array:
        """W x for x (batch, heads, keys, width), which is 0 at hidden keys."""

    @abstractmethod
    def _pull_points(self, pairs: Pairs) -> Array:
        """The gradient by the points."""

    @cached_property
    def degrees(self) -> Array:
        """W 1, (batch, heads, keys, 1)."""
        return self.weigh(self.mark(np.ones((*self.shape, 1), self.points.dtype)))

    def mark(self, x: Array) -> Array:
        """`x` with 0 at hidden keys, whatever stands there."""
        if self.visible is None:
            return x
        return np.where(self.visible[:, None, :, None], x, x.dtype.type(0))

    def pull(self, pairs: Pairs) -> Array:
        """The gradient by the keys, that through the bandwidth included."""
        return self._pull_scale(self._pull_points(pairs))

    def _pull_scale(self, d_points: Array) -> Array:
        d_key: Array = d_points / self.sigma
        if self._median:
            d_sigma = -(d_points * self.points).sum(axis=(2, 3)) / self.sigma[..., 0, 0]
            self._pull_sigma(d_key, d_sigma)
        return d_key

    def _pull_sigma(self, d_key: Array, d_sigma: Array) -> None:
        for b, row in enumerate(self._median):
            for h, (i, j) in enumerate(row):
                between = self.points[b, h, i] - self.points[b, h, j]
                length = np.sqrt((between**2).sum(axis=-1, keepdims=True))
                step = np.divide(between, length, out=np.zeros_like(between), where=length > 0)
                step *= d_sigma[b, h] / max(len(i), 1)
                np.add.at(d_key[b, h], i, step)
                np.add.at(d_key[b, h], j, -step)


def _pairs(among: Array) -> tuple[Array, Array]:
    """All pairs of these, or a sample: the same for the same number of keys."""
    count = len(among)
    if count * (count - 1) // 2 <= _PAIRS:
        i, j = np.triu_indices(count, 1)
    else:
        rng = np.random.default_rng(count)
        i = rng.integers(0, count, _PAIRS)
        j = (i + rng.integers(1, count, _PAIRS)) % count
    return among[i], among[j]


def _median_distance(key: Array, pairs: tuple[Array, Array]) -> tuple[tuple[Array, Array], float]:
    """The pair or two pairs in the middle, and their mean distance; 1 where that is 0."""
    i, j = pairs
    if not len(i):
        return (i, j), 1.0
    distances = np.sqrt(((key[i] - key[j]) ** 2).sum(axis=-1))
    places = sorted({(len(i) - 1) // 2, len(i) // 2})
    middle = np.argpartition(distances, places)[places]
    median = float(distances[middle].mean())
    return (i[middle], j[middle]), median if median != 0 else 1.0


class CompleteGraph(KeyGraph):
    """All pairs. Weights are computed in tiles and never stored: O(n² d) time, O(n d) memory."""

    positive = True  # the Gram matrix of a Gaussian kernel

    def weigh(self, x: Array) -> Array:
        from .kernels import engine, gaussian

        return self.mark(engine.forward(gaussian(self.points, x, self.threads)).out)

    def _pull_points(self, pairs: Pairs) -> Array:
        from .kernels import gaussian_gradient

        total = np.zeros_like(self.points)
        for gradient, x in _in_columns(pairs):
            total += gaussian_gradient(self.points, gradient, x, self.threads)
        return self.mark(total)


def _in_columns(pairs: Pairs) -> Iterable[tuple[Array, Array]]:
    """The pairs side by side, so that each pass over the weights serves several."""
    waiting: list[tuple[Array, Array]] = []
    width = 0
    for pair in pairs:
        waiting.append(pair)
        width += pair[0].shape[-1]
        if width >= _WIDTH:
            yield _joined(waiting)
            waiting, width = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return (
        np.ascontiguousarray(np.concatenate([y for y, _ in pairs], axis=-1)),
        np.ascontiguousarray(np.concatenate([x for _, x in pairs], axis=-1)),
    )


class NeighbourGraph(KeyGraph):
    """An edge where one of two keys is among the k nearest of the other.

    The search is exact, O(n² d); everything after it is linear in the number of edges.
    """

    def __init__(
        self, key: Array, sigma: float | None, visible: Array | None, threads: int | None, k: int
    ) -> None:
        super().__init__(key, sigma, visible, threads)
        self.edges = self._search(self.mark(key), k)
        points = self.flat(self.points)
        rows, columns = self.edges.rows, self.edges.indices
        self.weights = np.empty((len(rows), 1), points.dtype)
        for first in range(0, len(rows), 1 << 18):
            part = slice(first, first + (1 << 18))
            # From the differences: norms and products would cancel.
            between = points[rows[part], 0] - points[columns[part], 0]
            squares = np.einsum("ed,ed->e", between, between)
            self.weights[part, 0] = np.exp(-0.5 * squares)

    def flat(self, x: Array) -> Array:
        """(batch, heads, keys, width) as (nodes, 1, width): the graphs side by side."""
        return np.ascontiguousarray(x).reshape(-1, 1, x.shape[-1])

    def _search(self, key: Array, k: int) -> Edges:
        from .kernels import Edges, search

        batch, heads, keys = self.shape
        k = min(k, keys - 1)
        block = max(1, min(keys, _SEARCHED // keys))
        # A few more than needed, among which exact distances decide.
        several = min(k + _SPARE, keys - 1)
        neighbours = np.empty((block, max(several, 1)), np.int64)
        codes: list[Array] = []
        for b in range(batch):
            seen = np.ones(keys, bool) if self.visible is None else self.visible[b].copy()
            for h in range(heads):
                points = self.points[b, h]
                norms = np.einsum("nd,nd->n", points, points)
                offset = (b * heads + h) * keys
                for start in range(0, keys if k else 0, block):
                    rows = points[start : start + block]
                    found = neighbours[: len(rows)]
                    search(rows @ points.T, norms, seen, start, found, self.threads)
                    i = np.arange(start, start + len(rows))[:, None]
                    found = _nearest_first(key[b, h], i, found)[:, :k]
                    i, j = np.broadcast_to(i, found.shape)[found >= 0], found[found >= 0]
                    codes += [(offset + i) * keys + j, (offset + j) * keys + i]
        nodes = batch * heads * keys
        code = np.concatenate(codes) if codes else np.zeros(0, np.int64)
        code.sort()
        code = code[np.diff(code, prepend=-1) > 0]
        row, column = np.divmod(code, keys)
        counts = np.bincount(row, minlength=nodes)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        return Edges(indptr, row - row % keys + column, nodes, self.threads)

    def weigh(self, x: Array) -> Array:
        return self.edges.sum(self.weights, self.flat(x)).reshape(x.shape)

    def _pull_points(self, pairs: Pairs) -> Array:
        gradient = np.zeros_like(self.weights)
        for y, x in pairs:
            gradient += self.edges.products(self.flat(y), self.flat(x))
        return self._from_weights(gradient)

    def pull_from_weights(self, gradient: Array) -> Array:
        """The gradient by the keys from that by the weights of the edges."""
        return self._pull_scale(self._from_weights(gradient))

    def _from_weights(self, gradient: Array) -> Array:
        g = gradient * self.weights
        points = self.flat(self.points)
        one = np.ones_like(points[..., :1])
        total = self.edges.sum(g, points) + self.edges.sum_back(g, points)
        total -= (self.edges.sum(g, one) + self.edges.sum_back(g, one)) * points
        return total.reshape(self.points.shape)


def _nearest_first(key: Array, i: Array, neighbours: Array) -> Array:
    """The neighbours (rows, several) of keys `i`, put in order in float64; of equals the first."""
    neighbours = np.sort(neighbours, axis=1)
    squares = np.zeros(neighbours.shape)
    for c in range(neighbours.shape[1]):
        between = key[i[:, 0]].astype(np.float64) - key[neighbours[:, c]]
        squares[:, c] = np.einsum("nd,nd->n", between, between)
    squares[neighbours < 0] = np.inf
    order = np.argsort(squares, axis=1, kind="stable")
    found: Array = np.take_along_axis(neighbours, order, axis=1)
    return found
