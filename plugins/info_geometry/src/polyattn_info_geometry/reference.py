"""What each mechanism computes, in plain NumPy float64: short and without cleverness.

All functions take (batch, heads, tokens, size) arrays, keys and values with as many heads or fewer;
`mask` is a boolean array that broadcasts to (batch, heads, queries, keys), or None.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, rel_entr, softmax

from polyattn_core.reference import adjusted_scores, repeat_heads, rotated

Array = npt.NDArray[np.float64]


def _weights(scores: Array) -> Array:
    most = scores.max(axis=-1, keepdims=True)
    grown = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = grown.sum(axis=-1, keepdims=True)
    return np.asarray(grown / np.where(total == 0, 1, total))


def fisher_rao(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Any = None,
) -> Array:  # fmt: skip
    """softmax(−β · 2 arccos Σ √(p r)) v."""
    key, value = repeat_heads(query, key, value)
    p, r = (np.sqrt(softmax(x / config.temperature, axis=-1)) for x in (query, key))
    p, r = rotated(p, r, config)
    distance = 2 * np.arccos(np.clip(p @ r.swapaxes(-1, -2), -1, 1))
    scores = adjusted_scores(-config.sharpness * distance, mask, bias, config, parameters)
    return np.asarray(_weights(scores) @ value)


def kl_bregman(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Any = None,
) -> Array:  # fmt: skip
    """softmax(−β KL(p‖r)) v."""
    key, value = repeat_heads(query, key, value)
    p = softmax(query / config.temperature, axis=-1)
    logs = log_softmax(key / config.temperature, axis=-1)
    if config.position is None:
        divergence = rel_entr(p[..., :, None, :], np.exp(logs)[..., None, :, :]).sum(-1)
    else:  # what is turned is a distribution no longer: by its two parts
        turned, turned_logs = rotated(p, logs, config)
        negentropy = np.where(turned > 0, turned * np.log(np.where(turned > 0, turned, 1)), 0)
        divergence = negentropy.sum(-1)[..., None] - turned @ turned_logs.swapaxes(-1, -2)
    scores = adjusted_scores(-config.sharpness * divergence, mask, bias, config, parameters)
    return np.asarray(_weights(scores) @ value)


def natural_gradient(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Any = None,
) -> Array:  # fmt: skip
    """Steps of q by the diagonal natural gradient of the energy, then softmax(β q·kᵀ) v."""
    key, value = repeat_heads(query, key, value)
    beta = config.scale if config.scale is not None else query.shape[-1] ** -0.5

    def weights(q: Array) -> Array:
        turned, turned_key = rotated(q, key, config)
        scores = beta * (turned @ turned_key.swapaxes(-1, -2))
        return _weights(adjusted_scores(scores, mask, bias, config, parameters))

    for _ in range(config.steps):
        p = weights(query)
        mean = p @ key
        variance = p @ key**2 - mean**2
        query = query - config.lr * (query - mean) / (beta**2 * variance + config.damping)
    return np.asarray(weights(query) @ value)
