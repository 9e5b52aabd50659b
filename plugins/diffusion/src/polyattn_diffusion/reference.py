"""What the mechanisms compute, in float64, with matrices: short, not fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.special

Array = npt.NDArray[Any]
Parameters = Mapping[str, Array]


def weights_of(key: Array, config: Any, neighbours: bool) -> Array:
    """W of the keys (n, size)."""
    n = len(key)
    distances = np.sqrt(((key[:, None] - key[None]) ** 2).sum(axis=-1))
    sigma = config.sigma
    if sigma is None:
        sigma = np.median(distances[np.triu_indices(n, 1)]) if n > 1 else 1.0
        sigma = sigma or 1.0
    weights = np.exp(-(distances**2) / (2 * sigma**2))
    np.fill_diagonal(weights, 0)
    if neighbours:
        np.fill_diagonal(distances, np.inf)
        near = np.zeros((n, n), bool)
        order = np.argsort(distances, axis=1, kind="stable")[:, : min(config.k, n - 1)]
        np.put_along_axis(near, order, True, axis=1)
        weights *= near | near.T
    result: Array = weights
    return result


def laplacian_of(weights: Array, kind: str) -> Array:
    """The Laplacian; 0 where a key has no edge."""
    degrees = weights.sum(axis=1)
    if kind == "unnormalized":
        return np.diag(degrees) - weights
    inverse = np.divide(1, degrees, out=np.zeros_like(degrees), where=degrees > 0)
    linked = np.diag((degrees > 0).astype(float))
    if kind == "random-walk":
        return np.asarray(linked - inverse[:, None] * weights)
    return np.asarray(linked - np.sqrt(inverse)[:, None] * weights * np.sqrt(inverse))


def _attend(
    query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None, config: Any,
    spread: Callable[[Array, int], Array],
) -> Array:  # fmt: skip
    """`spread` maps visible keys and the number of their head to the matrix f(L)."""
    batch, heads, queries, size = query.shape
    group = heads // key.shape[1]
    out = np.zeros((batch, heads, queries, value.shape[-1]))
    for b in range(batch):
        for h in range(heads):
            seen = np.ones(key.shape[2], bool) if mask is None else mask[b, h].any(axis=0)
            if not seen.any():
                continue
            k, v = key[b, h // group][seen], value[b, h // group][seen]
            scores = (config.scale or size**-0.5) * query[b, h] @ k.T
            if bias is not None:
                scores = scores + bias[b, h][:, seen]
            if config.softcap is not None:
                scores = config.softcap * np.tanh(scores / config.softcap)
            out[b, h] = scipy.special.softmax(scores, axis=-1) @ spread(k, h // group) @ v
    return out


def _spectral(function: Callable[[Array, int, Any, Parameters], Array]) -> Callable[..., Array]:
    def attention(
        query: Array, key: Array, value: Array, *, mask: Array | None = None,
        bias: Array | None = None, config: Any, parameters: Parameters,
    ) -> Array:  # fmt: skip
        def spread(k: Array, head: int) -> Array:
            weights = weights_of(k, config, config.use_knn)
            laplacian = laplacian_of(weights, config.laplacian_type)
            return function(laplacian, head, config, parameters)

        return _attend(query, key, value, mask, bias, config, spread)

    return attention


def _heat(laplacian: Array, head: int, config: Any, parameters: Parameters) -> Array:
    if config.num_steps is not None:
        step = np.eye(len(laplacian)) - config.t / config.num_steps * laplacian
        return np.linalg.matrix_power(step, config.num_steps)
    result: Array = scipy.linalg.expm(-config.t * laplacian)
    return result


def _scales(laplacian: Array, head: int, config: Any, parameters: Parameters) -> Array:
    shares = scipy.special.softmax(parameters["scale_logits"][head])
    times = config.t * config.ratio ** np.arange(1.0 - config.scales, 1)
    result: Array = sum(
        m * scipy.linalg.expm(-t * laplacian) for m, t in zip(shares, times, strict=True)
    )
    return result


def _page_rank(laplacian: Array, head: int, config: Any, parameters: Parameters) -> Array:
    eye, alpha = np.eye(len(laplacian)), config.alpha
    result: Array = alpha * np.linalg.inv(alpha * eye + (1 - alpha) * laplacian)
    return result


def _polynomial(laplacian: Array, head: int, config: Any, parameters: Parameters) -> Array:
    bound = 2.0
    if config.laplacian_type == "unnormalized":
        bound = 2 * laplacian.diagonal().max()
    x = 2 / max(bound, 1e-30) * laplacian - np.eye(len(laplacian))
    terms = [np.eye(len(x)), x]
    while len(terms) <= config.order:
        terms.append(2 * x @ terms[-1] - terms[-2])
    result: Array = sum(c * t for c, t in zip(parameters["coefficients"][head], terms, strict=True))
    return result


def _cosine(laplacian: Array, head: int, config: Any, parameters: Parameters) -> Array:
    eigenvalues, vectors = np.linalg.eig(laplacian)
    root = np.sqrt(np.maximum(eigenvalues.real, 0))
    result: Array = (vectors * np.cos(config.t * root) @ np.linalg.inv(vectors)).real
    return result


diffusion = _spectral(_heat)
multiscale_diffusion = _spectral(_scales)
page_rank = _spectral(_page_rank)
chebyshev = _spectral(_polynomial)
wave = _spectral(_cosine)


def advection_diffusion(
    query: Array, key: Array, value: Array, *, mask: Array | None = None,
    bias: Array | None = None, config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """Attention whose weights diffuse and drift."""

    def spread(k: Array, head: int) -> Array:
        weights = weights_of(k, config, True)
        degrees = weights.sum(axis=1, keepdims=True)
        potential = k @ parameters["drift"][head]
        climb = np.maximum(potential[None, :] - potential[:, None], 0)
        rates = (1 + climb) * np.divide(
            weights, degrees, out=np.zeros_like(weights), where=degrees > 0
        )
        result: Array = scipy.linalg.expm(config.t * (rates - np.diag(rates.sum(axis=1))))
        return result

    return _attend(query, key, value, mask, bias, config, spread)
