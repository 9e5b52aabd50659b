"""The statistic `top_weights` of mechanisms that have their weights in an array."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .arrays import Array

_BLOCK = 64
"""Queries whose weights are held at a time."""


def largest(weights: Array, top: int, keys: Array | None = None) -> dict[str, Array]:
    """`top_weights` and `top_keys` (…, top) of weights (…, candidates).

    Of equal weights the first key comes first; behind the last weight above 0 there is weight 0 of
    key −1. `keys` (…, candidates) says which keys the candidates are, −1 for none; by default they
    are all keys in their order.

    >>> found = largest(np.array([0.2, 0.0, 0.5, 0.3]), 5)
    >>> found["top_weights"], found["top_keys"]
    (array([0.5, 0.3, 0.2, 0. , 0. ]), array([ 2,  3,  0, -1, -1]))
    """
    if keys is None:
        order = np.argsort(-weights, axis=-1, kind="stable")[..., :top]
        chosen = order
    else:
        weights = np.where(keys < 0, 0, weights)
        order = np.lexsort((keys, -weights), axis=-1)[..., :top]
        chosen = np.take_along_axis(keys, order, axis=-1)
    found = np.take_along_axis(weights, order, axis=-1)
    lacking = [(0, 0)] * (weights.ndim - 1) + [(0, top - order.shape[-1])]
    found, chosen = np.pad(found, lacking), np.pad(chosen, lacking)
    return {
        "top_weights": np.where(found <= 0, 0, found),  # NaN stays NaN
        "top_keys": np.where(found > 0, chosen, -1).astype(np.int64),
    }


def largest_of_blocks(
    weights: Callable[[slice], Array], queries: int, top: int
) -> dict[str, Array]:
    """`largest` of what a function says are the weights (…, queries, keys) of some queries."""
    blocks = [
        largest(weights(slice(start, start + _BLOCK)), top) for start in range(0, queries, _BLOCK)
    ]
    return {name: np.concatenate([b[name] for b in blocks], axis=-2) for name in blocks[0]}


__all__ = ["largest", "largest_of_blocks"]
