"""What each mechanism computes, in plain NumPy float64: short and without cleverness.

Functions take (batch, heads, tokens, size) arrays, keys and values with as many heads or fewer.
`mask` holds all pairs that may be computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from polyattn_core.reference import repeat_heads

Array = npt.NDArray[np.float64]


def _lse(scores: Array, axis: int) -> Array:
    with np.errstate(divide="ignore"):
        return np.asarray(logsumexp(scores, axis=axis, keepdims=True))


def _distances(query: Array, key: Array) -> Array:
    return np.asarray(((query[..., :, None, :] - key[..., None, :, :]) ** 2).sum(axis=-1))


def entropic_plan(
    scores: Array, masses: Array, iterations: int, exponents: tuple[float, float] = (1.0, 1.0)
) -> Array:
    """exp(S + f + g) after so many iterations from g = 0; 0 where scores are −∞."""
    empty_rows = np.isneginf(scores).all(axis=-1, keepdims=True)
    empty_columns = np.isneginf(scores).all(axis=-2, keepdims=True) | (masses == 0)
    g = np.where(masses == 0, -np.inf, np.zeros_like(masses))

    def rows(g: Array) -> Array:
        return np.where(empty_rows, 0, -exponents[0] * _lse(scores + g, -1))

    for _ in range(iterations):
        f = rows(g)
        g = exponents[1] * (np.log(np.where(empty_columns, 1, masses)) - _lse(scores + f, -2))
        g = np.where(masses == 0, -np.inf, np.where(empty_columns, 0, g))
    return np.asarray(np.exp(scores + rows(g) + g))


def _equal_masses(scores: Array) -> Array:
    hidden = np.isneginf(scores)
    rows = (~hidden.all(axis=-1)).sum(axis=-1)[..., None, None]
    columns = ~hidden.all(axis=-2, keepdims=True)
    return np.asarray(rows * columns / np.maximum(columns.sum(axis=-1, keepdims=True), 1))


def _adjusted(scores: Array, mask: Any, bias: Any) -> Array:
    scores = scores if bias is None else scores + bias
    return np.asarray(scores if mask is None else np.where(mask, scores, -np.inf))


def _scale(query: Array, config: Any) -> float:
    return float(config.scale or query.shape[-1] ** -0.5)


def sinkhorn_attention(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """The plan of products."""
    key, value = repeat_heads(query, key, value)
    scores = _adjusted(_scale(query, config) * (query @ key.swapaxes(-1, -2)), mask, bias)
    return np.asarray(entropic_plan(scores, _equal_masses(scores), config.iterations) @ value)


def unbalanced_attention(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """The plan of squared distances with marginals that may deviate."""
    key, value = repeat_heads(query, key, value)
    scores = _adjusted(-_scale(query, config) / 2 * _distances(query, key), mask, bias)
    exponents = tuple(p / (p + 1) for p in (config.query_penalty, config.key_penalty))
    plan = entropic_plan(scores, _equal_masses(scores), config.iterations, exponents)  # type: ignore[arg-type]
    return np.asarray(plan @ value)
