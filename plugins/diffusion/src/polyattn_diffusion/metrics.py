"""The metric `diffusion-energy`: do similar keys carry similar values?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import ArgumentError, ShapeError

SAMPLE = 256
"""Tokens whose neighbours are looked for, of all heads; at least `LEAST` of each."""
LEAST = 16
NEIGHBOURS = 8
_BLOCK = 32


class Energy(NamedTuple):
    """An energy with the standard error of its sampling; 0 where every token was looked at."""

    value: float
    standard_error: float


def diffusion_energy(query: Any, key: Any, value: Any) -> float:
    """How much values differ between neighbouring keys, relative to how much they differ at all.

        (Σ wᵢⱼ ‖vᵢ − vⱼ‖² / Σ wᵢⱼ) / mean ‖vᵢ − vⱼ‖²,   wᵢⱼ = exp(−‖kᵢ − kⱼ‖²/2σ²)

    the normalised Dirichlet energy on the graph of the 8 nearest keys j of each key i, with the
    median distance of such neighbours as σ: 0 where values are constant along edges, 1 where they
    have nothing to do with the keys, more where like keys carry unlike values. Averaged over heads
    and leading axes; 0 where all values are equal.

    The neighbours of 256 tokens are looked for among all, in O(256 n d) time and O(n d) memory;
    which tokens is always the same, and :func:`estimate` says the standard error. The query does
    not matter: metrics take all three.

    References
    ----------
    von Luxburg, A tutorial on spectral clustering, arXiv:0711.0189.

    Examples
    --------
    >>> import numpy as np
    >>> from polyattn_diffusion.metrics import diffusion_energy
    >>> key = np.random.default_rng(0).standard_normal((200, 4))
    >>> noise = np.random.default_rng(1).standard_normal((200, 4))
    >>> [round(diffusion_energy(key, key, value), 2) for value in (np.ones((200, 1)), key, noise)]
    [0.0, 0.11, 1.02]
    """
    return estimate(key, value).value


def estimate(key: Any, value: Any, *, sample: int = SAMPLE, seed: int = 0) -> Energy:
    """`diffusion_energy` by the neighbours of so many tokens, with its standard error."""
    keys, values = as_array(key, "key"), as_array(value, "value")
    if keys.ndim < 2 or keys.shape[:-1] != values.shape[:-1]:
        shapes = f"{keys.shape}, {values.shape}"
        raise ShapeError("key, value", shapes, "(…, keys, size) and (…, keys, value size)")
    if sample < 1:
        raise ArgumentError("sample", sample, "at least 1 token")
    count = keys.shape[-2]
    keys = keys.reshape(-1, *keys.shape[-2:])
    values = values.reshape(-1, *values.shape[-2:])
    rng = np.random.default_rng(seed)
    each = min(max(LEAST, sample // max(len(keys), 1)), count)
    found = [
        _energy(k.astype(np.float64), v.astype(np.float64), np.sort(rng.permutation(count)[:each]))
        for k, v in zip(keys, values, strict=True)
    ]
    energies, errors = np.array(found).reshape(-1, 2).T
    if not len(energies):
        return Energy(0.0, 0.0)
    return Energy(float(energies.mean()), float(np.sqrt(np.square(errors).sum()) / len(errors)))


def _energy(key: Array, value: Array, chosen: Array) -> tuple[float, float]:
    """The energy of one head by the neighbours of the chosen tokens, and its standard error."""
    count = len(key)
    over_all = 2 * np.square(value - value.mean(axis=0)).sum() / max(count - 1, 1)
    if count < 2 or over_all == 0:
        return 0.0, 0.0
    pairs = list(_neighbours(key - key.mean(axis=0), chosen))
    squares = np.concatenate([apart for _, _, apart in pairs])
    unlike = np.concatenate(
        [np.square(value[rows, None] - value[near]).sum(axis=2) for rows, near, _ in pairs]
    )
    middle = np.median(np.sqrt(squares)) ** 2
    weights = np.exp(-squares / (2 * middle)) if middle > 0 else np.where(squares > 0, 0.0, 1.0)
    by_row, mass = (weights * unlike).sum(axis=1), weights.sum(axis=1)
    energy = by_row.sum() / mass.sum()
    # A ratio of means of a sample without replacement, to first order.
    spread = np.square(by_row - energy * mass).sum() / max(len(chosen) - 1, 1)
    error = np.sqrt(spread / len(chosen) * (1 - len(chosen) / count)) / mass.mean()
    return float(energy / over_all), float(error / over_all)


def _neighbours(key: Array, chosen: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Tokens, the nearest others of each, and their squared distances, a block at a time."""
    nearest = min(NEIGHBOURS, len(key) - 1)
    half = np.einsum("nd,nd->n", key, key) / 2
    for start in range(0, len(chosen), _BLOCK):
        rows = chosen[start : start + _BLOCK]
        # ‖k − k'‖² halved but for ‖k‖², which does not change the order.
        farness = half - key[rows] @ key.T
        farness[np.arange(len(rows)), rows] = np.inf
        near = np.argpartition(farness, nearest - 1, axis=1)[:, :nearest]
        between = key[rows, None] - key[near]
        yield rows, near, np.einsum("nkd,nkd->nk", between, between)
