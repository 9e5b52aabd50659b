"""What `efficient`, `linformer` and `nystrom` compute, in plain NumPy float64.

Functions take (batch, heads, tokens, size) arrays, keys and values with as many heads or fewer.
`mask` holds all pairs that may be computed: the same keys for every query.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.reference import repeat_heads

Array = npt.NDArray[np.float64]


def _softmax(scores: Array, axis: int) -> Array:
    weights = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return np.asarray(weights / weights.sum(axis=axis, keepdims=True))


def _each(query: Array, key: Array, value: Array, mask: Any, attend: Any) -> Array:
    """`attend` for each batch element and head, with its visible keys."""
    key, value = repeat_heads(query, key, value)
    out = np.zeros((*query.shape[:3], value.shape[3]))
    for b, h in np.ndindex(query.shape[:2]):
        seen = np.ones(key.shape[2], bool) if mask is None else mask[b, h % mask.shape[1], 0]
        if seen.any():
            out[b, h] = attend(query[b, h], key[b, h, seen], value[b, h, seen])
    return out


def efficient(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """softmax(q, channels) (softmax(k, tokens)ᵀ v)."""

    def attend(q: Array, k: Array, v: Array) -> Array:
        mixes = _softmax(config.scale * q, axis=1)
        maps = _softmax(config.scale * k, axis=0)
        return np.asarray((mixes @ maps.T) @ v)

    return _each(query, key, value, mask, attend)


def linformer(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any],
) -> Array:  # fmt: skip
    """softmax(q (E k)ᵀ) F v."""
    scale = config.scale or query.shape[-1] ** -0.5

    def attend(q: Array, k: Array, v: Array) -> Array:
        keys = parameters["keys"][:, : len(k)] @ k
        values = parameters["values"][:, : len(v)] @ v
        return np.asarray(_softmax(scale * q @ keys.T, axis=1) @ values)

    return _each(query, key, value, mask, attend)


def nystrom(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """softmax(q K̃ᵀ) Z softmax(Q̃ kᵀ) v, Z the iterated pseudo-inverse of softmax(Q̃ K̃ᵀ)."""
    scale = config.scale or query.shape[-1] ** -0.5

    def weights(q: Array, k: Array) -> Array:
        return np.asarray(_softmax(scale * q @ k.T, axis=1))

    def means(x: Array, count: int) -> Array:
        bounds = [i * len(x) // count for i in range(count + 1)]
        return np.stack([x[bounds[i] : bounds[i + 1]].mean(axis=0) for i in range(count)])

    def attend(q: Array, k: Array, v: Array) -> Array:
        count = min(config.landmarks, len(q), len(k))
        own, theirs = means(q, count), means(k, count)
        middle, one = weights(own, theirs), np.eye(count)
        z = middle.T / (np.linalg.norm(middle, 1) * np.linalg.norm(middle, np.inf))
        for _ in range(config.iterations):
            az = middle @ z
            z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
        return weights(q, theirs) @ z @ weights(own, k) @ v

    return _each(query, key, value, mask, attend)
