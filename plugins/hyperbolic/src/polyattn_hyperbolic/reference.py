"""Each mechanism in plain NumPy, float64: points of the ball, their distances, Klein midpoints.

Nothing here is on the hyperboloid, where the mechanisms compute.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.reference import adjusted_scores, repeat_heads, rotated

Array = npt.NDArray[Any]


def hyperbolic(
    query: Array, key: Array, value: Array, *, mask: Any, bias: Any, config: Any, parameters: Any
) -> Array:
    """Soft-max of −β times the distance in the ball."""
    return _attend(query, key, value, mask, bias, config, parameters, squared=False)


def lorentz(
    query: Array, key: Array, value: Array, *, mask: Any, bias: Any, config: Any, parameters: Any
) -> Array:
    """Soft-max of −β times the squared Lorentzian distance."""
    return _attend(query, key, value, mask, bias, config, parameters, squared=True)


def _attend(
    query: Array, key: Array, value: Array, mask: Any, bias: Any, config: Any, parameters: Any,
    squared: bool,
) -> Array:  # fmt: skip
    query, key = rotated(query, key, config)
    key, value = repeat_heads(query, key, value)
    k = -np.exp(parameters["curvature.log"])
    k = np.repeat(k, query.shape[1] // len(k))[:, None, None]
    points = _ball(query, config, k), _ball(key, config, k)
    beta = parameters["beta"][:, None, None]
    scores = -beta * (lorentzian if squared else distances)(*points, k)
    weights = _softmax(adjusted_scores(scores, mask, bias, config, parameters))
    return _aggregate(weights, value, config, k)


def lorentz_cascade(
    query: Array, key: Array, value: Array, *, mask: Any, bias: Any, config: Any, parameters: Any
) -> Array:
    """Soft-max of −β times a weighted sum of squared Lorentzian distances of slices."""
    query, key = rotated(query, key, config)
    key, value = repeat_heads(query, key, value)
    scale = _scale(config, query)
    total: Array = np.zeros(())
    start = 0
    levels = len(config.curvatures)
    for level in range(levels):
        size = (query.shape[-1] + levels - 1 - level) // levels
        if size == 0:
            break
        part = slice(start, start + size)
        start += size
        k = _curvature(parameters, level, query.shape[1])
        points = [_ball(x[..., part], config, k, scale) for x in (query, key)]
        total = total + _weight(parameters, level) * lorentzian(points[0], points[1], k)
    scores = -parameters["beta"][:, None, None] * total
    return np.asarray(_softmax(adjusted_scores(scores, mask, bias, config, parameters)) @ value)


def mixed_curvature(
    query: Array, key: Array, value: Array, *, mask: Any, bias: Any, config: Any, parameters: Any
) -> Array:
    """Soft-max of −β times a weighted sum of squared distances of slices."""
    query, key = rotated(query, key, config)
    key, value = repeat_heads(query, key, value)
    scale = _scale(config, query)
    e, h, s = config.sizes
    (q_e, q_h, q_s), (k_e, k_h, k_s) = (np.split(x, (e, e + h), axis=-1) for x in (query, key))
    squares = []
    if e:
        flat = scale if config.coordinates == "tangent" else 1.0
        squares.append(((flat * (q_e[..., :, None, :] - k_e[..., None, :, :])) ** 2).sum(axis=-1))
    if h:
        k = _curvature(parameters, 0, query.shape[1])
        points = [_ball(x, config, k, scale) for x in (q_h, k_h)]
        squares.append(distances(points[0], points[1], k) ** 2)
    if s:
        q_s, k_s = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q_s, k_s))
        # 2 atan2(‖x − y‖, ‖x + y‖): good for small and for large angles.
        apart = np.linalg.norm(q_s[..., :, None, :] - k_s[..., None, :, :], axis=-1)
        together = np.linalg.norm(q_s[..., :, None, :] + k_s[..., None, :, :], axis=-1)
        squares.append((2 * np.arctan2(apart, together)) ** 2 / config.curvature_s)
    total = sum(_weight(parameters, place) * square for place, square in enumerate(squares))
    scores = -parameters["beta"][:, None, None] * total
    return np.asarray(_softmax(adjusted_scores(scores, mask, bias, config, parameters)) @ value)


def _curvature(parameters: Any, level: int, heads: int) -> Array:
    k = -np.exp(parameters["curvature.log"][:, level])
    return np.asarray(np.repeat(k, heads // len(k))[:, None, None])


def _weight(parameters: Any, place: int) -> Array:
    weights = np.exp(parameters["components"])
    return np.asarray((weights[:, place] / weights.sum(axis=1))[:, None, None])


def distances(x: Array, y: Array, k: Array) -> Array:
    """Geodesic distances between points of the ball, (…, queries, keys)."""
    return np.asarray(np.arccosh(1 + lorentzian(x, y, k) * -k / 2) / np.sqrt(-k))


def lorentzian(x: Array, y: Array, k: Array) -> Array:
    """Squared Lorentzian distances: 2/−κ · (cosh(√−κ d) − 1)."""
    squares = ((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(axis=-1)
    own = 1 + k * (x**2).sum(axis=-1, keepdims=True)
    theirs = (1 + k * (y**2).sum(axis=-1, keepdims=True)).swapaxes(-1, -2)
    return np.asarray(4 * squares / (own * theirs))


def _ball(vectors: Array, config: Any, k: Array, scale: float | None = None) -> Array:
    """Points of the ball, none further from the origin than the configuration says."""
    root = np.sqrt(-k)
    r = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if config.coordinates == "hyperboloid":
        vectors = vectors[..., 1:]
        r = np.linalg.norm(vectors, axis=-1, keepdims=True)
        far = np.arcsinh(root * r)
    elif config.coordinates == "tangent":
        far = root * r * (_scale(config, vectors) if scale is None else scale)
    else:
        far = 2 * np.arctanh(np.minimum(root * r, np.tanh(config.max_radius / 2)))
    far = np.minimum(far, config.max_radius)
    direction = np.divide(vectors, r, out=np.zeros_like(vectors), where=r > 0)
    return np.asarray(np.tanh(far / 2) / root * direction)


def _scale(config: Any, vectors: Array) -> float:
    return float(1 / np.sqrt(vectors.shape[-1]) if config.scale is None else config.scale)


def _aggregate(weights: Array, value: Array, config: Any, k: Array) -> Array:
    """The weighted mean, or the Einstein midpoint of points of the Klein disc."""
    if config.aggregation == "average":
        return np.asarray(weights @ value)
    ball, root = np.sqrt(-k) * _ball(value, config, k), np.sqrt(-k)
    klein = 2 * ball / (1 + (ball**2).sum(axis=-1, keepdims=True))
    gamma = 1 / np.sqrt(1 - (klein**2).sum(axis=-1, keepdims=True))
    total = weights @ gamma
    middle = weights @ (gamma * klein) / np.where(total > 0, total, 1)
    length = np.linalg.norm(middle, axis=-1, keepdims=True)
    direction = middle / np.where(length > 0, length, 1)
    far = np.arctanh(length) / root
    if config.coordinates == "tangent":
        return np.asarray(far / _scale(config, value) * direction)
    if config.coordinates == "ball":
        return np.asarray(np.tanh(root * far / 2) / root * direction)
    return np.concatenate((np.cosh(root * far), np.sinh(root * far) * direction), axis=-1) / root


def _softmax(scores: Array) -> Array:
    """0 throughout where nothing is visible."""
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1))
