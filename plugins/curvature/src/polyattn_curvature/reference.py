"""Each mechanism in plain NumPy, float64, from the definitions: one space at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.reference import adjusted_scores, repeat_heads, rotated

Array = npt.NDArray[Any]


def fused_mixed_curvature(
    query: Array, key: Array, value: Array, *, mask: Any, bias: Any, config: Any, parameters: Any
) -> Array:
    """Soft-max of the weighted sum of dot products in the tangent spaces."""
    return _fused(query, key, value, mask, bias, config, parameters, lambda key: key)


def quantised_mixed_curvature(
    query: Array, key: Array, value: Array, *, mask: Any, bias: Any, config: Any, parameters: Any
) -> Array:
    """The same with rounded keys."""

    def rounded(key: Array) -> Array:
        parts = []
        bits = (config.bits_e, config.bits_h, config.bits_s)
        for part, b in zip(_split(key, config.sizes), bits, strict=True):
            most = 2 ** (b - 1) - 1
            step = np.abs(part).max(axis=-1, keepdims=True, initial=0) / most
            step = step.astype(np.float32).astype(np.float64)
            parts.append(np.round(part / np.where(step > 0, step, 1)) * step)
        return np.concatenate(parts, axis=-1)

    return _fused(query, key, value, mask, bias, config, parameters, rounded)


def _fused(
    query: Array, key: Array, value: Array, mask: Any, bias: Any, config: Any, parameters: Any,
    rounded: Any,
) -> Array:  # fmt: skip
    query, key = rotated(query, key, config)
    mapped = []
    for array in (query, key):
        e, h, s = _split(array, config.sizes)
        root_h, root_s = (
            np.repeat(np.exp(parameters[name] / 2), array.shape[1] // len(parameters[name]))
            for name in ("curvature_h.log", "curvature_s.log")
        )
        mapped.append(
            np.concatenate(
                (
                    e,
                    _along(
                        h,
                        root_h,
                        lambda z: np.arctanh(np.minimum(z, np.tanh(config.max_radius / 2))),
                    ),
                    _along(s, root_s, np.arctan),
                ),
                axis=-1,
            )
        )
    query, key = mapped[0], rounded(mapped[1])
    key, value = repeat_heads(query, key, value)
    scores = sum(
        parameters["weights"][:, place, None, None] * (q @ k.swapaxes(-1, -2))
        for place, (q, k) in enumerate(
            zip(_split(query, config.sizes), _split(key, config.sizes), strict=True)
        )
    )
    scale = 1 / np.sqrt(query.shape[-1]) if config.scale is None else config.scale
    return (
        _softmax(adjusted_scores(scale * np.asarray(scores), mask, bias, config, parameters))
        @ value
    )


def spherical(
    query: Array, key: Array, value: Array, *, mask: Any, bias: Any, config: Any, parameters: Any
) -> Array:
    """Soft-max of −β times the angle, 2 atan2(‖q̂ − k̂‖, ‖q̂ + k̂‖)."""
    query, key = rotated(query, key, config)
    key, value = repeat_heads(query, key, value)
    query, key = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    apart = np.linalg.norm(query[..., :, None, :] - key[..., None, :, :], axis=-1)
    together = np.linalg.norm(query[..., :, None, :] + key[..., None, :, :], axis=-1)
    scores = -parameters["beta"][:, None, None] * 2 * np.arctan2(apart, together)
    return np.asarray(_softmax(adjusted_scores(scores, mask, bias, config, parameters)) @ value)


def kappa_stereographic(
    query: Array, key: Array, value: Array, *, mask: Any, bias: Any, config: Any, parameters: Any
) -> Array:
    """Soft-max of −β d_κ, head by head, each with the functions of its own geometry."""
    query, key = rotated(query, key, config)
    key, value = repeat_heads(query, key, value)
    kappas = np.repeat(parameters["curvature"], query.shape[1] // len(parameters["curvature"]))
    scores = np.empty((*query.shape[:3], key.shape[2]))
    for head, kappa in enumerate(kappas):
        x, y = (_point(array[:, head], float(kappa), config) for array in (query, key))
        apart = np.linalg.norm(x[:, :, None] - y[:, None], axis=-1)
        own, theirs = (1 + kappa * (z**2).sum(axis=-1) for z in (x, y))
        s = apart / np.sqrt(own[:, :, None] * theirs[:, None])
        if kappa == 0:
            distance = 2 * s
        elif kappa < 0:
            distance = 2 * np.arcsinh(np.sqrt(-kappa) * s) / np.sqrt(-kappa)
        else:
            distance = 2 * np.arcsin(np.minimum(np.sqrt(kappa) * s, 1)) / np.sqrt(kappa)
        scores[:, head] = -parameters["beta"][head] * distance
    return np.asarray(_softmax(adjusted_scores(scores, mask, bias, config, parameters)) @ value)


def _point(vectors: Array, kappa: float, config: Any) -> Array:
    """Points of the model, none beyond the limits of the configuration."""
    r = np.linalg.norm(vectors, axis=-1, keepdims=True)
    direction = vectors / np.where(r > 0, r, 1)
    root, half_way = np.sqrt(abs(kappa)), np.pi / 2 - 1e-3
    if config.coordinates == "tangent":
        half = r * (1 / np.sqrt(vectors.shape[-1]) if config.scale is None else config.scale) / 2
        if kappa == 0:
            return np.asarray(half * direction)
        most = config.max_radius / 2 if kappa < 0 else half_way
        angle = np.minimum(root * half, most)
        return np.asarray((np.tanh(angle) if kappa < 0 else np.tan(angle)) / root * direction)
    if kappa == 0:
        return vectors
    most = np.tanh(config.max_radius / 2) if kappa < 0 else np.tan(half_way)
    return np.asarray(np.minimum(r, most / root) * direction)


def _along(vectors: Array, root: Array, function: Any) -> Array:
    """Vectors with their length r changed to function(root r)/root."""
    r = np.linalg.norm(vectors, axis=-1, keepdims=True)
    wide = root[:, None, None]
    return np.asarray(vectors / np.where(r > 0, r, 1) * function(wide * r) / wide)


def _split(array: Array, sizes: Any) -> list[Array]:
    return np.split(array, np.cumsum(sizes)[:-1], axis=-1)


def _softmax(scores: Array) -> Array:
    """0 throughout where nothing is visible."""
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1))
