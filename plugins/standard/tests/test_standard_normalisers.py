"""Weights from scores: sinks, element-wise weights, projections onto the simplex."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]

CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def weights_of(mechanism: Any, scores: Any, dtype: Any = np.float64) -> Array:
    """The weights of one row of scores: the query is 1, keys are the scores, values show them."""
    scores = np.asarray(scores, dtype)[:, None]
    return mechanism(np.ones(1, dtype), scores, np.eye(len(scores), dtype=dtype))


# ---- softmax-one ----


def test_softmax_one_is_softmax_with_a_zero_key(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    nothing = np.zeros_like(key[..., :1, :]), np.zeros_like(value[..., :1, :])
    expected = create("scaled-dot-product", dim=12, heads=3).attend(
        query,
        np.concatenate((key, nothing[0]), axis=-2),
        np.concatenate((value, nothing[1]), axis=-2),
    )
    output = create("softmax-one", dim=12, heads=3).attend(query, key, value)
    np.testing.assert_allclose(output, expected, **CLOSE)


def test_sink_of_each_head(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    mechanism = create("softmax-one", dim=12, heads=3, sink=1.5)
    assert mechanism.parameters["sink"].tolist() == [1.5, 1.5, 1.5]
    sinks = np.array([-2.0, 0.5, 4.0])
    mechanism.parameters.update({"sink": sinks})
    found = mechanism.observe(query, key, value, "weights", "log_sum_exp")
    scores = query @ key.swapaxes(-1, -2) / 2.0
    log_sum = scipy.special.logsumexp(scores, axis=-1)
    log_sum = np.logaddexp(log_sum, sinks[:, None])
    np.testing.assert_allclose(found.log_sum_exp, log_sum, **CLOSE)
    np.testing.assert_allclose(found.weights, np.exp(scores - log_sum[..., None]), **CLOSE)
    np.testing.assert_allclose(found.output, found.weights @ value, **CLOSE)


def test_sink_counts_once_in_merged_parts(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    mechanism = create("softmax-one", dim=12, heads=3, sink=0.7)
    parts = [
        mechanism.attend_partial(
            query, key[..., a:b, :], value[..., a:b, :], start=a, total=7
        )
        for a, b in ((0, 3), (3, 4), (4, 7))
    ]  # fmt: skip
    merged = parts[2].merge(parts[0]).merge(parts[1]).finish()
    np.testing.assert_allclose(merged, mechanism.attend(query, key, value), **CLOSE)


@pytest.mark.parametrize(("sink", "total"), [(-10_000.0, 1.0), (10_000.0, 0.0)])
def test_extreme_sinks(create: Create, sink: float, total: float) -> None:
    for dtype in (np.float32, np.float64):
        weights = weights_of(create("softmax-one", dim=1, sink=sink), [300.0, -300.0], dtype)
        np.testing.assert_allclose(weights, [total, 0.0], rtol=1e-6, atol=1e-200)


# ---- element-wise ----


@pytest.mark.parametrize("offset", [None, 0.0, -1.5])
def test_sigmoid(create: Create, arrays: Arrays, offset: float | None) -> None:
    query, key, value = arrays()
    scores = query @ key.swapaxes(-1, -2) / 2.0
    expected = scipy.special.expit(scores + (-np.log(7) if offset is None else offset)) @ value
    output = create("sigmoid", dim=12, heads=3, offset=offset).attend(query, key, value)
    np.testing.assert_allclose(output, expected, **CLOSE)


def test_number_of_keys_includes_hidden_ones(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    scores = query @ key.swapaxes(-1, -2) / 2.0
    seen = np.array([True, True, False, True, False, False, True])
    sigmoid = create("sigmoid", dim=12, heads=3).attend(query, key, value, mask=seen[None])
    expected = (scipy.special.expit(scores - np.log(7)) * seen) @ value
    np.testing.assert_allclose(sigmoid, expected, **CLOSE)
    relu = create("relu-squared", dim=12, heads=3).attend(query, key, value, mask=seen[None])
    np.testing.assert_allclose(relu, (np.maximum(scores, 0) ** 2 / 7 * seen) @ value, **CLOSE)


def test_extreme_sigmoid(create: Create) -> None:
    scores = [-1000.0, -300.0, -20.0, 0.0, 300.0]
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-13)):
        weights = weights_of(create("sigmoid", dim=1, offset=0.0), scores, dtype)
        # What is below the least normal number of the type may be 0.
        least = np.finfo(dtype).tiny
        expected = scipy.special.expit(np.array(scores))
        np.testing.assert_allclose(weights, expected, rtol=tolerance, atol=least)


@pytest.mark.parametrize("mean", [True, False])
def test_relu_squared(create: Create, arrays: Arrays, mean: bool) -> None:
    query, key, value = arrays()
    scores = query @ key.swapaxes(-1, -2) / 2.0
    expected = np.maximum(scores, 0) ** 2 @ value / (7 if mean else 1)
    output = create("relu-squared", dim=12, heads=3, mean=mean).attend(query, key, value)
    np.testing.assert_allclose(output, expected, **CLOSE)


# ---- softpick ----


def softpick(scores: Any, epsilon: float = 1e-6) -> Array:
    """By the formula, in a type whose exponent reaches to ±16,000."""
    less = np.expm1(np.asarray(scores, np.longdouble))
    return (np.maximum(less, 0) / (abs(less).sum() + epsilon)).astype(np.float64)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 0.5])
def test_softpick(create: Create, epsilon: float) -> None:
    scores = [-2.0, -0.3, 0.0, 0.1, 1.7]
    mechanism = create("softpick", dim=1, epsilon=epsilon)
    np.testing.assert_allclose(weights_of(mechanism, scores), softpick(scores, epsilon), **CLOSE)


@pytest.mark.skipif(
    np.finfo(np.longdouble).maxexp < 2000, reason="this platform has no wider floating-point type"
)
@pytest.mark.parametrize(
    "scores",
    [
        [300.0, 299.0, 0.5, -3.0],
        [-300.0, -301.0, 0.5, -3.0],
        [300.0, -300.0],
        [-300.0, -300.0],
        [1000.0, 999.5, 700.0],
        [88.7, 88.8, 0.0],
    ],
)
def test_extreme_softpick(create: Create, scores: list[float]) -> None:
    mechanism = create("softpick", dim=1)
    expected = softpick(scores)
    np.testing.assert_allclose(weights_of(mechanism, scores), expected, rtol=1e-12, atol=1e-16)
    single = weights_of(mechanism, scores, np.float32)
    # A score of 1,000 is itself only known to 10⁻⁴ in float32.
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softpick_of_zero_scores_is_zero(create: Create, dtype: Any, epsilon: float) -> None:
    mechanism = create("softpick", dim=2, epsilon=epsilon)
    query, key = np.zeros((1, 3, 2), dtype), np.ones((1, 4, 2), dtype)
    found = mechanism.observe(query, key, key, "weights")
    assert not found.weights.any()
    output, pullback = mechanism.attend_vjp(query, key, key)
    assert np.isfinite(pullback(np.ones_like(output)).query).all()
    assert not output.any()


# ---- projections onto the simplex ----

SIMPLEX = ("sparsemax", "entmax15")


@pytest.mark.parametrize(
    ("name", "scores", "expected"),
    [
        ("sparsemax", [0.3], [1.0]),
        ("sparsemax", [0.0, 0.0], [0.5, 0.5]),
        ("sparsemax", [0.5, 0.0], [0.75, 0.25]),
        ("sparsemax", [1.2, 1.0, -2.0], [0.6, 0.4, 0.0]),
        ("sparsemax", [1.0, 0.0], [1.0, 0.0]),
        ("sparsemax", [5.0, 1.0, 3.9], [1.0, 0.0, 0.0]),
        ("entmax15", [0.3], [1.0]),
        ("entmax15", [0.0, 0.0], [0.5, 0.5]),
        # τ = 0.6: (1.4 − 0.6)² + (1.2 − 0.6)² = 1
        ("entmax15", [2.8, 2.4, 0.0], [0.64, 0.36, 0.0]),
        ("entmax15", [2.0, 0.0], [1.0, 0.0]),
    ],
)
def test_by_hand(create: Create, name: str, scores: list[float], expected: list[float]) -> None:
    weights = weights_of(create(name, dim=1), scores)
    np.testing.assert_allclose(weights, expected, rtol=1e-14, atol=1e-15)


rows = hnp.arrays(
    np.float64,
    st.integers(1, 80),
    # Equal scores, and such as are within reach of each other, are what projections are about.
    elements=st.floats(-300, 300) | st.floats(-2, 2) | st.just(0.25),
)


@pytest.mark.parametrize("name", SIMPLEX)
@settings(derandomize=True, deadline=None, max_examples=80)
@given(scores=rows)
def test_on_the_simplex(create: Create, plain: SimpleNamespace, name: str, scores: Array) -> None:
    mechanism = create(name, dim=1)
    weights = weights_of(mechanism, scores)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    # What is certain to have no weight; the threshold is at most the highest score.
    reach = 1 if name == "sparsemax" else 2
    assert not weights[scores < scores.max() - reach].any()
    np.testing.assert_allclose(weights, plain.weights(name, scores), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(weights_of(mechanism, scores + 5.0), weights, atol=1e-7)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(scores=rows)
def test_entmax_is_between_softmax_and_sparsemax(create: Create, scores: Array) -> None:
    support = {name: weights_of(create(name, dim=1), scores) > 0 for name in SIMPLEX}
    assert not (support["sparsemax"] & ~support["entmax15"]).any()
    least = {name: weights_of(create(name, dim=1), scores).max() for name in SIMPLEX}
    soft = weights_of(create("scaled-dot-product", dim=1), scores).max()
    assert soft <= least["entmax15"] + 1e-9
    assert least["entmax15"] <= least["sparsemax"] + 1e-9


@pytest.mark.parametrize("name", SIMPLEX)
def test_many_keys(create: Create, arrays: Arrays, plain: SimpleNamespace, name: str) -> None:
    query, key, value = arrays(queries=33, keys=200)
    expected = plain.attend(name, plain.scores(name, query, key), value)
    for dtype, tolerance in ((np.float64, 1e-11), (np.float32, 2e-5)):
        found = create(name, dim=12, heads=3).attend(
            *(array.astype(dtype) for array in (query, key, value))
        )
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SIMPLEX)
def test_gradient_stays_on_the_support(create: Create, name: str) -> None:
    mechanism = create(name, dim=1)
    key = np.array([[[2.0], [1.9], [1.8], [-3.0]]])
    output, pullback = mechanism.attend_vjp(np.ones((1, 1, 1)), key, np.eye(4)[None])
    seen = output[0, 0] > 0
    assert seen.tolist() == [True, True, True, False]
    jacobian = np.array(
        [pullback(row[None, None]).key[0, :, 0] for row in np.eye(4)]
    )  # of weight i by score j
    assert not jacobian[~seen].any()
    assert not jacobian[:, ~seen].any()
    # Weights go on summing to 1. On the support sparsemax is a projection along 1, and the Jacobian
    # of entmax is that of arXiv:1905.05702, proposition 2, with s = √p.
    np.testing.assert_allclose(jacobian.sum(axis=0), 0, atol=1e-12)
    s = np.ones(3) if name == "sparsemax" else np.sqrt(output[0, 0][seen])
    expected = np.diag(s) - np.outer(s, s) / s.sum()
    np.testing.assert_allclose(jacobian[np.ix_(seen, seen)], expected, atol=1e-9)
