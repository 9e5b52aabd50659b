"""k-means with mass, for a batch of heads at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_core.products import matmul

_SAMPLE = 32  # keys for each centroid among which seeds are drawn


@dataclass(frozen=True, slots=True)
class Centroids:
    """Clusters of the keys of each head."""

    center: Array
    """(batch, heads, centroids, size): the mean of each cluster's keys."""
    count: Array
    """(batch, heads, centroids): how many keys it has; 0 where there are fewer distinct keys."""
    label: Array
    """(batch, heads, keys): each key's cluster."""
    visible: Array
    """(batch, keys): keys that count."""

    @property
    def mass(self) -> Array:
        """(batch, heads, centroids): each cluster's share of the keys; sums to 1."""
        return np.asarray(self.count / np.maximum(self.count.sum(axis=-1, keepdims=True), 1))

    def means(self, array: Array) -> Array:
        """Means over clusters of (batch, heads, keys, …) arrays."""
        return _sums(self.label, self.visible, array, self.count.shape[-1]) / self._safe_count

    def pull_back(self, gradient: Array) -> Array:
        """The pullback of `means`: each key has a part of its cluster's gradient."""
        shared = gradient / self._safe_count
        spread = np.take_along_axis(shared, self.label[..., None], axis=2)
        return np.where(self.visible[:, None, :, None], spread, gradient.dtype.type(0))

    @property
    def _safe_count(self) -> Array:
        return np.maximum(self.count, 1)[..., None]


def cluster(
    keys: Array, centroids: int, *, rounds: int = 5, seed: int = 0, visible: Array | None = None
) -> Centroids:
    """Cluster (batch, heads, keys, size) into at most `centroids` clusters a head.

    Seeds are drawn as in k-means++, each with a probability that goes with its squared distance
    from those before, among a sample of the keys that is spread evenly along a random direction:
    results depend on the set of keys, not on their order. Then `rounds` of k-means. O(n M d) time
    a round, O(n M) memory.

    Raises
    ------
    ShapeError, ArgumentError
        Where keys have other axes, or `centroids` is not at least 1.

    References
    ----------
    Arthur, Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007.
    """
    if keys.ndim != 4:
        raise ShapeError("keys", keys.shape, "4 axes: (batch, heads, keys, size)")
    if centroids < 1:
        raise ArgumentError("centroids", centroids, "at least 1")
    batch, _, count, _ = keys.shape
    seen = np.ones((batch, count), bool) if visible is None else visible
    keys = np.where(seen[:, None, :, None], keys, keys.dtype.type(0))
    center = _seeds(keys, seen, min(centroids, count), seed)
    label = _nearest(keys, center)
    for _ in range(rounds):
        center = _updated(keys, seen, label, center)
        moved = _nearest(keys, center)
        if (moved == label).all():
            break
        label = moved
    return Centroids(_updated(keys, seen, label, center), _counts(label, seen, center), label, seen)


def _seeds(keys: Array, seen: Array, count: int, seed: int) -> Array:
    """(batch, heads, count, size): seeds as in k-means++, among a sample."""
    batch, heads, tokens, size = keys.shape
    rng = np.random.default_rng(seed)
    direction = np.asarray(rng.standard_normal(size), keys.dtype)
    place = np.where(seen[:, None, :], keys @ direction, np.inf)
    order = np.argsort(place, axis=-1, kind="stable")
    sampled = min(tokens, _SAMPLE * count)
    visible = seen.sum(axis=-1)[:, None, None]
    rank = ((np.arange(sampled) + 0.5) * visible / sampled).astype(np.int64)
    rank = np.broadcast_to(rank, (batch, heads, sampled))
    chosen = np.take_along_axis(order, rank, axis=-1)
    sample = np.take_along_axis(keys, chosen[..., None], axis=2)
    squares = np.einsum("bhnd,bhnd->bhn", sample, sample)
    draws = rng.random(count)
    pick = np.full((batch, heads, 1), int(draws[0] * sampled))
    distance = np.full((batch, heads, sampled), np.inf)
    found = np.empty((batch, heads, count, size), keys.dtype)
    for c in range(count):
        new = np.take_along_axis(sample, pick[..., None], axis=2)
        found[:, :, c] = new[:, :, 0]
        new_square = np.take_along_axis(squares, pick, axis=2)
        product = (sample @ new.swapaxes(-1, -2))[..., 0]
        distance = np.minimum(distance, np.maximum(squares + new_square - 2 * product, 0))
        if c + 1 < count:
            total = np.cumsum(distance, axis=-1)
            pick = (total < draws[c + 1] * total[..., -1:]).sum(axis=-1, keepdims=True)
            pick = np.minimum(pick, sampled - 1)
    return found


def _nearest(keys: Array, center: Array) -> Array:
    """The nearest centroid of each key; the first of several."""
    half = np.einsum("bhcd,bhcd->bhc", center, center) / 2
    scores = matmul(keys, center.swapaxes(-1, -2))
    scores -= half[:, :, None]
    return np.asarray(scores.argmax(axis=-1))


def _updated(keys: Array, seen: Array, label: Array, center: Array) -> Array:
    """Means of the clusters; an empty one stays."""
    count = _counts(label, seen, center)[..., None]
    sums = _sums(label, seen, keys, center.shape[2])
    return np.asarray(np.where(count > 0, sums / np.maximum(count, 1), center), keys.dtype)


def _counts(label: Array, seen: Array, center: Array) -> Array:
    batch, heads, clusters = center.shape[:3]
    place = label + clusters * np.arange(batch * heads).reshape(batch, heads, 1)
    weights = np.broadcast_to(seen[:, None], label.shape).astype(np.float64)
    counts = np.bincount(place.ravel(), weights.ravel(), batch * heads * clusters)
    return np.asarray(counts.reshape(batch, heads, clusters), center.dtype)


def _sums(label: Array, seen: Array, array: Array, clusters: int) -> Array:
    """Sums over clusters, as a product with the matrix of who belongs where."""
    member = label[:, :, None, :] == np.arange(clusters)[:, None]
    member &= seen[:, None, None]
    return matmul(member.astype(array.dtype), array)
