"""What each mixture computes, in plain NumPy float64: every expert for every token, then gates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Parameters = Mapping[str, Any]


def _softmax(x: Array) -> Array:
    grown = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=-1, keepdims=True))


def _merged(query: Array) -> Array:
    return query.swapaxes(1, 2).reshape(query.shape[0], query.shape[2], -1)


def _expert(
    options: dict[str, Any], i: int, arrays: tuple[Array, ...], mask: Any, bias: Any,
    parameters: Parameters,
) -> Array:  # fmt: skip
    """Expert i for all queries, by its own reference."""
    if "name" not in options:
        own = {n: parameters[f"experts.{i}.{n}"] for n in ("query.weight", "output.weight")}
        query, key, value = arrays
        return projected(query, key, value, mask, bias, config=None, parameters=own)
    from polyattn_core import resolver
    from polyattn_core.spec import resolve

    expert = resolver.current().create(options.pop("name"), **options)
    own = {n: parameters[f"experts.{i}.{n}"] for n in expert.parameters}
    reference = resolve(expert.spec.reference)
    return np.asarray(reference(*arrays, mask, bias, config=expert.config, parameters=own))


def _mixed(
    gates: Array, arrays: tuple[Array, ...], mask: Any, bias: Any, config: Any, p: Any
) -> Array:
    output = np.zeros((*arrays[0].shape[:3], arrays[2].shape[3]))
    for i, options in enumerate(config.expert_options):
        options |= {"dim": config.dim, "heads": config.heads}
        share = gates[:, None, :, i, None]
        output += np.where(share == 0, 0, share * _expert(options, i, arrays, mask, bias, p))
    return output


def _best_with_room(logits: Array, config: Any) -> tuple[Array, Array]:
    """Who goes where, and what gates are shares among, for one sequence: token by token."""
    tokens, experts = logits.shape
    room = [math.inf] * experts
    if config.expert_capacity is not None:
        room = [math.ceil(config.expert_capacity * tokens * config.top_k / experts)] * experts
    order = np.argsort(-logits, axis=-1, kind="stable")
    assigned, missing = np.zeros(logits.shape, bool), [0] * tokens
    for rank in range(experts if config.overflow == "reroute" else config.top_k):
        for token in range(tokens):
            if rank >= config.top_k and not missing[token]:
                continue
            expert = order[token, rank]
            fits = room[expert] > 0
            assigned[token, expert] |= fits
            room[expert] -= fits
            missing[token] += -int(fits) if rank >= config.top_k else 1 - int(fits)
    wanted = np.zeros(logits.shape, bool)
    np.put_along_axis(wanted, order[:, : config.top_k], True, axis=-1)
    return assigned, assigned if config.overflow == "reroute" else wanted


def moe(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """Σ g_e expert_e over the best top_k with room."""
    logits = _merged(query) @ parameters["router.weight"].T
    gates = np.zeros(logits.shape)
    for b, one in enumerate(logits):
        assigned, among = _best_with_room(one, config)
        grown = np.exp(one - one.max(axis=-1, keepdims=True))
        total = (np.where(among, grown, 0) if config.normalise else grown).sum(-1, keepdims=True)
        gates[b] = np.where(assigned, grown, 0) / np.where(total == 0, 1, total)
    return _mixed(gates, (query, key, value), mask, bias, config, parameters)


def expert_choice(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """Σ S_xe expert_e over the experts that take a token."""
    shares = _softmax(_merged(query) @ parameters["router.weight"].T)
    count, experts = shares.shape[1:]
    take = min(count, math.ceil(config.expert_capacity * count / experts))
    gates = np.zeros(shares.shape)
    for b in range(len(shares)):
        for e in range(experts):
            best = np.argsort(-shares[b, :, e], kind="stable")[:take]
            gates[b, best, e] = shares[b, best, e]
    return _mixed(gates, (query, key, value), mask, bias, config, parameters)


def mixture_of_heads(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """g_h times head h."""
    x, shared, heads = _merged(query), config.shared_heads, config.heads

    def shares(kind: str, count: int) -> Array:
        weight = parameters.get(f"router.{kind}", np.zeros((count, config.dim)))
        return _softmax(x @ weight.T) if count else np.zeros((*x.shape[:2], 0))

    kinds = shares("kind", 2) if 0 < shared < heads else np.ones((*x.shape[:2], 2))
    routed = shares("routed", heads - shared)
    order = np.argsort(-routed, axis=-1, kind="stable")
    np.put_along_axis(routed, order[..., config.chosen_heads :], 0.0, axis=-1)
    gates = [kinds[..., :1] * shares("shared", shared), kinds[..., 1:] * routed]
    output = []
    for h, gate in enumerate(np.concatenate(gates, axis=-1).transpose(2, 0, 1)):
        chosen = config.attention
        options = dict(chosen) if isinstance(chosen, dict) else {"name": chosen}
        options |= {"dim": config.dim // heads, "heads": 1}
        parts = tuple(array[:, h : h + 1] for array in (query, key, value))
        seen, added = (None if a is None else a[:, h : h + 1] for a in (mask, bias))
        found = _expert(options, h, parts, seen, added, parameters)
        share = gate[:, None, :, None]
        output.append(np.where(share == 0, 0, share * found))
    return np.concatenate(output, axis=1)


def projected(
    query: Array, key: Array, value: Array, mask: Any = None, bias: Any = None, *,
    config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """softmax((x_q W_qᵀ) kᵀ/√d) v · W_oᵀ."""

    def affine(name: str, x: Array) -> Array:
        flat = _merged(x) @ parameters[f"{name}.weight"].T
        return np.asarray(flat.reshape(*flat.shape[:2], query.shape[1], -1).swapaxes(1, 2))

    scores = affine("query", query) @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    scores = scores if bias is None else scores + bias
    if mask is None:
        return np.asarray(affine("output", _softmax(scores) @ value))
    most = np.where(mask, scores, -1e300).max(axis=-1, keepdims=True)
    grown = np.where(mask, np.exp(np.where(mask, scores - most, 0)), 0)
    total = grown.sum(axis=-1, keepdims=True)
    return np.asarray(affine("output", grown / np.where(total == 0, 1, total) @ value))
