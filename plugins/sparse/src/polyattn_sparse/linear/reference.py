"""What `linear` and `favor` compute, in plain NumPy float64: all pairs in memory.

Functions take (batch, heads, tokens, size) arrays, keys and values with as many heads or fewer.
`mask` holds all pairs that may be computed, that of the configuration included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.reference import repeat_heads

Array = npt.NDArray[np.float64]


def linear_attention(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """Σ φ(q)·φ(k) v / (Σ φ(q)·φ(k) + ε) over the visible pairs."""
    key, value = repeat_heads(query, key, value)

    def features(x: Array) -> Array:
        x = config.scale * x
        positive = np.maximum(x, 0)
        return positive + np.exp(np.minimum(x, 0)) if config.features == "elu+1" else positive

    weights = features(query) @ features(key).swapaxes(-1, -2)
    if mask is not None:
        weights = np.where(mask, weights, 0)
    total = weights.sum(axis=-1, keepdims=True)
    return np.where(
        total == 0, 0, weights @ value / np.where(total == 0, 1, total + config.epsilon)
    )


def favor_attention(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """Σ φ(q)·φ(k) v / Σ φ(q)·φ(k) over the visible pairs, by logarithms throughout."""
    key, value = repeat_heads(query, key, value)
    size = query.shape[-1]
    count = config.features or default_features(size)
    projection = random_projection(size, count, config.seed, config.orthogonal)
    if config.kind == "hyperbolic":
        projection = np.concatenate((projection, -projection))
    root = math.sqrt(config.scale if config.scale is not None else size**-0.5)

    def logarithms(x: Array) -> Array:
        x = root * x
        norms = (x * x).sum(axis=-1, keepdims=True)
        return np.asarray(x @ projection.T - norms / 2 - math.log(len(projection)) / 2)

    own, theirs = logarithms(query), logarithms(key)
    scores = np.stack(
        [np.logaddexp.reduce(own[..., i, None, :] + theirs, axis=-1) for i in range(own.shape[-2])],
        axis=-2,
    )
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    most = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights @ value / np.where(total == 0, 1, total))


def default_features(size: int) -> int:
    """d·ln d projections, rounded up to a multiple of 16, at least 16.

    How many a given accuracy takes grows like d·ln d, and not with the number of tokens
    (arXiv:2009.14794).
    """
    return max(16, math.ceil(size * math.log(size) / 16) * 16)


def random_projection(size: int, count: int, seed: int, orthogonal: bool) -> Array:
    """Projections (count, size), each normally distributed; orthogonal within blocks of `size`.

    The directions of a block are those of a uniformly random rotation, the lengths those of normal
    vectors of their own: taken by itself, each row is distributed like a normal vector.
    """
    rng = np.random.default_rng(seed)
    if not orthogonal:
        return rng.standard_normal((count, size))
    blocks = []
    for _ in range(-(-count // size)):
        rotation, triangle = np.linalg.qr(rng.standard_normal((size, size)))
        # QR fixes signs by its algorithm; those of the triangle make the rotation uniform.
        blocks.append((rotation * np.sign(np.diag(triangle))).T)
    lengths = np.linalg.norm(rng.standard_normal((count, size)), axis=1)
    return np.asarray(np.concatenate(blocks)[:count] * lengths[:, None])


def cosformer(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """Σ relu(q)·relu(k) cos(π(i − j)/2M) v / (Σ … + ε) over the visible pairs."""
    key, value = repeat_heads(query, key, value)
    queries, keys = query.shape[-2], key.shape[-2]
    distance = np.arange(queries)[:, None] + keys - queries - np.arange(keys)
    horizon = config.horizon or max(queries, keys)
    weights = np.maximum(query, 0) @ np.maximum(key, 0).swapaxes(-1, -2)
    weights = weights * np.cos(math.pi / 2 * distance / horizon)
    if mask is not None:
        weights = np.where(mask, weights, 0)
    total = weights.sum(axis=-1, keepdims=True)
    return np.where(
        total == 0, 0, weights @ value / np.where(total == 0, 1, total + config.epsilon)
    )
