"""FAVOR+: what is known in closed form of its random features, and its numerical range."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from scipy.special import logsumexp, softmax

from polyattn_core.errors import ConfigError

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def log_features(favor: Any, x: Array) -> Array:
    """log φ(x), straight from the definition."""
    omega = favor.projection
    if favor.config.kind == "hyperbolic":
        omega = np.concatenate((omega, -omega))
    scale = favor.config.scale or x.shape[-1] ** -0.5
    x = np.sqrt(scale) * x
    return x @ omega.T - (x * x).sum(axis=-1, keepdims=True) / 2 - np.log(len(omega)) / 2


def dense(favor: Any, query: Array, key: Array, value: Array, visible: Any = True) -> Array:
    """The output by logarithms of all pairs: nothing can underflow."""
    own, theirs = log_features(favor, query), log_features(favor, key)
    scores = np.stack(
        [logsumexp(own[..., i, None, :] + theirs, axis=-1) for i in range(own.shape[-2])], -2
    )
    scores = np.where(visible, scores, -np.inf)
    return softmax(scores, axis=-1) @ value


def estimates(create: Create, kind: str, orthogonal: bool, pairs: Array, draws: int) -> Array:
    """φ(q)·φ(k) / exp(q·k) for all pairs (2, pairs, size), (draws, pairs)."""
    size = pairs.shape[-1]
    query, key = pairs[:, :, None]
    found = np.empty((draws, len(query)))
    for seed in range(draws):
        options = {"features": 2 * size, "kind": kind, "orthogonal": orthogonal, "scale": 1.0}
        favor = create("favor", dim=size * len(query), heads=len(query), seed=seed, **options)
        # With a single key the log-sum-exp is the logarithm of its one product.
        state = favor.attend_partial(query, key, key)
        found[seed] = state.log_sum_exp[:, 0] - np.einsum("hqd,hkd->h", query, key)
    return np.exp(found)


@pytest.mark.parametrize("kind", ["positive", "hyperbolic"])
def test_mean_and_variance(create: Create, kind: str) -> None:
    rng = np.random.default_rng(0)
    pairs = 0.25 * rng.standard_normal((2, 32, 4))
    draws, count = 2000, 8
    norms = (pairs.sum(axis=0) ** 2).sum(axis=-1)
    # Of φ(q)·φ(k) / exp(q·k), from the moment generating function of the normal distribution.
    variance = np.expm1(norms) / count
    if kind == "hyperbolic":
        variance *= (1 - np.exp(-norms)) / 2
    found = estimates(create, kind, False, pairs, draws)
    errors = (found.mean(axis=0) - 1) / np.sqrt(variance / draws)
    assert abs(errors).max() < 4.5
    # All pairs share the projections of a draw; the geometric mean evens out what is left.
    ratios = np.log(found.var(axis=0) / variance)
    assert abs(ratios.mean()) < 0.1
    assert abs(ratios).max() < 0.6
    orthogonal = estimates(create, kind, True, pairs, draws)
    errors = (orthogonal.mean(axis=0) - 1) / np.sqrt(variance / draws)
    assert abs(errors).max() < 4.5
    # Most of it is in the even powers, all that hyperbolic features have.
    gain = -np.log(orthogonal.var(axis=0) / variance).mean()
    assert gain > (0.05 if kind == "positive" else 0.4)


def test_projection_is_orthogonal_in_blocks(create: Create) -> None:
    favor = create("favor", dim=32, heads=2, features=40)
    omega = favor.projection
    assert omega.shape == (40, 16)
    for first in (0, 16, 32):
        block = omega[first : first + 16]
        gram = block @ block.T
        np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-12)
    # Independent projections are not.
    free = create("favor", dim=32, heads=2, features=40, orthogonal=False).projection
    assert abs(free[:16] @ free[:16].T - np.diag(np.diag(free[:16] @ free[:16].T))).max() > 1


@pytest.mark.parametrize("orthogonal", [False, True])
def test_each_projection_is_normal(create: Create, orthogonal: bool) -> None:
    omega = np.concatenate(
        [
            create("favor", dim=5, features=5, orthogonal=orthogonal, seed=seed).projection
            for seed in range(1000)
        ]
    )
    squares = (omega * omega).sum(axis=1)
    assert stats.kstest(squares, stats.chi2(5).cdf).pvalue > 1e-3
    for i in range(5):
        assert stats.kstest(omega[i::5, i], stats.norm.cdf).pvalue > 1e-3


def test_projection_follows_from_the_options(create: Create) -> None:
    favor = create("favor", dim=64, heads=4)
    # 16 · ln 16 = 44.4, rounded up to a multiple of 16.
    assert favor.projection.shape == (48, 16)
    assert create("favor", dim=1).projection.shape == (16, 1)
    assert create("favor", dim=64).projection.shape == (272, 64)
    assert create("favor", dim=64, features=5).projection.shape == (5, 64)
    assert not favor.projection.flags.writeable
    assert not favor.parameters
    np.testing.assert_array_equal(create("favor", dim=64, heads=4).projection, favor.projection)
    assert not np.allclose(create("favor", dim=64, heads=4, seed=1).projection, favor.projection)
    copied = pickle.loads(pickle.dumps(favor))
    np.testing.assert_array_equal(copied.projection, favor.projection)


@pytest.mark.parametrize("kind", ["positive", "hyperbolic"])
def test_error_falls_with_the_number_of_features(create: Create, arrays: Arrays, kind: str) -> None:
    query, key, value = arrays(40, 60, size=8)
    # Large tokens have rare large features, without which no average is near its mean.
    query, key = query / 2, key / 2
    expected = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(8), axis=-1) @ value
    errors = []
    for features in (16, 64, 256, 1024, 4096):
        squares = [
            np.mean((create("favor", dim=16, heads=2, features=features, kind=kind, seed=seed)
                     .attend(query, key, value) - expected) ** 2)
            for seed in range(8)
        ]  # fmt: skip
        errors.append(np.sqrt(np.mean(squares)))
    ratios = np.array(errors[:-1]) / errors[1:]
    # Four times the features, half the error.
    assert (ratios > 1.4).all()
    assert (ratios < 2.9).all()
    assert errors[-1] < 0.03


@pytest.mark.oracle
@pytest.mark.parametrize("is_causal", [False, True])
def test_approximates_the_softmax_of_torch(create: Create, arrays: Arrays, is_causal: bool) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    query, key, value = arrays(100, 100, size=8)
    query, key = query / 2, key / 2
    tensors = [torch.from_numpy(array) for array in (query, key, value)]
    exact = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=is_causal)
    favor = create("favor", dim=16, heads=2, features=30_000, kind="hyperbolic", causal=is_causal)
    output = favor.attend(query, key, value)
    assert np.sqrt(np.mean((output - exact.numpy()) ** 2)) < 0.01
    seen = favor.observe(query, key, value, "log_sum_exp").log_sum_exp
    scores = tensors[0] @ tensors[1].transpose(-1, -2) / 8**0.5
    if is_causal:
        scores = scores.masked_fill(~torch.ones(100, 100).tril().bool(), -np.inf)
    assert abs(seen - torch.logsumexp(scores, -1).numpy()).mean() < 0.02


def test_scale_is_that_of_the_scores(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(6, 9)
    for scale in (0.05, 0.5, 2.0):
        favor = create("favor", dim=8, heads=2, scale=scale)
        rooted = create("favor", dim=8, heads=2, scale=1.0)
        expected = rooted.attend(np.sqrt(scale) * query, np.sqrt(scale) * key, value)
        np.testing.assert_allclose(favor.attend(query, key, value), expected, **CLOSE)
        np.testing.assert_allclose(expected, dense(favor, query, key, value), **CLOSE)
    default = create("favor", dim=8, heads=2, scale=0.5).attend(query, key, value)
    np.testing.assert_array_equal(
        create("favor", dim=8, heads=2).attend(query, key, value), default
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("large", [1.0, 8.0, 60.0])
def test_nothing_underflows(create: Create, dtype: Any, is_causal: bool, large: float) -> None:
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, 1, 140, 512))
    query, key = large * query, large * key
    favor = create("favor", dim=512, features=64, causal=is_causal)
    visible = np.tri(140, dtype=bool) if is_causal else True
    expected = dense(favor, query, key, value, visible)
    output = favor.attend(*(x.astype(dtype) for x in (query, key, value)))
    assert abs(expected).mean() > 0.01
    # Logarithms of features are of size ‖x‖², and known to so many digits.
    tolerance = 20 * np.finfo(dtype).eps * large**2 * 512
    np.testing.assert_allclose(output, expected, atol=max(tolerance, 1e-12))
    weights = favor.observe(*(x.astype(dtype) for x in (query, key, value)), "weights").weights
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [1, 30, 63, 64, 100])
def test_keys_that_dwarf_those_before(create: Create, dtype: Any, place: int) -> None:
    # Huge keys have tiny features: what stands before `place` is e^−1000 of what comes after, and
    # yet all that the first queries see.
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, 1, 200, 8))
    key[:, :, :place] *= 40
    favor = create("favor", dim=8, features=16, causal=True)
    visible = np.tri(200, dtype=bool)
    expected = dense(favor, query, key, value, visible)
    assert log_features(favor, key)[..., :place, :].max(axis=-1).min() < -800
    output = favor.attend(*(x.astype(dtype) for x in (query, key, value)))
    tolerance = 1e-10 if dtype == np.float64 else 5e-3
    np.testing.assert_allclose(output, expected, atol=tolerance)
    # The only key in sight has all the weight.
    np.testing.assert_allclose(output[0, 0, 0], value[0, 0, 0], rtol=1e-5)
    # Gradients go through the same: those of values are sums of weights.
    _, pull = favor.attend_vjp(*(x.astype(dtype) for x in (query, key, value)))
    ones = np.zeros_like(output)
    ones[..., 0] = 1
    found = pull(ones)
    weights = dense(favor, query, key, np.eye(200)[None, None], visible)
    np.testing.assert_allclose(found.value[..., 0], weights.sum(axis=-2), atol=100 * tolerance)
    for gradient in (found.query, found.key):
        assert np.isfinite(gradient).all()


def test_equals_the_recurrence(create: Create, arrays: Arrays) -> None:
    query, key, value = (array[0, 0] for array in arrays(150, 150, heads=1, size=8))
    favor = create("favor", dim=8, causal=True)
    own, theirs = (np.exp(log_features(favor, x)) for x in (query, key))
    state, mass, expected = np.zeros((own.shape[1], 9)), np.zeros(own.shape[1]), []
    for q, k, v in zip(own, theirs, value, strict=True):
        state += k[:, None] * v
        mass += k
        expected.append(q @ state / (q @ mass))
    np.testing.assert_allclose(favor(query, key, value), expected, **CLOSE)


def test_statistics(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(70, 100, heads=4, key_heads=2)
    favor = create("favor", dim=16, heads=4, kv_heads=2, causal=True)
    seen = favor.observe(query, key, value, "weights", "log_sum_exp", "column_mass")
    repeated = np.repeat(key, 2, axis=1)
    units = np.broadcast_to(np.eye(100), (2, 4, 100, 100))
    visible = np.tri(70, 100, 30, dtype=bool)
    weights = dense(favor, query, repeated, units, visible)
    np.testing.assert_allclose(seen.weights, weights, **CLOSE)
    np.testing.assert_allclose(seen.column_mass, weights.sum(axis=-2), **CLOSE)
    products = np.exp(log_features(favor, query)) @ np.exp(log_features(favor, repeated)).swapaxes(
        -1, -2
    )
    total = np.where(visible, products, 0).sum(axis=-1)
    np.testing.assert_allclose(seen.log_sum_exp, np.log(total), **CLOSE)


@pytest.mark.parametrize(
    ("option", "value"),
    [("features", 0), ("kind", "trigonometric"), ("scale", -1.0), ("seed", -1), ("epsilon", 0.1)],
)
def test_wrong_options(create: Create, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{option}: got {value}"):
        create("favor", dim=8, **{option: value})
