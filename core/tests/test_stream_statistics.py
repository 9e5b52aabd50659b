"""Entropy from the streaming state, and digits of weights and gradients at large scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn_core.masks import Causal, Window
from polyattn_core.simd import engine

Array = Any


def scores_and_entropy(
    query: Array, key: Array, scale: float, visible: Array, sink: Array | None = None
) -> Array:
    """−Σ w ln w in float64."""
    scores = scale * np.einsum("bhqd,bhkd->bhqk", query, key, dtype=np.float64)
    scores = np.where(visible, scores, -np.inf)
    if sink is not None:
        column = np.broadcast_to(sink[:, None, None], (*scores.shape[:-1], 1))
        scores = np.concatenate([scores, column], axis=-1)
    most = np.maximum(scores.max(axis=-1, keepdims=True), -1e300)
    weights = np.exp(scores - most)
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.where(visible.any(axis=-1)[..., None], weights / np.where(total, total, 1), 0)
    if sink is not None:
        weights = weights[..., :-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(weights > 0, weights * np.log(weights), 0).sum(axis=-1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 4000), (65, 63), (63, 300), (9, 5000)])
@pytest.mark.parametrize("scale", [0.0, 0.3, 40.0])
def test_entropy_rides_along(dtype: str, queries: int, keys: int, scale: float) -> None:
    rng = np.random.default_rng(keys)
    query = rng.standard_normal((1, 2, queries, 8)).astype(dtype)
    key = rng.standard_normal((1, 2, keys, 8)).astype(dtype)
    expected = scores_and_entropy(query, key, scale, np.ones((queries, keys), bool))
    for workers in (1, 2):
        request = engine.Request(query, key, key, scale, entropy=True, threads=workers)
        found: Array = engine.forward(request).entropy
        close = {"float32": 1e-4, "float64": 1e-11}[dtype]
        np.testing.assert_allclose(found, expected, rtol=close, atol=close)


def test_entropy_with_a_sink_of_any_size() -> None:
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 1, 3, 70, 8))
    for queries in (70, 2):  # in one go, and in chunks of the keys
        sink = np.array([-40.0, 0.5, 200.0])
        many = np.tile(key, (1, 1, 40, 1))
        request = engine.Request(query[:, :, :queries], many, many, 0.4, sink=sink, entropy=True)
        visible = np.ones((queries, many.shape[2]), bool)
        expected = scores_and_entropy(query[:, :, :queries], many, 0.4, visible, sink)
        found: Array = engine.forward(request).entropy
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("mask", [Causal(), Window(2, 2), ~Window(40, 40)], ids=repr)
def test_entropy_under_masks_and_of_empty_rows(build: Any, mask: Any) -> None:
    rng = np.random.default_rng(1)
    query, key = rng.standard_normal((2, 1, 1, 66, 8))
    seen = build(dim=8, scale=0.5).observe(query, key, key, "entropy", "weights", mask=mask)
    expected = scores_and_entropy(query, key, 0.5, seen.weights > 0)
    np.testing.assert_allclose(seen.entropy, expected, atol=1e-12)
    assert (seen.entropy[(seen.weights == 0).all(axis=-1)] == 0).all()


def test_entropy_of_what_is_not_a_number(build: Any) -> None:
    query = np.ones((1, 3, 8), np.float32)
    query[0, 1] = np.nan
    found = build(dim=8).observe(query, query[:, :1], query[:, :1], "entropy").entropy
    assert np.isnan(found[0, 1])
    assert (found[0, [0, 2]] == 0).all()


@pytest.mark.parametrize(("queries", "keys"), [(70, 90), (1, 3000)])
def test_weights_of_scores_of_thousands_sum_to_one(build: Any, queries: int, keys: int) -> None:
    rng = np.random.default_rng(2)
    query = rng.standard_normal((1, queries, 8)).astype(np.float32)
    key = rng.standard_normal((1, keys, 8)).astype(np.float32)
    bias = np.float32(5000.0 + rng.integers(0, 3, (1, queries, keys)))
    mechanism = build(dim=8, scale=2**-10)
    seen = mechanism.observe(query, key, key, "weights", bias=bias)
    # A log-sum-exp of 5,000 has a spacing of 5e-4: rounded to it, sums were off by that.
    np.testing.assert_allclose(seen.weights.sum(axis=-1), 1, rtol=2e-6)
    np.testing.assert_allclose(seen.weights @ key, seen.output, atol=3e-6)
    _, pull = mechanism.attend_vjp(query, key, key, bias=bias)
    found = pull(np.ones_like(seen.output))
    # With the gradient of ones, that of the values is the column mass.
    expected = seen.weights.astype(float).sum(axis=-2)
    np.testing.assert_allclose(found.value[..., 0], expected, rtol=1e-5)
    np.testing.assert_allclose(found.value[..., 0].sum(axis=-1), queries, rtol=3e-6)
    np.testing.assert_allclose(found.bias.sum(axis=-1), 0, atol=1e-5)
