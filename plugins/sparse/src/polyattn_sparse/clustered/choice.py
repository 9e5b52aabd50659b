"""Who belongs together: buckets by random directions or centroids, clusters by Lloyd's algorithm.

In float64 whatever is computed in, so that the choice does not hang on rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def default_buckets(keys: int) -> int:
    """About 128 keys share one; even, or 1."""
    return max(1, 2 * round(keys / 256))


def hashed(x: Array, buckets: int, rounds: int, seed: int) -> list[Array]:
    """Buckets (…, tokens) in each round: the nearest of random directions and their opposites."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(rounds):
        directions = rng.standard_normal((x.shape[-1], max(1, buckets // 2)))
        if buckets == 1:
            found.append(np.zeros(x.shape[:-1], np.int64))
            continue
        with np.errstate(invalid="ignore", over="ignore"):  # what is hidden may be infinite
            along = x.astype(np.float64) @ directions
        longest = abs(along).argmax(axis=-1)
        opposite = np.take_along_axis(along, longest[..., None], axis=-1)[..., 0] < 0
        found.append(longest + opposite * (buckets // 2))
    return found


def default_centroids(heads: int, clusters: int, size: int, seed: int) -> Array:
    """Random unit vectors (heads, clusters, size)."""
    drawn = np.random.default_rng(seed).standard_normal((heads, clusters, size))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True))


def nearest(x: Array, centroids: Array) -> Array:
    """Which of the centroids (…, clusters, size) points most like each of x (…, tokens, size)."""
    with np.errstate(invalid="ignore", over="ignore"):  # what is hidden may be infinite
        along = x.astype(np.float64) @ centroids.swapaxes(-1, -2)
    return np.asarray(along.argmax(axis=-1))


def clusters_of(x: Array, count: int, iterations: int) -> Array:
    """The cluster of each row of (tokens, size), by Lloyd's algorithm in Euclidean distance."""
    x = x.astype(np.float64)
    count = min(count, len(x))
    centres = x[np.arange(count) * len(x) // count]
    chosen = _closest(x, centres)
    for _ in range(iterations):
        sizes = np.bincount(chosen, minlength=count)
        order = np.argsort(chosen, kind="stable")
        some = np.flatnonzero(sizes)
        starts = (np.cumsum(sizes) - sizes)[some]
        centres[some] = np.add.reduceat(x[order], starts, axis=0) / sizes[some, None]
        following = _closest(x, centres)
        if (following == chosen).all():
            break
        chosen = following
    return chosen


def _closest(x: Array, centres: Array) -> Array:
    return np.asarray((x @ centres.T - (centres * centres).sum(axis=1) / 2).argmax(axis=1))
