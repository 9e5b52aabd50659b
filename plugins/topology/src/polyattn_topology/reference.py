"""What each mechanism computes, in plain NumPy float64, with the whole key graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.reference import repeat_heads

Array = npt.NDArray[np.float64]


def _softmax(scores: Array) -> Array:
    most = scores.max(axis=-1, keepdims=True)
    grown = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = grown.sum(axis=-1, keepdims=True)
    return np.asarray(grown / np.where(total == 0, 1, total))


def normalised_cut(graph: Array, side: npt.NDArray[np.bool_]) -> float:
    """cut/volume + cut/volume of the two sides, over that of evenly similar keys."""
    cut = graph[side][:, ~side].sum()
    n = len(graph)
    volumes = graph[side].sum(), graph[~side].sum()
    return float(sum(cut / v if v > 0 else 0 for v in volumes) / (n / (n - 1)))


def key_graph(keys: Array) -> tuple[Array, Array]:
    """Unit keys, and the weights (1 + cos)/2 without loops."""
    units = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    graph = (1 + units @ units.T) / 2
    np.fill_diagonal(graph, 0)
    return units, graph


def cheapest_cut(keys: Array) -> tuple[float, Array, Array, float]:
    """φ, the side of each key, the principal axis and the border on it: the best of 64 cuts."""
    units, graph = key_graph(keys)
    axis = np.linalg.eigh(np.cov(units.T, bias=True).reshape(2 * (keys.shape[-1],)))[1][:, -1]
    along = units @ axis
    ordered = np.sort(along)
    borders = (ordered[:-1] + ordered[1:]) / 2
    if len(borders) > 64:
        borders = borders[np.linspace(0, len(borders) - 1, 64).round().astype(int)]
    values = [normalised_cut(graph, along > border) for border in borders]
    best = int(np.argmin(values))
    return min(values[best], 1.0), along > borders[best], axis, float(borders[best])


def mincut_gated(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Any = None,
) -> Array:  # fmt: skip
    """softmax(s − strength where a cheap cut is crossed) v."""
    key, value = repeat_heads(query, key, value)
    scale = config.scale if config.scale is not None else query.shape[-1] ** -0.5
    scores = scale * (query @ key.swapaxes(-1, -2))
    for index in np.ndindex(key.shape[:2] if key.shape[2] > 1 else (0, 0)):
        value_of_cut, side, axis, border = cheapest_cut(key[index])
        if value_of_cut < config.threshold:
            unit = query[index] / np.linalg.norm(query[index], axis=-1, keepdims=True)
            crossed = (unit @ axis > border)[:, None] != side
            scores[index] -= config.strength * crossed
    if config.softcap is not None:
        scores = config.softcap * np.tanh(scores / config.softcap)
    return np.asarray(_softmax(scores if bias is None else scores + bias) @ value)


def topology_gated(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Any = None,
) -> Array:  # fmt: skip
    """A first call, with `flash` within and `top-k` when cautious; thresholds of 0 or 1 alone.

    The first call's keys are all retained, so that Freeze attends like Stable.
    """
    policy = config.policy
    cautious = policy.stable_threshold == 1 and policy.freeze_threshold == 0
    key, value = repeat_heads(query, key, value)
    scores = query.shape[-1] ** -0.5 * (query @ key.swapaxes(-1, -2))
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else np.where(mask, scores, -np.inf)
    if cautious:
        k = min(config.cautious_options["k"], key.shape[-2])
        least = np.sort(scores, axis=-1)[..., -k, None]
        scores = np.where(scores >= least, scores, -np.inf)
    return np.asarray(_softmax(scores) @ value)
