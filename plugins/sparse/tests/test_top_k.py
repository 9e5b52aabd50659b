"""The k highest scores: ties, masks, more keys than there are, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polyattn_core.errors import ConfigError

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]
Dense = Callable[..., Array]

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def highest(scores: Array, k: int) -> Array:
    """Which scores are among the k highest of their row, by a partial sort."""
    keys = scores.shape[-1]
    if k >= keys:
        return np.ones(scores.shape, bool)
    return scores >= np.partition(scores, keys - k, axis=-1)[..., keys - k, None]


@pytest.mark.parametrize("k", [1, 2, 7, 64, 99, 100, 101, 10_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_top_k(create: Create, arrays: Arrays, dense: Dense, k: int, dtype: Any) -> None:
    # Sums of small whole numbers are exact, so both find the same scores.
    query, key, value = (np.round(4 * array) for array in arrays(33, 100))
    seen = highest(query @ key.swapaxes(-1, -2), k)
    top = create("top-k", dim=8, heads=2, k=k, scale=0.0625)
    single = [array.astype(dtype) for array in (query, key, value)]
    tolerance = 1e-5 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(
        top.attend(*single), dense(query, key, value, seen, scale=0.0625), atol=50 * tolerance
    )
    found = top.observe(*single, "weights").weights
    np.testing.assert_array_equal(found > 0, seen)


@pytest.mark.oracle
def test_top_k_against_torch(create: Create, arrays: Arrays) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    query, key, value = arrays(33, 100)
    q, k, v = (torch.from_numpy(array).requires_grad_() for array in (query, key, value))
    scores = q @ k.transpose(-1, -2) / 2.0
    best = torch.topk(scores, 9, dim=-1)
    weights = torch.zeros_like(scores).scatter(-1, best.indices, torch.softmax(best.values, -1))
    expected = weights @ v
    expected.backward(torch.ones_like(expected))
    output, pullback = create("top-k", dim=8, heads=2, k=9).attend_vjp(query, key, value)
    np.testing.assert_allclose(output, expected.detach().numpy(), **CLOSE)
    found = pullback(np.ones_like(output))
    for gradient, tensor in ((found.query, q), (found.key, k), (found.value, v)):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-8, atol=1e-10)


def weights_of(create: Create, scores: Any, k: int, dtype: Any = np.float64, **call: Any) -> Array:
    """The weights of one row of scores: the query is 1, keys are the scores, values show them."""
    key = np.asarray(scores, dtype)[:, None]
    top = create("top-k", dim=1, k=k)
    result: Array = top(np.ones(1, dtype), key, np.eye(len(key), dtype=dtype), **call)
    return result


def test_ties_are_kept_together(create: Create) -> None:
    weights = weights_of(create, [2.0, 1.0, 1.0, 0.0, 1.0], k=2)
    shares = np.exp([2.0, 1.0, 1.0, -np.inf, 1.0])
    np.testing.assert_allclose(weights, shares / shares.sum(), **CLOSE)
    np.testing.assert_allclose(weights_of(create, [0.5] * 6, k=1), np.full(6, 1 / 6), **CLOSE)
    # Zeros are equal whatever their sign.
    np.testing.assert_allclose(weights_of(create, [-0.0, 0.0, -1.0], k=1), [0.5, 0.5, 0], **CLOSE)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_k_counts_visible_keys(create: Create, k: int) -> None:
    scores = np.array([9.0, -1.0, 8.0, -2.0, -3.0, 7.0, -1.5])
    seen = np.array([False, True, False, True, True, False, True])
    weights = weights_of(create, scores, k, mask=seen[None])
    kept = np.zeros(7, bool)
    kept[[1, 6, 3, 4][:k]] = True  # in falling order
    shares = np.where(kept, np.exp(scores), 0)
    np.testing.assert_allclose(weights, shares / shares.sum(), **CLOSE)


def test_nothing_visible(create: Create) -> None:
    assert not weights_of(create, [1.0, 2.0], 1, mask=np.zeros((1, 2), bool)).any()


def test_causal(create: Create, arrays: Arrays, dense: Dense) -> None:
    query, key, value = arrays(30, 40)
    scores = query @ key.swapaxes(-1, -2)
    seen = np.tri(30, 40, 10, dtype=bool)
    kept = highest(np.where(seen, scores, -np.inf), 4) & seen
    top = create("top-k", dim=8, heads=2, k=4, causal=True)
    np.testing.assert_allclose(
        top.attend(query, key, value), dense(query, key, value, kept), **CLOSE
    )


def test_bias_counts(create: Create, arrays: Arrays, dense: Dense) -> None:
    query, key, value = arrays(6, 40)
    bias = 3 * np.random.default_rng(2).standard_normal((2, 6, 40))
    kept = highest(query @ key.swapaxes(-1, -2) / 2.0 + bias, 4)
    output = create("top-k", dim=8, heads=2, k=4).attend(query, key, value, bias=bias)
    expected = dense(query, key, value, kept, adjust=lambda scores: scores + bias)
    np.testing.assert_allclose(output, expected, **CLOSE)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    scores=hnp.arrays(
        np.float32,
        st.integers(1, 100),
        # Every order of magnitude, both signs, and many that are equal.
        elements=st.floats(-80, 80, width=32)
        | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-38, -1e-38, 1e-45, 50.0]),
    ),
    k=st.integers(1, 110),
)
def test_kth_score_is_exact(create: Create, scores: Array, k: int) -> None:
    weights = weights_of(create, scores, k, np.float32)
    kept = highest(scores, k)
    assert not weights[~kept].any()
    shares = np.where(kept, np.exp(scores.astype(np.float64) - scores.max()), 0)
    np.testing.assert_allclose(weights, shares / shares.sum(), rtol=1e-4, atol=1e-37)


def test_gradient_reaches_what_was_kept(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(1, 50)
    top = create("top-k", dim=8, heads=2, k=3)
    kept = top.observe(query, key, value, "weights").weights[:, :, 0] > 0
    assert (kept.sum(axis=-1) == 3).all()
    output, pullback = top.attend_vjp(query, key, value)
    found = pullback(np.ones_like(output))
    for gradient in (found.key, found.value):
        np.testing.assert_array_equal(gradient.any(axis=-1) & ~kept, False)
        assert gradient[kept].any()


@pytest.mark.parametrize("k", [0, -3, 2.5])
def test_wrong_k(create: Create, k: Any) -> None:
    with pytest.raises(ConfigError, match=f"k: got {k}"):
        create("top-k", dim=8, k=k)
