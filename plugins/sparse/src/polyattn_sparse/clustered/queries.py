"""The mechanism `clustered`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polyattn_core.arrays import Array

from ..low_rank.base import Back, SetMechanism
from .config import ClusteredConfig
from .reference import clusters_of


class Clustered(SetMechanism):
    """Clustered attention: queries that are alike share the weights of their mean.

        A = softmax(scale · q̄ kᵀ),   oᵢ = m_c softmax_T(scale · qᵢ kᵀ) v_T + Σ_{j∉T} A_cj vⱼ

    where q̄ are means of clusters of the queries of a head, c is the cluster of query i, T the
    `top` keys of largest A_c and m_c their mass: within T each query has weights of its own, and
    the others are those of the mean. With `top=0` all are; with one cluster for each query, or all
    keys in T, it is soft-max attention. Clusters are those of Lloyd's algorithm in Euclidean
    distance, where the paper hashes first. Gradients hold clusters and T fixed.

    O(n d (clusters + top)) time, O(n (d + clusters)) memory for one head at a time and the
    gradient's. Shapes and errors are those of :meth:`polyattn_core.mechanism.Mechanism.attend`.
    Padding is the mask. Products are those of NumPy's BLAS, which has its own threads. Calls from
    several threads are safe.

    References
    ----------
    Vyas et al., Fast transformers with clustered attention, arXiv:2007.04825.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((100, 16))
    >>> each = pa.create("clustered", dim=16, clusters=100, top=0)
    >>> np.allclose(each(x), pa.create("flash", dim=16)(x))
    True
    """

    config: ClusteredConfig

    def _set(self, query: Array, key: Array, value: Array) -> tuple[Array, Back]:
        out = np.empty((*query.shape[:3], value.shape[3]), query.dtype)
        backs: dict[tuple[int, ...], Callable[[Array], tuple[Array, Array, Array]]] = {}
        for place in np.ndindex(query.shape[:2]):
            head = _Head(query[place], key[place], value[place], self.config, self._scale())
            out[place] = head.forward()
            backs[place] = head.backward

        def back(gradient: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
            found = [np.empty_like(x) for x in (query, key, value)]
            for place, own in backs.items():
                for array, part in zip(found, own(gradient[place]), strict=True):
                    array[place] = part
            return found[0], found[1], found[2], {}

        return out, back


@dataclass(slots=True)
class _Top:
    """Own weights of the queries of one cluster."""

    rows: Array
    keys: Array
    weights: Array
    found: Array


class _Head:
    """One head: arrays (tokens, size)."""

    def __init__(
        self, query: Array, key: Array, value: Array, config: ClusteredConfig, scale: float
    ) -> None:
        self.query, self.key, self.value = query, key, value
        self.scale = query.dtype.type(scale)
        self.chosen = clusters_of(query, config.clusters, config.iterations)
        # Clusters that became empty are left out.
        _, self.chosen, self.sizes = np.unique(self.chosen, return_inverse=True, return_counts=True)
        self.order = np.argsort(self.chosen, kind="stable")
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.top = min(config.top, len(key))
        self.parts: list[_Top] = []

    def _sums(self, rows: Array) -> Array:
        """Sums over the queries of each cluster."""
        return np.add.reduceat(rows[self.order], self.starts, axis=0)

    def forward(self) -> Array:
        sizes = self.sizes.astype(self.query.dtype)[:, None]
        self.means = self._sums(self.query) / sizes
        scores = self.scale * (self.means @ self.key.T)
        scores -= scores.max(axis=1, keepdims=True)
        self.shared = np.exp(scores, out=scores)
        self.shared /= self.shared.sum(axis=1, keepdims=True)
        if not self.top:
            return np.asarray((self.shared @ self.value)[self.chosen])
        best = np.argpartition(self.shared, -self.top, axis=1)[:, -self.top :]
        self.mass = np.take_along_axis(self.shared, best, axis=1).sum(axis=1)
        self.rest = self.shared.copy()
        np.put_along_axis(self.rest, best, 0, axis=1)
        out = np.asarray((self.rest @ self.value)[self.chosen])
        for c, (keys, rows) in enumerate(
            zip(best, np.split(self.order, self.starts[1:]), strict=True)
        ):
            own = self.scale * (self.query[rows] @ self.key[keys].T)
            own -= own.max(axis=1, keepdims=True)
            weights = np.exp(own, out=own)
            weights /= weights.sum(axis=1, keepdims=True)
            found = weights @ self.value[keys]
            out[rows] += self.mass[c] * found
            self.parts.append(_Top(rows, keys, weights, found))
        return out

    def backward(self, gradient: Array) -> tuple[Array, Array, Array]:
        by_query = np.zeros_like(self.query)
        by_key, by_value = np.zeros_like(self.key), np.zeros_like(self.value)
        by_rest = self._sums(gradient)
        by_shared = by_rest @ self.value.T
        by_value += (self.rest if self.top else self.shared).T @ by_rest
        for c, part in enumerate(self.parts):
            own = gradient[part.rows]
            by_shared[c, part.keys] = (own * part.found).sum()
            own = self.mass[c] * own
            by_weights = own @ self.value[part.keys].T
            by_value[part.keys] += part.weights.T @ own
            along = (by_weights * part.weights).sum(axis=1, keepdims=True)
            by_scores = self.scale * part.weights * (by_weights - along)
            by_query[part.rows] = by_scores @ self.key[part.keys]
            by_key[part.keys] += by_scores.T @ self.query[part.rows]
        along = (by_shared * self.shared).sum(axis=1, keepdims=True)
        by_scores = self.scale * self.shared * (by_shared - along)
        by_key += by_scores.T @ self.means
        by_means = by_scores @ self.key / self.sizes.astype(self.query.dtype)[:, None]
        return by_query + by_means[self.chosen], by_key, by_value
