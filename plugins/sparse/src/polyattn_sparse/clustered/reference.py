"""What `lsh`, `routing` and `clustered` compute, in plain NumPy float64: all pairs in memory.

Functions take (batch, heads, tokens, size) arrays, keys and values with as many heads or fewer.
`mask` holds all pairs that may be computed, that of the configuration included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.reference import repeat_heads

Array = npt.NDArray[np.float64]


def _softmax(scores: Array, visible: Any) -> Array:
    """Rows in which nothing is visible are 0."""
    scores = np.where(visible, scores, -np.inf)
    most = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights / np.where(total == 0, 1, total))


def lsh(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """Soft-max over the pairs that share a bucket in any round."""
    buckets = config.buckets or default_buckets(key.shape[2])
    key, value = repeat_heads(query, key, value)
    own, theirs = (hashed(x, buckets, config.rounds, config.seed) for x in (query, key))
    visible = np.zeros((*query.shape[:3], key.shape[2]), bool)
    for mine, others in zip(own, theirs, strict=True):
        visible |= mine[..., :, None] == others[..., None, :]
    scale = config.scale or query.shape[-1] ** -0.5
    scores = scale * query @ key.swapaxes(-1, -2)
    return _softmax(scores, visible if mask is None else visible & mask) @ value


def routing(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None, centroids: Any = None,
) -> Array:  # fmt: skip
    """Soft-max over the pairs that are nearest to one centroid."""
    heads, size = query.shape[1], query.shape[3]
    if centroids is None:
        centroids = default_centroids(heads, config.clusters, size, config.seed)
    key, value = repeat_heads(query, key, value)
    own, theirs = (nearest(x, np.asarray(centroids)) for x in (query, key))
    visible = own[..., :, None] == theirs[..., None, :]
    scores = (config.scale or size**-0.5) * query @ key.swapaxes(-1, -2)
    return _softmax(scores, visible if mask is None else visible & mask) @ value


def clustered(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """Weights of the mean of a query's cluster; its own for the keys that weigh most in these."""
    key, value = repeat_heads(query, key, value)
    scale = config.scale or query.shape[-1] ** -0.5
    out = np.zeros((*query.shape[:3], value.shape[3]))
    for b, h in np.ndindex(query.shape[:2]):
        seen = np.ones(key.shape[2], bool) if mask is None else mask[b, h % mask.shape[1], 0]
        if not seen.any():
            continue
        q, k, v = query[b, h], key[b, h, seen], value[b, h, seen]
        chosen = clusters_of(q, config.clusters, config.iterations)
        for c in np.unique(chosen):
            rows = chosen == c
            shared = _softmax(scale * q[rows].mean(axis=0) @ k.T, True)
            top = np.argsort(shared)[len(k) - min(config.top, len(k)) :]
            weights = np.tile(shared, (rows.sum(), 1))
            if len(top):
                weights[:, top] = shared[top].sum() * _softmax(scale * q[rows] @ k[top].T, True)
            out[b, h, rows] = weights @ v
    return out


# ---- who belongs together: in float64 always, so that it hangs on no rounding ----


def default_buckets(keys: int) -> int:
    """About 128 keys share one; even, or 1."""
    return max(1, 2 * round(keys / 256))


def hashed(x: Any, buckets: int, rounds: int, seed: int) -> list[Any]:
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


def default_centroids(heads: int, clusters: int, size: int, seed: int) -> Any:
    """Random unit vectors (heads, clusters, size)."""
    drawn = np.random.default_rng(seed).standard_normal((heads, clusters, size))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True))


def nearest(x: Any, centroids: Any) -> Any:
    """Which of the centroids (…, clusters, size) points most like each of x (…, tokens, size)."""
    with np.errstate(invalid="ignore", over="ignore"):  # what is hidden may be infinite
        along = x.astype(np.float64) @ centroids.swapaxes(-1, -2)
    return np.asarray(along.argmax(axis=-1))


def clusters_of(x: Any, count: int, iterations: int) -> Any:
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


def _closest(x: Any, centres: Any) -> Any:
    return np.asarray((x @ centres.T - (centres * centres).sum(axis=1) / 2).argmax(axis=1))
