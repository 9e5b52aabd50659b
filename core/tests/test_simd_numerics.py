"""The streaming engine against NumPy in double precision: accuracy, large and small numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn_core.simd import engine
from polyattn_core.simd.rules import score_rule

Build = Callable[..., Any]
Array = Any

SINGLE, DOUBLE = np.float32, np.float64
both = pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])


@score_rule
def power(score, shift):  # type: ignore[no-untyped-def]
    return np.exp(score + shift)


@power.derivative
def power_derivative(score, shift):  # type: ignore[no-untyped-def]
    grown = np.exp(score + shift)
    return (grown, grown)


def arrays(seed: int, dtype: Any, *shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def softmax(scores: Array, sink: Array | None = None) -> Array:
    """Weights in the dtype of the scores, as one writes it in NumPy."""
    most = scores.max(axis=-1, keepdims=True)
    if sink is not None:
        most = np.maximum(most, sink)
    grown = np.exp(scores - most)
    total = grown.sum(axis=-1, keepdims=True)
    return grown / (total if sink is None else total + np.exp(sink - most))


def plain(query: Array, key: Array, value: Array, dtype: Any) -> Array:
    query, key, value = (array.astype(dtype) for array in (query, key, value))
    scale = dtype(1 / np.sqrt(query.shape[-1]))
    return softmax((query @ key.swapaxes(-1, -2)) * scale) @ value


# ---- accuracy -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "size", "spread"),
    [(64, 64, 1), (1000, 64, 1), (8192, 32, 1), (1000, 16, 30), (300, 128, 300)],
)
def test_single_precision_is_as_good_as_that_of_numpy(
    build: Build, keys: int, size: int, spread: float
) -> None:
    query, key, value = arrays(0, SINGLE, (1, 64, size), (1, keys, size), (1, keys, size))
    query *= SINGLE(spread)
    exact = plain(query, key, value, DOUBLE)
    ours = build(dim=size).attend(query, key, value) - exact
    theirs = plain(query, key, value, SINGLE) - exact
    assert np.sqrt(np.mean(ours**2)) <= 2 * np.sqrt(np.mean(theirs**2))
    assert np.abs(ours).max() <= 4 * np.abs(theirs).max()


def test_errors_do_not_grow_with_the_number_of_keys(build: Build) -> None:
    """What is summed up tile by tile is not changed by tiles that come later."""
    keys, size = 1 << 15, 16
    query, key = arrays(1, SINGLE, (1, 8, size), (1, keys, size))
    # Each coordinate of the output is the weight of one key, from the first tile to the last.
    chosen = np.linspace(0, keys - 1, size).astype(int)
    value = np.zeros((1, keys, size), SINGLE)
    value[0, chosen, np.arange(size)] = 1
    weights = softmax(query.astype(DOUBLE) @ key.astype(DOUBLE).swapaxes(-1, -2) / 4)[..., chosen]
    found = build(dim=size).attend(query, key, value)
    np.testing.assert_allclose(found, weights, rtol=3e-6)
    found = build(dim=size).attend(*(x.astype(DOUBLE) for x in (query, key, value)))
    np.testing.assert_allclose(found, weights, rtol=1e-14)


def test_gradient_errors_do_not_grow_with_the_number_of_queries(build: Build) -> None:
    queries, keys, size = 1 << 14, 16, 16
    shapes = [(1, n, size) for n in (queries, keys, keys, queries)]
    query, key, value, incoming = arrays(2, DOUBLE, *shapes)
    found = {}
    for dtype in (SINGLE, DOUBLE):
        mechanism = build(dim=size, threads=1)
        _, pull = mechanism.attend_vjp(*(x.astype(dtype) for x in (query, key, value)))
        found[dtype] = pull((incoming + 1).astype(dtype))
    for name in ("query", "key", "value"):
        single, double = (getattr(found[dtype], name) for dtype in (SINGLE, DOUBLE))
        assert np.abs(single - double).max() <= 5e-6 * np.abs(double).max()


# ---- large and small ------------------------------------------------------------------------


@both
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_scores(build: Build, dtype: Any, size: float) -> None:
    """Only differences count: adding 10⁴ to all scores changes nothing but rounding."""
    query, key, value = arrays(3, dtype, (1, 50, 8), (1, 130, 8), (1, 130, 5))
    mechanism = build(dim=8)
    bias = np.full((1, 130), size, dtype)
    expected = mechanism.attend(query, key, value)
    # A score near 10⁴ is itself only known to this.
    unit = float(np.spacing(dtype(1e4)))
    np.testing.assert_allclose(
        mechanism.attend(query, key, value, bias=bias), expected, atol=4 * unit
    )
    seen = mechanism.observe(query, key, value, "log_sum_exp", bias=bias)
    before = mechanism.observe(query, key, value, "log_sum_exp")
    np.testing.assert_allclose(seen.log_sum_exp, before.log_sum_exp + dtype(size), atol=2 * unit)


@both
def test_one_score_far_above_all_others_takes_the_whole_weight(build: Build, dtype: Any) -> None:
    query, key, value = arrays(4, dtype, (1, 70, 8), (1, 200, 8), (1, 200, 8))
    for height in (1e4, 1e30):
        bias = np.zeros((70, 200), dtype)
        bias[np.arange(70), np.arange(70)[::-1]] = height
        found = build(dim=8).attend(query, key, value, bias=bias)
        np.testing.assert_array_equal(found[0], value[0, np.arange(70)[::-1]])


@both
@pytest.mark.parametrize("keys", [30, 64, 200])
def test_scores_far_below_count_nothing_next_to_others(build: Build, dtype: Any, keys: int) -> None:
    query, key, value = arrays(5, dtype, (1, 70, 8), (1, keys, 8), (1, keys, 8))
    bias = np.zeros((70, keys), dtype)
    bias[:, keys // 2 :] = -1e4
    half = keys // 2
    expected = build(dim=8).attend(query, key[:, :half], value[:, :half])
    found = build(dim=8).attend(query, key, value, bias=bias)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * np.finfo(dtype).eps)


@both
@pytest.mark.parametrize("height", [0.0, 80.0, 89.8, 100.0, 710.8, 1e4, -1e4])
def test_gradients_do_not_depend_on_the_height_of_scores(
    build: Build, dtype: Any, height: float
) -> None:
    """Also where a block of queries is not full: the rest of it has scores of the height alone."""
    query, key, value, incoming = arrays(6, dtype, *[(1, n, 8) for n in (7, 90, 90, 7)])
    mechanism = build(dim=8)
    _, pull = mechanism.attend_vjp(query, key, value)
    expected = pull(incoming)
    _, pull = mechanism.attend_vjp(query, key, value, bias=np.full((1, 90), height, dtype))
    found = pull(incoming)
    tolerance = 40 * float(np.spacing(dtype(max(abs(height), 1))))
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance
        )


def test_element_wise_weights_that_overflow_nowhere_in_sight_have_finite_gradients() -> None:
    """exp(score + shift) overflows at score 0, which is that of lanes without a query."""
    query = -np.ones((1, 1, 3, 4), SINGLE) * 10
    key = np.ones((1, 1, 70, 4), SINGLE) * 10
    value, incoming = arrays(7, SINGLE, (1, 1, 70, 4), (1, 1, 3, 4))
    code = engine.NORMALISERS["elementwise"]
    request = engine.Request(query, key, value, 0.25, code, rules=[(power, (95.0,))])
    state = engine.forward(request)
    weight = np.exp(DOUBLE(-100 + 95))
    np.testing.assert_allclose(state.out[0, 0], np.tile(weight * value[0, 0].sum(0), (3, 1)), 1e-4)
    found = engine.backward(request, state, incoming)
    np.testing.assert_allclose(
        found.value[0, 0], np.tile(weight * incoming[0, 0].sum(0), (70, 1)), rtol=1e-5
    )
    assert np.isfinite(found.query).all()
    assert np.isfinite(found.key).all()


@both
@pytest.mark.parametrize("height", [-1e4, -3.0, 0.0, 50.0, 1e4])
def test_sinks_of_any_height(dtype: Any, height: float) -> None:
    query, key, value = arrays(8, dtype, (1, 2, 40, 8), (1, 2, 90, 8), (1, 2, 90, 8))
    sink = np.array([height, 1.0])
    state = engine.forward(engine.Request(query, key, value, 0.25, sink=sink.astype(dtype)))
    scores = query.astype(DOUBLE) @ key.astype(DOUBLE).swapaxes(-1, -2) / 4
    weights = softmax(scores, sink[:, None, None])
    np.testing.assert_allclose(
        state.out, weights @ value.astype(DOUBLE), rtol=0, atol=50 * np.finfo(dtype).eps
    )
    total = np.logaddexp(np.logaddexp.reduce(scores, axis=-1), sink[:, None])
    np.testing.assert_allclose(state.first, total, rtol=4 * np.finfo(dtype).eps)


@both
def test_the_lowest_number_as_a_mask(build: Build, dtype: Any) -> None:
    """As some frameworks hide keys: a row of nothing else is uniform, as it is in NumPy."""
    query, key, value, incoming = arrays(16, dtype, *[(1, n, 8) for n in (20, 90, 90, 20)])
    bias = np.zeros((20, 90), dtype)
    bias[:, 50:] = np.finfo(dtype).min
    bias[7] = np.finfo(dtype).min
    scores = query.astype(DOUBLE) @ key.astype(DOUBLE).swapaxes(-1, -2) / np.sqrt(8) + bias
    scores[0, 7] = 0
    expected = softmax(scores) @ value.astype(DOUBLE)
    output, pull = build(dim=8).attend_vjp(query, key, value, bias=bias)
    np.testing.assert_allclose(output, expected, rtol=0, atol=20 * np.finfo(dtype).eps)
    for gradient in (pull(incoming).query, pull(incoming).key, pull(incoming).value):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("spread", [1, 10, 40])
def test_weights_of_large_scores_sum_to_one(build: Build, spread: float) -> None:
    query, key, value = arrays(17, SINGLE, *[(1, n, 8) for n in (40, 90, 8)])
    value = np.tile(value, (1, 12, 1))[:, :90]
    query, key = query * SINGLE(spread), key * SINGLE(spread)
    seen = build(dim=8).observe(query, key, value, "weights", "log_sum_exp")
    total = seen.weights.sum(axis=-1, dtype=DOUBLE)
    # The log-sum-exp, from which weights are recomputed, is itself only known to its last place.
    unit = np.spacing(np.abs(seen.log_sum_exp)).astype(DOUBLE)
    assert (np.abs(total - 1) <= unit + 1e-6).all()


@both
def test_numbers_below_the_normal_ones(build: Build, dtype: Any) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    query, key = arrays(9, dtype, (1, 20, 8), (1, 70, 8))
    value = np.full((1, 70, 8), tiny * 64, dtype)
    found = build(dim=8).attend(query, key, value)
    np.testing.assert_allclose(found / tiny, 64.0, atol=4)
    # Scores that vanish are all the same.
    value = arrays(10, dtype, (1, 70, 8))[0]
    found = build(dim=8).attend(query * tiny, key, value)
    expected = np.tile(value.astype(DOUBLE).mean(axis=1, keepdims=True), (20, 1))
    np.testing.assert_allclose(found, expected, atol=8 * np.finfo(dtype).eps)


@both
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e-3, 0.3, 3.0, 30.0])
def test_softpick_keeps_its_digits_near_zero(dtype: Any, size: float) -> None:
    """eˢ − 1 of a small score is nearly the score, not the difference of two numbers near 1."""
    query, key, value = arrays(18, dtype, (1, 1, 20, 8), (1, 1, 150, 8), (1, 1, 150, 8))
    query *= dtype(size)
    request = engine.Request(query, key, value, 0.25, engine.NORMALISERS["softpick"])
    state = engine.forward(request)
    scores = query.astype(DOUBLE) @ key.astype(DOUBLE).swapaxes(-1, -2) / 4
    less = np.expm1(scores)
    weights = np.maximum(less, 0) / np.abs(less).sum(axis=-1, keepdims=True)
    unit = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(state.out, weights @ value.astype(DOUBLE), rtol=0, atol=unit)
    found = engine.gather(request, state, frozenset(("weights",)))["weights"]
    # The score itself is only known to some of its digits where it is the sum of larger numbers.
    known = 1e-3 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(found, weights, rtol=known, atol=unit * 1e-3)
