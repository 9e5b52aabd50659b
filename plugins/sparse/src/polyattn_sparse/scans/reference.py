"""What the recurrences compute, in plain NumPy float64: token by token.

Functions take (batch, heads, tokens, size) arrays, keys and values with as many heads or fewer.
`mask` holds all pairs that may be computed; a token that its own query does not see is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.reference import repeat_heads, rope_frequencies

Array = npt.NDArray[np.float64]


def recurrence(
    query: Array,
    key: Array,
    value: Array,
    log_decay: Any = 0.0,
    beta: Any = None,
    state: Any = None,
) -> tuple[Array, Array]:
    """S ← diag(a) S + k uᵀ, o = Sᵀ q; u = v, or β(v − Sᵀ k) with β. Output and last state.

    Keys and values with as many heads as queries; `log_decay` broadcasts to the keys, `beta` to
    (batch, heads, tokens).
    """
    log_decay = np.broadcast_to(log_decay, key.shape)
    batch, heads, tokens, size = key.shape
    memory = np.zeros((batch, heads, size, value.shape[-1]))
    if state is not None:
        memory = memory + state
    out = np.zeros((*key.shape[:3], value.shape[-1]))
    for t in range(tokens):
        memory = np.exp(log_decay[:, :, t])[..., None] * memory
        update = value[:, :, t]
        if beta is not None:
            held = np.einsum("bhdv,bhd->bhv", memory, key[:, :, t])
            update = np.broadcast_to(beta, key.shape[:3])[:, :, t, None] * (update - held)
        memory = memory + key[:, :, t, :, None] * update[..., None, :]
        out[:, :, t] = np.einsum("bhdv,bhd->bhv", memory, query[:, :, t])
    return out, memory


def _shown(mask: Any, *arrays: Array) -> tuple[Array, ...]:
    """0 where a token is hidden."""
    if mask is None:
        return arrays
    own = np.diagonal(mask, axis1=-2, axis2=-1)[..., None]
    return tuple(np.where(own, array, 0) for array in arrays)


def _per_head(array: Any, heads: int) -> Array:
    """(key heads, …) for each query head."""
    return np.repeat(np.asarray(array, np.float64), heads // len(array), axis=0)


def _side(array: Any, like: Array, axes: int) -> Array:
    """(…, key heads or heads, tokens[, size]) with its leading axes flattened."""
    array = np.asarray(array, np.float64)
    batch, heads = like.shape[:2]
    flat = array.reshape(-1, *array.shape[-axes:])
    full = np.broadcast_to(flat, (batch, *flat.shape[1:]))
    return np.repeat(full, heads // full.shape[1], axis=1)


def retention(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any] | None = None,
) -> Array:  # fmt: skip
    """S ← γ S + k vᵀ."""
    heads, size = query.shape[1], query.shape[3]
    key_heads = key.shape[1]
    if config.position is not None:
        query, key = (_turned(x, config.position) for x in (query, key))
    decays = config.decays or [1 - 2.0 ** (-5 - head) for head in range(key_heads)]
    logs = np.broadcast_to(np.log(_per_head(decays, heads))[:, None, None], query.shape)
    key, value = repeat_heads(query, key, value)
    scale = config.scale or size**-0.5
    return recurrence(scale * query, *_shown(mask, key, value, logs))[0]


def gated_linear(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any], log_decay: Any = None, state: Any = None,
) -> Array:  # fmt: skip
    """S ← diag(α) S + k vᵀ."""
    logs = _log_decay(query, log_decay, parameters)
    key, value = repeat_heads(query, key, value)
    key, value, logs = _shown(mask, key, value, logs)
    return recurrence(config.scale * query, key, value, logs, state=state)[0]


def delta_rule(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any], beta: Any = None, log_decay: Any = None,
    state: Any = None,
) -> Array:  # fmt: skip
    """S ← diag(α) S + β k (v − (diag(α) S)ᵀ k)ᵀ, α = 1 for the delta rule without gates."""
    if config.normalise:
        query, key = (_unit(x) for x in (query, key))
    logs = np.zeros(query.shape)
    if log_decay is not None or "log_decay.logit" in parameters:
        logs = _log_decay(query, log_decay, parameters)
    if beta is None:
        strength = _per_head(1 / (1 + np.exp(-parameters["beta.logit"])), query.shape[1])[:, None]
        beta = np.broadcast_to(strength, query.shape[:3])
    else:
        beta = _side(beta, query, 2)
    key, value = repeat_heads(query, key, value)
    key, value, logs, beta = _shown(mask, key, value, logs, beta[..., None])
    return recurrence(config.scale * query, key, value, logs, beta[..., 0], state)[0]


def mamba2(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Mapping[str, Any], step: Any = None, state: Any = None,
) -> Array:  # fmt: skip
    """S ← e^(−Δ e^a) S + Δ k vᵀ, and the skip."""
    heads = query.shape[1]
    raw = np.zeros(query.shape[:3]) if step is None else _side(step, query, 2)
    sizes = np.logaddexp(0, raw + _per_head(parameters["bias"], heads)[:, None])[..., None]
    logs = np.broadcast_to(
        -sizes * np.exp(_per_head(parameters["log_rate"], heads))[:, None, None], query.shape
    )
    key, value = repeat_heads(query, key, value)
    key, value, logs = _shown(mask, key, value, logs)
    out = recurrence(config.scale * query, key, sizes * value, logs, state=state)[0]
    if config.skip:
        out = out + _per_head(parameters["skip"], heads)[:, None, None] * value
    return out


def _turned(x: Array, rope: Any) -> Array:
    """Pairs of coordinates, as complex numbers, times e^(i · position · frequency)."""
    size = rope.size or x.shape[-1]
    frequency = rope_frequencies(rope, size)
    turn = np.exp(1j * np.arange(x.shape[-2])[:, None] * frequency)
    first = np.arange(0, size, 2) if rope.interleaved else np.arange(size // 2)
    second = first + (1 if rope.interleaved else size // 2)
    turned = (x[..., first] + 1j * x[..., second]) * turn
    found = x.copy()
    found[..., first], found[..., second] = turned.real, turned.imag
    return found


def _log_decay(query: Array, given: Any, parameters: Mapping[str, Any]) -> Array:
    if given is None:
        logit = _per_head(parameters["log_decay.logit"], query.shape[1])[:, None]
        return np.broadcast_to(-np.logaddexp(0, -logit) / 16, query.shape)
    return np.broadcast_to(_side(given, query, 3), query.shape)


def _unit(x: Array) -> Array:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(length == 0, 1, length))
