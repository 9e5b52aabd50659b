"""What each mechanism computes, in plain NumPy float64: short and without cleverness.

All functions take (batch, heads, tokens, size) arrays, keys and values with as many heads or fewer;
`mask` is a boolean array that broadcasts to (batch, heads, queries, keys), or None.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.reference import adjusted_scores, repeat_heads, rotated

Array = npt.NDArray[np.float64]


def _softmax(scores: Array) -> Array:
    most = scores.max(axis=-1, keepdims=True)
    grown = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = grown.sum(axis=-1, keepdims=True)
    return np.asarray(grown / np.where(total == 0, 1, total))


def _scores(query: Array, key: Array, mask: Any, bias: Any, config: Any, parameters: Any) -> Array:
    query, key = rotated(query, key, config)
    scale = config.scale if config.scale is not None else query.shape[-1] ** -0.5
    return adjusted_scores(scale * (query @ key.swapaxes(-1, -2)), mask, bias, config, parameters)


def vib(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Any, noise: Any = None,
) -> Array:  # fmt: skip
    """softmax(z(q) · (z(k) + σ(k) ε)/√z_dim) v."""

    def affine(x: Array, name: str) -> Array:
        weight, bias = parameters[f"encoder.{name}.weight"], parameters[f"encoder.{name}.bias"]
        return np.asarray(x @ weight.T + bias)

    code = affine(key, "mean")
    if noise is not None:
        code = code + np.exp(np.clip(affine(key, "log_var"), -20, 20) / 2) * noise
    code, value = repeat_heads(query, code, value)
    scores = _scores(affine(query, "mean"), code, mask, bias, config, parameters)
    return np.asarray(_softmax(scores) @ value)


def ib_compressed(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Any = None,
) -> Array:  # fmt: skip
    """r = softmax((s + β log r̄)/(1 + β)), r̄ the mean of the rows before, at first uniform."""
    key, value = repeat_heads(query, key, value)
    scores = _scores(query, key, mask, bias, config, parameters)
    weights = _softmax(scores / (1 + config.beta))
    for _ in range(config.iterations):
        mass = weights.sum(axis=-2, keepdims=True)
        tiny = np.finfo(float).tiny
        marginal = np.maximum(mass / np.maximum(mass.sum(-1, keepdims=True), tiny), tiny)
        weights = _softmax((scores + config.beta * np.log(marginal)) / (1 + config.beta))
    return np.asarray(weights @ value)
