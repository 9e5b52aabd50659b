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
    plan = entropic_plan(scores, _equal_masses(scores), config.iterations, exponents)
    return np.asarray(plan @ value)


def centroid_attention(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """One head at a time: k-means, then the plan between queries and means."""
    batch, heads, queries, _ = query.shape
    out = np.zeros((batch, heads, queries, value.shape[3]))
    group = heads // key.shape[1]
    for b in range(batch):
        for h in range(heads):
            seen = np.ones(key.shape[2], bool) if mask is None else mask[b, h, 0]
            if not seen.any():
                continue
            keys, values = key[b, h // group][seen], value[b, h // group][seen]
            label, clusters = _k_means(keys, min(config.centroids, key.shape[2]), key, config)
            used = [c for c in range(clusters) if (label == c).any()]
            means = np.stack([keys[label == c].mean(axis=0) for c in used])
            mean_values = np.stack([values[label == c].mean(axis=0) for c in used])
            shares = np.array([[(label == c).mean() for c in used]])
            scores = -_scale(query, config) / 2 * _distances(query[b, h], means)
            plan = entropic_plan(scores, queries * shares, config.iterations)
            out[b, h] = plan @ mean_values
    return out


def _k_means(keys: Array, clusters: int, everything: Array, config: Any) -> tuple[Any, int]:
    """k-means++ along a random direction, then rounds of k-means, with loops over centroids."""
    rng = np.random.default_rng(config.seed)
    along = keys @ rng.standard_normal(keys.shape[1])
    ordered = keys[np.argsort(along, kind="stable")]
    count = min(everything.shape[2], 32 * clusters)
    sample = ordered[[int((i + 0.5) * len(keys) / count) for i in range(count)]]
    draws = rng.random(clusters)
    means = [sample[int(draws[0] * count)]]
    for draw in draws[1:]:
        nearest = np.min([((sample - mean) ** 2).sum(axis=1) for mean in means], axis=0)
        chosen = np.searchsorted(np.cumsum(nearest), draw * nearest.sum())
        means.append(sample[min(chosen, count - 1)])
    for done in range(config.rounds + 1):
        label = np.argmin([((keys - mean) ** 2).sum(axis=1) for mean in means], axis=0)
        if done < config.rounds:
            for c in range(clusters):
                if (label == c).any():
                    means[c] = keys[label == c].mean(axis=0)
    return label, clusters


def low_rank_attention(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """The plan of the logarithm of the kernel, written out."""
    key, value = repeat_heads(query, key, value)
    turned = np.sqrt(_scale(query, config)) * _normal_directions(config).T
    features = (query @ turned)[..., :, None, :] + (key @ turned)[..., None, :, :]
    scores = _adjusted(_lse(features, -1)[..., 0], mask, bias)
    return np.asarray(entropic_plan(scores, _equal_masses(scores), config.iterations) @ value)


def _orthogonal(count: int, size: int, rng: np.random.Generator) -> Array:
    """Gram–Schmidt over normal vectors, block by block."""
    found: list[Array] = []
    while len(found) < count:
        block: list[Array] = []
        for column in rng.standard_normal((size, size)).T:
            rest = column.copy()
            for _ in range(2):
                for other in block:
                    rest = rest - (rest @ other) * other
            block.append(rest / np.linalg.norm(rest))
        found += block
    return np.stack(found[:count])


def _normal_directions(config: Any) -> Array:
    rng = np.random.default_rng(config.seed)
    size = config.dim // config.heads
    units = _orthogonal(config.rank, size, rng)
    lengths = np.linalg.norm(rng.standard_normal((config.rank, size)), axis=1)
    return np.asarray(units * lengths[:, None])


def sliced_attention(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """Soft-max over the costs of the nearest visible keys; windows of tokens."""
    key, value = repeat_heads(query, key, value)
    near = 2 * query @ key.swapaxes(-1, -2) - (key**2).sum(axis=-1)[..., None, :]
    near = _adjusted(near, mask, None)
    if config.candidates < near.shape[-1]:
        # Of keys that are equally near, the first.
        rank = np.argsort(np.argsort(-near, axis=-1, kind="stable"), axis=-1)
        near = np.where(rank < config.candidates, near, -np.inf)
    size = config.dim // config.heads
    directions = _orthogonal(config.projections, size, np.random.default_rng(config.seed))
    x, y = (_windows(array, config.window) @ directions.T for array in (query, key))
    x, y = (_represented(np.sort(array, axis=-2), config) for array in (x, y))
    cost = (np.abs(x[..., :, None, :, :] - y[..., None, :, :, :]) ** config.power).mean((-2, -1))
    return np.asarray(_softmax(np.where(np.isneginf(near), near, -config.sharpness * cost)) @ value)


def _softmax(scores: Array) -> Array:
    total = _lse(scores, -1)
    return np.asarray(np.exp(scores - np.where(np.isneginf(total), 0, total)))


def _windows(tokens: Array, width: int) -> Array:
    """(…, tokens, width, size)."""
    padded = np.concatenate((np.repeat(tokens[..., :1, :], width - 1, axis=-2), tokens), axis=-2)
    count = tokens.shape[-2]
    return np.stack([padded[..., w : w + count, :] for w in range(width)], axis=-2)


def _represented(numbers: Array, config: Any) -> Array:
    """(…, numbers, directions) as it is, as quantiles, or as a cumulative histogram."""
    if config.representation == "quantiles":
        levels = (np.arange(config.levels) + 0.5) / config.levels
        return np.asarray(numbers[..., (levels * numbers.shape[-2]).astype(int), :])
    if config.representation == "histogram":
        ends = np.linspace(-config.range, config.range, config.levels + 1)[1:]
        ends[-1] = np.inf
        shares = [(numbers <= end).mean(axis=-2) for end in ends]
        return np.asarray(2 * config.range * np.stack(shares, axis=-2))
    return numbers
