"""Miners: which candidates serve as negatives of which query.

A miner is called with queries (n, d) and candidates (m, d) and returns indices of candidates
(n, count), −1 where a query has fewer. Time O(n m (d + log m)), memory O(n m).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, ShapeError

from ._checks import alike, real, vectors, whole


class Miner(ABC):
    """Base of miners.

    Parameters
    ----------
    count
        Negatives of a query.
    rng
        A seed or generator; :attr:`rng` goes on drawing with each call, so a checkpoint keeps it.
    """

    def __init__(self, *, count: int = 1, rng: int | np.random.Generator = 0) -> None:
        self.count = whole("count", count, 1)
        if not isinstance(rng, np.random.Generator):
            rng = np.random.default_rng(whole("rng", rng))
        self.rng = rng

    def __call__(self, query: Any, candidates: Any, *, positive: Any) -> Array:
        """Indices (n, count) of negatives, each at most once for a query.

        Parameters
        ----------
        query
            (n, d)
        candidates
            (m, d)
        positive
            (n, m) booleans: candidates that belong to the query and are never its negatives; or
            (n,) indices of the one candidate that does.
        """
        q, c = vectors("query", query, 2), vectors("candidates", candidates, 2)
        alike(query=q, candidates=c)
        if q.ndim != 2 or c.ndim != 2 or q.shape[1] != c.shape[1]:
            shapes = f"{q.shape}, {c.shape}"
            raise ShapeError("query, candidates", shapes, "(n, d) and (m, d)")
        own = _positives(positive, len(q), len(c))
        return self._mine(q.astype(np.float64), c.astype(np.float64), own)

    @abstractmethod
    def _mine(self, query: Array, candidates: Array, positive: Array) -> Array: ...

    def _smallest(self, order: Array) -> Array:
        """Indices of the `count` smallest numbers of each row, in their order; none of infinity."""
        count = min(self.count, order.shape[1])
        found = np.argpartition(order, count - 1, axis=1)[:, :count]
        ranks = np.argsort(np.take_along_axis(order, found, 1), axis=1, kind="stable")
        found = np.take_along_axis(found, ranks, 1)
        found = np.where(np.take_along_axis(order, found, 1) < np.inf, found, -1)
        padding = ((0, 0), (0, self.count - count))
        return np.asarray(np.pad(found, padding, constant_values=-1))


def _positives(positive: Any, n: int, m: int) -> Array:
    found = np.asarray(positive)
    if found.dtype == np.bool_ and found.shape == (n, m):
        return found
    if found.dtype.kind in "iu" and found.shape == (n,):
        if ((found < 0) | (found >= m)).any():
            raise ArgumentError("positive", found.tolist(), f"indices from 0 to {m - 1}")
        return np.asarray(found[:, None] == np.arange(m))
    accepted = f"booleans {(n, m)} or whole numbers {(n,)}"
    raise ShapeError("positive", f"{found.dtype} {found.shape}", accepted)


def _distances(x: Array, y: Array) -> Array:
    squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * (x @ y.T)
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


class RandomMiner(Miner):
    """Any candidates but the positives, all equally likely."""

    def _mine(self, query: Array, candidates: Array, positive: Array) -> Array:
        return self._smallest(np.where(positive, np.inf, self.rng.random(positive.shape)))


class HardMiner(Miner):
    """The nearest candidates that are not positives, nearest first."""

    def _mine(self, query: Array, candidates: Array, positive: Array) -> Array:
        return self._smallest(np.where(positive, np.inf, _distances(query, candidates)))


class SemiHardMiner(Miner):
    """Random ones of those beyond the farthest positive, but by less than a margin.

    D(q, p) < D(q, n) < D(q, p) + margin. A query without any gets −1.

    References
    ----------
    Schroff et al., FaceNet, arXiv:1503.03832.
    """

    def __init__(
        self, *, margin: float = 0.2, count: int = 1, rng: int | np.random.Generator = 0
    ) -> None:
        super().__init__(count=count, rng=rng)
        self.margin = real("margin", margin, above=0)

    def _mine(self, query: Array, candidates: Array, positive: Array) -> Array:
        if not positive.any(axis=1).all():
            place = int(np.argmin(positive.any(axis=1)))
            raise ArgumentError("positive", f"none for query {place}", "a positive for each query")
        distance = _distances(query, candidates)
        far = np.where(positive, distance, -np.inf).max(axis=1, keepdims=True)
        fits = ~positive & (distance > far) & (distance < far + self.margin)
        return self._smallest(np.where(fits, self.rng.random(positive.shape), np.inf))


class DistanceWeightedMiner(Miner):
    """Draws candidates so that all distances are equally likely, not the most frequent one.

    On the unit sphere in R^d, where vectors are put first, distances D of random points have the
    density q(D) ∝ D^(d − 2) (1 − D²/4)^((d − 3)/2). Weights are 1/q(max(D, cutoff)), and 0 from
    distance `farthest` on.

    References
    ----------
    Wu et al., Sampling matters in deep embedding learning, arXiv:1706.07567.
    """

    def __init__(
        self,
        *,
        cutoff: float = 0.5,
        farthest: float = 1.4,
        count: int = 1,
        rng: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(count=count, rng=rng)
        self.farthest = real("farthest", farthest, above=0, below=2)
        self.cutoff = real("cutoff", cutoff, above=0, below=self.farthest)

    def log_weights(self, distances: Any, dim: int) -> Array:
        """log 1/q of distances, up to a constant; −∞ where nothing is drawn."""
        d = np.asarray(distances, np.float64)
        near = np.clip(d, self.cutoff, self.farthest)
        logs = (2 - dim) * np.log(near) + (3 - dim) / 2 * np.log1p(-np.square(near) / 4)
        return np.asarray(np.where(d < self.farthest, logs, -np.inf))

    def _mine(self, query: Array, candidates: Array, positive: Array) -> Array:
        units = []
        for name, array in (("query", query), ("candidates", candidates)):
            lengths = np.sqrt(np.square(array).sum(1, keepdims=True))
            if not lengths.all():
                raise ArgumentError(name, "a vector of zeros", "vectors that have a direction")
            units.append(array / lengths)
        logs = self.log_weights(_distances(*units), query.shape[1])
        # The largest of log w plus Gumbel noise are a sample without replacement.
        noise = self.rng.gumbel(size=logs.shape)
        return self._smallest(np.where(positive, np.inf, -(logs + noise)))


class InBatchMiner(Miner):
    """All candidates but the positives, in order, up to `count`; of a batch, all others.

    By default as many as there are candidates besides one positive.
    """

    def __init__(self, *, count: int | None = None) -> None:
        super().__init__(count=1 if count is None else count)
        self.all = count is None

    def _mine(self, query: Array, candidates: Array, positive: Array) -> Array:
        if self.all:
            self.count = max(1, len(candidates) - 1)
        places = np.broadcast_to(np.arange(len(candidates), dtype=np.float64), positive.shape)
        return self._smallest(np.where(positive, np.inf, places))


__all__ = [
    "DistanceWeightedMiner",
    "HardMiner",
    "InBatchMiner",
    "Miner",
    "RandomMiner",
    "SemiHardMiner",
]
