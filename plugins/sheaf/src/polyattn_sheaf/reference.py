"""What the mechanisms compute, in float64, with matrices: short, not fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special

Array = npt.NDArray[Any]
Parameters = Mapping[str, Array]


def _energies(q: Array, k: Array, parameters: Parameters, h: int, kv: int) -> Array:
    a, b = q @ parameters["query_map"][h].T, k @ parameters["key_map"][kv].T
    result: Array = ((a[:, None] - b[None]) ** 2).sum(axis=-1)
    return result


def _beta(config: Any) -> float:
    return float(config.beta or (config.stalk or config.head_dim) ** -0.5)


def _averaged(scores: Array, v: Array, seen: Array) -> Array:
    seen = seen & (scores > -np.inf)
    some = seen.any(axis=1, keepdims=True)
    weights = scipy.special.softmax(np.where(seen | ~some, np.where(seen, scores, 0), -np.inf), 1)
    # Values behind a mask may be anything.
    result: Array = np.where(some & seen, weights, 0) @ v
    return result


def sheaf_attention(
    query: Array, key: Array, value: Array, *, mask: Array | None = None,
    bias: Array | None = None, config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """Soft-max of minus the energy; without pairs below the threshold where there is one."""
    batch, heads, queries, _ = query.shape
    group = heads // key.shape[1]
    out = np.zeros((batch, heads, queries, value.shape[-1]))
    for b in range(batch):
        for h in range(heads):
            kv = h // group
            energy = _energies(query[b, h], key[b, kv], parameters, h, kv)
            scores = -_beta(config) * energy
            if config.softcap is not None:
                scores = config.softcap * np.tanh(scores / config.softcap)
            if bias is not None:
                scores = scores + bias[b, h]
            scores = np.where(energy > getattr(config, "threshold", -1.0), scores, -np.inf)
            seen = np.ones(energy.shape, bool) if mask is None else mask[b, h]
            out[b, h] = _averaged(scores, value[b, kv], seen)
    return out


def early_exit(
    query: Array, key: Array, value: Array, *, mask: Array | None = None,
    bias: Array | None = None, config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """Each query by itself, until it has settled."""
    batch, heads, queries, _ = query.shape
    group = heads // key.shape[1]
    out = np.zeros(query.shape)
    for b in range(batch):
        for h in range(heads):
            kv = h // group
            for i in range(queries):
                seen = np.ones(key.shape[2], bool) if mask is None else mask[b, h, i]
                if not seen.any():
                    continue
                x = query[b, h, i]
                for _ in range(config.max_steps):
                    energy = _energies(x[None], key[b, kv][seen], parameters, h, kv)[0]
                    weights = scipy.special.softmax(-_beta(config) * energy)
                    last = x
                    x = (1 - config.step) * x + config.step * weights @ value[b, kv][seen]
                    if np.linalg.norm(x - last) <= config.tolerance * np.linalg.norm(last):
                        break
                out[b, h, i] = x
    return out
