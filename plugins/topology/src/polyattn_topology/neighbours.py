"""The metric `topology-coherence`: do keys that are near each other hang together?"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import ArgumentError, ShapeError

SAMPLE = 256
"""Keys whose neighbours are looked for."""
NEIGHBOURS = 8
"""Neighbours of each, at most; one in forty keys where there are few."""
_BLOCK = 32


class Coherence(NamedTuple):
    """A coherence with the standard error of its sampling; 0 where every key was looked at."""

    value: float
    standard_error: float


def coherence_metric(query: Any, key: Any, value: Any) -> float:
    """Coherence of the neighbourhoods of keys (…, n, d), mean over leading axes, from 0 to 1.

        1 − mean ‖kᵢ − neighbour of kᵢ‖² / mean ‖kᵢ − kⱼ‖²

    how much nearer its neighbours are to a key than any other keys: 1 where keys come in tight
    clusters, repeat, or lie densely on a curve or surface, and towards 0 for noise of many
    dimensions, where no key is much nearer than others. Moving, turning and scaling the keys
    changes nothing, nor does their order. Fewer than three keys, and equal ones, are coherent; keys
    that are not finite do not count.

    Beyond 256 keys the neighbours of 256 are looked for, always the same, among all keys:
    O(256 n d), and :func:`estimate` says the standard error. The gate of `topology-gated` asks
    another question, whether all keys are of one piece: see :class:`WindowCoherence`.

    >>> noise = np.random.default_rng(0).standard_normal((300, 32))
    >>> clusters = np.repeat(10 * np.eye(32)[:6], 50, axis=0) + 0.5 * noise
    >>> coherence_metric(noise, noise, noise) < 0.5 < 0.9 < coherence_metric(noise, clusters, noise)
    True
    """
    return estimate(key).value


def estimate(key: Any, *, sample: int = SAMPLE, seed: int = 0) -> Coherence:
    """`coherence_metric` with its standard error: the deviation between keys over √sample."""
    keys = as_array(key, "key")
    if keys.ndim < 2 or 0 in keys.shape:
        raise ShapeError("key", keys.shape, "(…, keys, size), none of them 0")
    if sample < 2:
        raise ArgumentError("sample", sample, "at least 2 keys")
    heads = keys.reshape(-1, *keys.shape[-2:]).astype(np.float64)
    each = max(NEIGHBOURS, sample // len(heads))
    rng = np.random.default_rng(seed)
    found = [_of_one(head[np.isfinite(head).all(axis=1)], each, rng) for head in heads]
    variance = sum(one.standard_error**2 for one in found)
    mean = sum(one.value for one in found) / len(found)
    return Coherence(mean, math.sqrt(variance) / len(found))


def _of_one(keys: Array, sample: int, rng: np.random.Generator) -> Coherence:
    count = len(keys)
    if count < 3:
        return Coherence(1.0, 0.0)
    keys = keys - keys.mean(axis=0)
    squares = np.einsum("nd,nd->n", keys, keys)
    typical = 2 * squares.sum() / (count - 1)  # of two keys drawn at random
    if typical == 0:
        return Coherence(1.0, 0.0)
    chosen = np.arange(count) if count <= sample else rng.permutation(count)[:sample]
    nearest = min(NEIGHBOURS, max(1, count // 40))
    near = np.empty(len(chosen))
    for start in range(0, len(chosen), _BLOCK):
        rows = chosen[start : start + _BLOCK]
        apart = squares - 2 * (keys[rows] @ keys.T)
        apart[np.arange(len(rows)), rows] = np.inf
        apart = np.partition(apart, nearest - 1, axis=1)[:, :nearest]
        near[start : start + _BLOCK] = np.maximum(apart + squares[rows, None], 0).mean(axis=1)
    share = near / typical
    error = 0.0 if len(chosen) == count else float(share.std() / math.sqrt(len(chosen)))
    return Coherence(float(min(max(1 - share.mean(), 0.0), 1.0)), error)
