"""What each mechanism computes, in plain NumPy float64: short and without cleverness.

Functions take (batch, heads, tokens, size) arrays, keys and values with as many heads or fewer.
`mask` holds all pairs that may be computed, the mechanism's own pattern included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.reference import adjusted_scores, repeat_heads, rotated

Array = npt.NDArray[np.float64]


def _attend(scores: Array, value: Array) -> Array:
    most = scores.max(axis=-1, keepdims=True)
    grown = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = grown.sum(axis=-1, keepdims=True)
    return np.asarray(grown @ value / np.where(total == 0, 1, total))


def _scores(query: Array, key: Array, mask: Any, bias: Any, config: Any, parameters: Any) -> Array:
    query, key = rotated(query, key, config)
    scale = config.scale if config.scale is not None else query.shape[-1] ** -0.5
    return adjusted_scores(scale * (query @ key.swapaxes(-1, -2)), mask, bias, config, parameters)


def softmax_attention(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """softmax(s) v over the visible pairs."""
    key, value = repeat_heads(query, key, value)
    return _attend(_scores(query, key, mask, bias, config, parameters), value)


def top_k(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """softmax over the k highest of the visible scores of each row."""
    key, value = repeat_heads(query, key, value)
    scores = _scores(query, key, mask, bias, config, parameters)
    if config.k < scores.shape[-1]:
        least = np.sort(scores, axis=-1)[..., -config.k, None]
        scores = np.where(scores >= least, scores, -np.inf)
    return _attend(scores, value)
