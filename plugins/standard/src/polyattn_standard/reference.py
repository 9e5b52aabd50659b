"""What each mechanism computes, in plain NumPy float64: short and without cleverness.

All functions take (batch, heads, tokens, size) arrays, keys and values with as many heads or fewer;
`mask` is a boolean array that broadcasts to (batch, heads, queries, keys), or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.reference import adjusted_scores, repeat_heads, rotated

Array = npt.NDArray[np.float64]
Parameters = Mapping[str, Any]


def _scores(query: Array, key: Array, mask: Any, bias: Any, config: Any, parameters: Any) -> Array:
    """Scaled products with position, bias, soft cap and mask; −inf where hidden."""
    query, key = rotated(query, key, config)
    scale = config.scale if config.scale is not None else query.shape[-1] ** -0.5
    return adjusted_scores(scale * (query @ key.swapaxes(-1, -2)), mask, bias, config, parameters)


def _softmax(scores: Array) -> Array:
    most = scores.max(axis=-1, keepdims=True)
    grown = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = grown.sum(axis=-1, keepdims=True)
    return np.asarray(grown / np.where(total == 0, 1, total))


def scaled_dot_product(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters | None = None,
) -> Array:  # fmt: skip
    """softmax(q·kᵀ/√d) v."""
    key, value = repeat_heads(query, key, value)
    return np.asarray(_softmax(_scores(query, key, mask, bias, config, parameters)) @ value)


def multi_head(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """Project, attend by heads, project."""

    def affine(name: str, x: Array) -> Array:
        return np.asarray(x @ parameters[f"{name}.weight"].T + parameters.get(f"{name}.bias", 0.0))

    def merged(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def split(x: Array, heads: int) -> Array:
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    def normed(name: str, x: Array) -> Array:
        if not config.query_key_norm:
            return x
        square = (x * x).mean(axis=-1, keepdims=True) + config.norm_epsilon
        return np.asarray(x / np.sqrt(square) * parameters[f"{name}_norm.weight"])

    attended = scaled_dot_product(
        normed("query", split(affine("query", merged(query)), config.heads)),
        normed("key", split(affine("key", merged(key)), config.key_heads)),
        split(affine("value", merged(value)), config.key_heads),
        mask, bias, config=config, parameters=parameters,
    )  # fmt: skip
    return split(affine("output", merged(attended)), config.heads)


def cosine(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """softmax(g · q̂·k̂) v."""

    def unit(x: Array) -> Array:
        length = np.linalg.norm(x, axis=-1, keepdims=True)
        return np.asarray(x / np.maximum(length, config.epsilon))

    key, value = repeat_heads(query, key, value)
    query, key = rotated(unit(query), unit(key), config)
    scores = parameters["gain"][:, None, None] * (query @ key.swapaxes(-1, -2))
    return np.asarray(_softmax(adjusted_scores(scores, mask, bias, config, parameters)) @ value)


def _by_distance(
    query: Array, key: Array, value: Array, mask: Any, bias: Any, config: Any, parameters: Any,
    sharpness: Any,
) -> Array:  # fmt: skip
    key, value = repeat_heads(query, key, value)
    query, key = rotated(query, key, config)
    squared = ((query[..., :, None, :] - key[..., None, :, :]) ** 2).sum(-1)
    scores = adjusted_scores(-sharpness * squared, mask, bias, config, parameters)
    return np.asarray(_softmax(scores) @ value)


def l2(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters | None = None,
) -> Array:  # fmt: skip
    """softmax(−‖q − k‖²/√d) v."""
    scale = config.scale if config.scale is not None else query.shape[-1] ** -0.5
    return _by_distance(query, key, value, mask, bias, config, parameters, scale)


def gaussian(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters | None = None,
) -> Array:  # fmt: skip
    """softmax(−‖q − k‖²/(2σ²)) v."""
    width = config.bandwidth if config.bandwidth is not None else query.shape[-1] ** 0.25
    sharpness = np.reshape(1 / (2 * np.square(width)), (-1, 1, 1))
    return _by_distance(query, key, value, mask, bias, config, parameters, sharpness)


def softmax_one(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """eˢ / (e^sink + Σ eˢ) v: a key without a value more."""
    key, value = repeat_heads(query, key, value)
    scores = _scores(query, key, mask, bias, config, parameters)
    sink = np.broadcast_to(parameters["sink"][:, None, None], (*scores.shape[:-1], 1))
    return np.asarray(_softmax(np.concatenate((scores, sink), axis=-1))[..., :-1] @ value)


def _weighted(
    weigh: Callable[[Array], Array], query: Array, key: Array, value: Array, mask: Any, bias: Any,
    config: Any, parameters: Any,
) -> Array:  # fmt: skip
    key, value = repeat_heads(query, key, value)
    scores = _scores(query, key, mask, bias, config, parameters)
    return np.asarray(np.where(np.isneginf(scores), 0, weigh(scores)) @ value)


def sigmoid(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters | None = None,
) -> Array:  # fmt: skip
    """σ(s − ln n) v."""
    offset = -np.log(key.shape[-2]) if config.offset is None else config.offset

    def weigh(scores: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-(scores + offset))))

    with np.errstate(over="ignore"):
        return _weighted(weigh, query, key, value, mask, bias, config, parameters)


def relu_squared(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters | None = None,
) -> Array:  # fmt: skip
    """relu(s)² / n v."""
    count = key.shape[-2] if config.mean else 1

    def weigh(scores: Array) -> Array:
        return np.asarray(np.maximum(scores, 0) ** 2 / count)

    return _weighted(weigh, query, key, value, mask, bias, config, parameters)


def softpick(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters | None = None,
) -> Array:  # fmt: skip
    """relu(eˢ − 1) / (Σ |eˢ − 1| + ε) v."""

    def weigh(scores: Array) -> Array:
        less = np.expm1(scores)
        total = np.where(np.isneginf(scores), 0, np.abs(less)).sum(-1, keepdims=True)
        bottom = total + config.epsilon
        return np.asarray(np.maximum(less, 0) / np.where(bottom == 0, 1, bottom))

    return _weighted(weigh, query, key, value, mask, bias, config, parameters)


def _threshold(scores: Array, mass: Callable[[Array], Array]) -> Array:
    """τ with mass(scores − τ) = 1 in each row, by bisection; the maximum is at most τ + 1."""
    most = scores.max(axis=-1, keepdims=True)
    most = np.where(np.isneginf(most), 0, most)
    low, high = most - 1, most
    for _ in range(80):
        middle = (low + high) / 2
        more = mass(scores - middle).sum(-1, keepdims=True) > 1
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    return np.asarray((low + high) / 2)


def sparsemax(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters | None = None,
) -> Array:  # fmt: skip
    """max(s − τ, 0) v."""

    def weigh(scores: Array) -> Array:
        return np.maximum(scores - _threshold(scores, lambda x: np.maximum(x, 0)), 0)

    return _weighted(weigh, query, key, value, mask, bias, config, parameters)


def entmax15(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters | None = None,
) -> Array:  # fmt: skip
    """max(s/2 − τ, 0)² v."""

    def weigh(scores: Array) -> Array:
        half = scores / 2
        tau = _threshold(half, lambda x: np.maximum(x, 0) ** 2)
        return np.asarray(np.maximum(half - tau, 0) ** 2)

    return _weighted(weigh, query, key, value, mask, bias, config, parameters)
