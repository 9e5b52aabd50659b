"""The metric `diffusion-energy`: do similar keys carry similar values?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import ArgumentError, ShapeError

from .graph import CompleteGraph

SAMPLE = 1024
"""Tokens up to which every pair counts."""
_GROUPS = 8


class Energy(NamedTuple):
    """An energy with the standard error of its sampling; 0 where nothing was sampled."""

    value: float
    standard_error: float


def diffusion_energy(query: Any, key: Any, value: Any) -> float:
    """How much values differ along the graph of the keys, relative to how much they differ at all.

        (Σ wᵢⱼ ‖vᵢ − vⱼ‖² / Σ wᵢⱼ) / mean ‖vᵢ − vⱼ‖²,   wᵢⱼ = exp(−‖kᵢ − kⱼ‖²/2σ²), i ≠ j

    the normalised Dirichlet energy, with the median distance of the keys as σ: 0 where values are
    constant along edges, 1 where they have nothing to do with the keys, more where like keys carry
    unlike values. Averaged over heads and leading axes; 0 where all values are equal.

    O(n² d) up to 1,024 tokens; beyond, 1,024 tokens are drawn (always the same), and
    :func:`estimate` says the standard error. The query does not matter: metrics take all three.

    Examples
    --------
    >>> import numpy as np
    >>> from polyattn_diffusion.metrics import diffusion_energy
    >>> key = np.random.default_rng(0).standard_normal((200, 4))
    >>> noise = np.random.default_rng(1).standard_normal((200, 4))
    >>> [round(diffusion_energy(key, key, value), 2) for value in (np.ones((200, 1)), key, noise)]
    [0.0, 0.77, 1.01]
    """
    return estimate(key, value).value


def estimate(key: Any, value: Any, *, sample: int = SAMPLE, seed: int = 0) -> Energy:
    """`diffusion_energy` from a sample of tokens, with its standard error.

    The error is that of the mean of eight parts of the sample, each an estimate by itself.
    """
    keys, values = as_array(key, "key"), as_array(value, "value")
    if keys.ndim < 2 or keys.shape[:-1] != values.shape[:-1]:
        shapes = f"{keys.shape}, {values.shape}"
        raise ShapeError("key, value", shapes, "(…, keys, size) and (…, keys, value size)")
    if sample < 4 * _GROUPS:
        raise ArgumentError("sample", sample, f"at least {4 * _GROUPS} tokens")
    count = keys.shape[-2]
    keys = keys.reshape(-1, count, keys.shape[-1]).astype(np.float64)
    values = values.reshape(-1, count, values.shape[-1]).astype(np.float64)
    if count <= sample:
        return Energy(_energy(keys, values), 0.0)
    chosen = np.random.default_rng(seed).permutation(count)[:sample]
    whole = _energy(keys[:, chosen], values[:, chosen])
    parts = [_energy(keys[:, p], values[:, p]) for p in np.array_split(chosen, _GROUPS)]
    return Energy(whole, float(np.std(parts, ddof=1) / np.sqrt(_GROUPS)))


def _energy(key: Array, value: Array) -> float:
    count = key.shape[1]
    if count < 2:
        return 0.0
    graph = CompleteGraph(key[None], None, None, None)
    value = value - value.mean(axis=1, keepdims=True)
    degrees = graph.degrees
    # Σ w ‖vᵢ − vⱼ‖² = 2 Σ d v² − 2 v·W v, and the same with weights 1.
    along = 2 * (degrees * value**2 - value * graph.weigh(value[None])).sum(axis=(0, 2, 3))
    weight = degrees.sum(axis=(0, 2, 3))
    over_all = 2 * (value**2).sum(axis=(1, 2)) / (count - 1)
    found = np.ones(len(over_all))
    np.divide(along, weight * over_all, out=found, where=weight * over_all > 0)
    found[over_all == 0] = 0
    return float(np.maximum(found, 0).mean())
