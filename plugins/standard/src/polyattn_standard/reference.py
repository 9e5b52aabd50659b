"""What each mechanism computes, in plain NumPy float64: short and without cleverness.

All functions take (batch, heads, tokens, size) arrays, keys and values with as many heads or fewer;
`mask` is a boolean array that broadcasts to (batch, heads, queries, keys), or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
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


def differential(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """(softmax₁ − λ softmax₂) v over halves of each head."""
    key, value = repeat_heads(query, key, value)
    half = query.shape[-1] // 2
    first, second = (
        _softmax(_scores(query[..., part], key[..., part], mask, bias, config, parameters))
        for part in (slice(half), slice(half, None))
    )
    one, two = np.exp((parameters["lambda.query"] * parameters["lambda.key"]).sum(1))
    output = (first - (one - two + config.lambda_init) * second) @ value
    if config.norm:
        mean = (output**2).mean(axis=-1, keepdims=True)
        output = (1 - config.lambda_init) * output / np.sqrt(mean + 1e-5)
    return np.asarray(output)


def _capped(scores: Array, mask: Any, bias: Any, config: Any) -> Array:
    if getattr(config, "softcap", None) is not None:
        scores = config.softcap * np.tanh(scores / config.softcap)
    scores = scores if bias is None else scores + bias
    return np.asarray(scores if mask is None else np.where(mask, scores, -np.inf))


def additive(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """softmax(uᵀ tanh(W q + U k)) v."""
    key, value = repeat_heads(query, key, value)
    left = np.einsum("hud,bhqd->bhqu", parameters["query.weight"], query)
    right = np.einsum("hud,bhkd->bhku", parameters["key.weight"], key)
    both = np.tanh(left[..., :, None, :] + right[..., None, :, :])
    scores = np.einsum("bhqku,hu->bhqk", both, parameters["vector"])
    return np.asarray(_softmax(adjusted_scores(scores, mask, bias, config, parameters)) @ value)


def talking_heads(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """Heads mixed before and after the soft-max."""
    key, value = repeat_heads(query, key, value)
    query, key = rotated(query, key, config)
    scale = config.scale if config.scale is not None else query.shape[-1] ** -0.5
    scores = np.einsum(
        "gh,bhqk->bgqk", parameters["scores.mix"], scale * query @ key.swapaxes(-1, -2)
    )
    weights = _softmax(adjusted_scores(scores, mask, bias, config, parameters))
    mixed = np.einsum("gh,bhqk->bgqk", parameters["weights.mix"], weights)
    return np.asarray((mixed if mask is None else np.where(mask, mixed, 0)) @ value)


def stick_breaking(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters | None = None,
) -> Array:  # fmt: skip
    """σ(z_j) Π_{l>j} (1 − σ(z_l)) v, from the last key to the first."""
    key, value = repeat_heads(query, key, value)
    scale = config.scale if config.scale is not None else query.shape[-1] ** -0.5
    scores = _capped(scale * query @ key.swapaxes(-1, -2), mask, bias, config)
    stick, weights = np.ones(scores.shape[:-1]), np.zeros(scores.shape)
    for j in reversed(range(scores.shape[-1])):
        weights[..., j] = stick / (1 + np.exp(-scores[..., j]))
        stick = stick / (1 + np.exp(scores[..., j]))
    return np.asarray(weights @ value)


def hopfield(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters | None = None,
) -> Array:  # fmt: skip
    """ξ ← softmax(β ξ·Kᵀ) K until it rests, then softmax(β ξ·Kᵀ) v."""
    key, value = repeat_heads(query, key, value)
    query, key = rotated(query, key, config)
    beta = config.beta if config.beta is not None else query.shape[-1] ** -0.5

    def weights(state: Array) -> Array:
        scores = beta * state @ key.swapaxes(-1, -2)
        slopes = SimpleNamespace(position=config.position, softcap=None)
        return _softmax(adjusted_scores(scores, mask, bias, slopes, parameters))

    state, moving = query, np.ones((*query.shape[:-1], 1), bool)
    for _ in range(config.iterations):
        following = np.where(moving, weights(state) @ key, state)
        moving = moving & (abs(following - state).max(-1, keepdims=True) > config.tolerance)
        state = following
    return np.asarray(weights(state) @ value)


def latent(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """Expanded: keys and values of each head from the latent vector, the rotary key apart."""
    p, heads = parameters, config.heads

    def merged(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    def normed(x: Array, name: str) -> Array:
        if not config.norm:
            return x
        square = np.mean(x * x, axis=-1, keepdims=True)
        return np.asarray(p[name] * x / np.sqrt(square + config.norm_epsilon))

    x_query, x_key, x_value = merged(query), merged(key), merged(value)
    compressed = x_key @ p["compress.key"].T
    if not config.tied:
        compressed = compressed + x_value @ p["compress.value"].T
    compressed = normed(compressed, "latent_norm.weight")
    read = x_query
    if config.query_latent:
        read = normed(x_query @ p["query.down"].T, "query_norm.weight")
    scores = split(read @ p["query.weight"].T) @ split(compressed @ p["key.up"].T).swapaxes(-1, -2)
    if config.rope_size:
        own, others = rotated(
            split(read @ p["query.rotary"].T), (x_key @ p["key.rotary"].T)[:, None], config
        )
        scores = scores + own @ others.swapaxes(-1, -2)
    scale = config.scale or (config.key_size + config.rope_size) ** -0.5
    weights = _softmax(_capped(scale * scores, mask, bias, config))
    return split(merged(weights @ split(compressed @ p["value.up"].T)) @ p["output.weight"].T)
