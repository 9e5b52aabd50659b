"""What the axes that all mechanisms share do to scores, in plain NumPy: for references.

These follow the definitions, not the kernels: positions one pair at a time, masks as full arrays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .positions import Alibi, Rope, T5Bias

Array = npt.NDArray[Any]


def repeat_heads(query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """Keys and values with each head repeated for the query heads that share it."""
    group = query.shape[-3] // key.shape[-3]
    return np.repeat(key, group, axis=-3), np.repeat(value, group, axis=-3)


def rope_frequencies(rope: Rope, size: int) -> Array:
    """Radians for each position, of each pair."""
    if rope.ramp == "pairs":
        return _yarn_frequencies(rope, size)
    found = []
    for pair in range(size // 2):
        frequency = rope.base ** (-2 * pair / size)
        scaled = frequency / rope.factor
        turns = math.inf if rope.trained is None else rope.trained * frequency / (2 * math.pi)
        if rope.trained is None or turns < 1:
            found.append(scaled)
        elif turns > 4:
            found.append(frequency)
        else:
            found.append(scaled + (turns - 1) / 3 * (frequency - scaled))
    return np.array(found)


def _yarn_frequencies(rope: Rope, size: int) -> Array:
    """By counting turns (arXiv:2309.00071): kept from β = 32 on, divided from α = 1 down."""
    assert rope.trained is not None

    def turns(pair: float) -> float:
        return float(rope.trained * rope.base ** (-2 * pair / size) / (2 * math.pi))

    # Pairs of all heads that long, of which the first may lie before 0 and the last be missing.
    first = max((p for p in range(-size, size) if turns(p) >= 32), default=-size)
    last = min((p for p in range(-size, size) if turns(p) <= 1), default=size)
    first, last = max(first, 0), min(last, size - 1)
    found = []
    for pair in range(size // 2):
        frequency = rope.base ** (-2 * pair / size)
        share = min(max((pair - first) / max(last - first, 1e-3), 0.0), 1.0)
        found.append((1 - share) * frequency + share * frequency / rope.factor)
    return np.array(found)


def rotated(query: Array, key: Array, config: Any) -> tuple[Array, Array]:
    """Rotary embedding: coordinates as complex numbers, turned by e^{i·angle}."""
    rope = config.position
    if not isinstance(rope, Rope):
        return query, key

    def turn(array: Array, first: int) -> Array:
        size = rope.size or array.shape[-1]
        position = np.arange(array.shape[-2]) + first
        angle = position[:, None] * rope_frequencies(rope, size)
        if rope.interleaved:
            a, b = np.arange(0, size, 2), np.arange(1, size, 2)
        else:
            a, b = np.arange(size // 2), np.arange(size // 2, size)
        number = (array[..., a] + 1j * array[..., b]) * np.exp(1j * angle)
        result = np.array(array)
        result[..., a], result[..., b] = number.real, number.imag
        return result

    return turn(query, key.shape[-2] - query.shape[-2]), turn(key, 0)


def adjusted_scores(scores: Array, mask: Any, bias: Any, config: Any, parameters: Any) -> Array:
    """Add position and other biases, cap softly, hide with −inf."""
    queries, keys = scores.shape[-2:]
    distance = np.arange(keys)[None, :] - (np.arange(queries)[:, None] + keys - queries)
    position = config.position
    if isinstance(position, Alibi):
        scores = scores - _slopes(scores.shape[-3])[:, None, None] * np.abs(distance)
    if config.softcap is not None:
        scores = config.softcap * np.tanh(scores / config.softcap)
    if isinstance(position, T5Bias):
        scores = scores + parameters["position.table"][:, _bucket(distance, position)]
    if bias is not None:
        scores = scores + bias
    return np.asarray(scores if mask is None else np.where(mask, scores, -np.inf))


def _slopes(heads: int) -> Array:
    """The slopes of ALiBi, as in the paper's appendix."""
    if heads & (heads - 1) == 0:
        return np.array([2 ** (-8 * (h + 1) / heads) for h in range(heads)])
    below = 1 << (heads.bit_length() - 1)
    return np.concatenate((_slopes(below), _slopes(2 * below)[::2][: heads - below]))


def _bucket(distance: Array, bias: T5Bias) -> Array:
    """The bucket of T5 for each distance, one at a time."""

    def one(d: int) -> int:
        count = bias.buckets // 2 if bias.bidirectional else bias.buckets
        first = count if bias.bidirectional and d > 0 else 0
        size = abs(d) if bias.bidirectional else max(-d, 0)
        exact = count // 2
        if size < exact:
            return first + size
        ratio = np.log(size / max(exact, 1)) / np.log(bias.max_distance / max(exact, 1))
        return first + min(exact + int(ratio * (count - exact)), count - 1)

    return np.asarray(np.vectorize(one, otypes=[np.int64])(distance))
