"""Sliced-Wasserstein attention: distributions, the filter, the cache."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.errors import ArgumentError, CapabilityError, ConfigError, DTypeError, ShapeError
from polyattn_transport import sets_from_offsets, wasserstein_1d

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]


def softmax(scores: Array) -> Array:
    grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=-1, keepdims=True))


def token_sets(seed: int = 0, size: int = 4) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "query_tokens": rng.standard_normal((2, 2, 5, 6, size)),
        "query_lengths": rng.integers(1, 7, (2, 2, 5)),
        "key_tokens": rng.standard_normal((2, 2, 7, 9, size)),
        "key_lengths": rng.integers(1, 10, (2, 2, 7)),
    }


@pytest.mark.oracle
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("ragged", [False, True])
def test_token_sets_against_pot(
    create: Create, arrays: Arrays, ot: Any, power: float, ragged: bool
) -> None:
    query, key, value = arrays()
    side = token_sets()
    if not ragged:
        del side["query_lengths"], side["key_lengths"]
    attention = create("sliced-wasserstein", dim=8, heads=2, power=power, sharpness=1.7)
    weights = attention.observe(query, key, value, "weights", **side).weights
    along = attention.cached.directions.T
    for b, h in np.ndindex(2, 2):
        cost = np.empty((5, 7))
        for i, j in np.ndindex(5, 7):
            x, y = side["query_tokens"][b, h, i], side["key_tokens"][b, h, j]
            if ragged:
                x, y = x[: side["query_lengths"][b, h, i]], y[: side["key_lengths"][b, h, j]]
            found = ot.sliced_wasserstein_distance(x, y, p=power, projections=along)
            cost[i, j] = found**power
        np.testing.assert_allclose(weights[b, h], softmax(-1.7 * cost), atol=1e-10)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("options", [{}, {"representation": "quantiles", "bins": 5}])
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_by_token_sets(
    create: Create, arrays: Arrays, power: float, options: dict[str, Any], ragged: bool
) -> None:
    query, key, value = arrays()
    side = token_sets(1)
    if not ragged:
        del side["query_lengths"], side["key_lengths"]
    attention = create("sliced-wasserstein", dim=8, heads=2, power=power, **options)
    output, pullback = attention.attend_vjp(query, key, value, **side)
    incoming = np.random.default_rng(2).standard_normal(output.shape)
    found = pullback(incoming)
    assert not found.key.any()
    for name in ("query_tokens", "key_tokens"):
        along = np.random.default_rng(3).standard_normal(side[name].shape)
        ends = [
            attention.attend(query, key, value, **{**side, name: side[name] + step * along})
            for step in (1e-6, -1e-6)
        ]
        slope = ((ends[0] - ends[1]) * incoming).sum() / 2e-6
        assert (found.side[name] * along).sum() == pytest.approx(slope, abs=1e-6)


def test_gradient_by_shared_token_sets_is_summed(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    sets = np.random.default_rng(0).standard_normal((1, 2, 7, 3, 4))
    attention = create("sliced-wasserstein", dim=8, heads=2)
    _, pullback = attention.attend_vjp(query, key, value, key_tokens=sets)
    assert pullback(np.ones((2, 2, 5, 5))).side["key_tokens"].shape == sets.shape


def test_points_with_all_directions_have_their_distance(create: Create, arrays: Arrays) -> None:
    """As many orthogonal directions as coordinates: SW₂² is ‖q − k‖² ÷ size exactly."""
    query, key, value = arrays()
    attention = create("sliced-wasserstein", dim=8, heads=2, projections=4, sharpness=2.0)
    squares = ((query[..., :, None, :] - key[..., None, :, :]) ** 2).sum(axis=-1)
    expected = softmax(-2 * squares / 4) @ value
    np.testing.assert_allclose(attention.attend(query, key, value), expected, atol=1e-12)


def test_windows_are_the_sets_of_the_last_tokens(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(6, 6)
    place = np.maximum(np.arange(6)[:, None] + np.arange(-2, 1), 0)
    sets = {"query_tokens": query[:, :, place], "key_tokens": key[:, :, place]}
    by_window = create("sliced-wasserstein", dim=8, heads=2, window=3).attend(query, key, value)
    by_sets = create("sliced-wasserstein", dim=8, heads=2).attend(query, key, value, **sets)
    np.testing.assert_allclose(by_window, by_sets, atol=1e-12)


def test_histograms_approach_the_exact_cost(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(6, 6)
    options: dict[str, Any] = {"dim": 8, "heads": 2, "window": 4, "power": 1.0}
    exact = create("sliced-wasserstein", **options).attend(query, key, value)

    def error(**more: Any) -> float:
        found = create("sliced-wasserstein", **options, representation="histogram", **more)
        return float(np.abs(found.attend(query, key, value) - exact).max())

    assert error(bins=512, bound=6.0) < 0.01 < error(bins=4, bound=6.0)
    assert error(bins=512, bound=0.5) > 0.05
    histogram = create("sliced-wasserstein", **options, representation="histogram")
    with pytest.raises(CapabilityError, match="histogram"):
        histogram.attend_vjp(query, key, value)


def test_filter_keeps_the_nearest_visible_keys(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(70, 90)
    visible = np.random.default_rng(0).random((70, 90)) < 0.5
    attention = create("sliced-wasserstein", dim=8, heads=2, candidates=9)
    weights = attention.observe(query, key, value, "weights", mask=visible).weights
    squares = ((query[..., :, None, :] - key[..., None, :, :]) ** 2).sum(axis=-1)
    squares[..., ~visible] = np.inf
    least = np.sort(squares, axis=-1)[..., 8, None]
    np.testing.assert_array_equal(weights > 0, squares <= least)


@pytest.mark.parametrize("keys", [20, 700])
def test_filter_with_equal_keys_takes_the_first(create: Create, keys: int) -> None:
    key = np.zeros((1, keys, 4))
    attention = create("sliced-wasserstein", dim=4, candidates=6)
    weights = attention.observe(np.ones((1, 3, 4)), key, key, "weights").weights
    np.testing.assert_allclose(weights[0], np.tile(np.arange(keys) < 6, (3, 1)) / 6)


def test_ragged_sets() -> None:
    tokens = np.arange(12.0).reshape(6, 2)
    sets, lengths = sets_from_offsets(tokens, [0, 1, 6])
    assert sets.shape == (2, 5, 2)
    assert lengths.tolist() == [1, 5]
    np.testing.assert_array_equal(sets[1], tokens[1:])
    for wrong in ([0, 3], [0, 0, 6], [1, 6], [0.0, 6.0], [6]):
        with pytest.raises(ArgumentError, match="offsets"):
            sets_from_offsets(tokens, wrong)
    with pytest.raises(ShapeError, match="tokens"):
        sets_from_offsets(tokens[0], [0, 2])


def test_wrong_sets(create: Create, arrays: Arrays) -> None:
    inputs = arrays()
    attention = create("sliced-wasserstein", dim=8, heads=2)
    good = np.zeros((2, 2, 7, 3, 4))
    for wrong in (good[0, 0, 0], good[:, :, :6], good[..., :3], good[..., :0, :]):
        with pytest.raises(ShapeError, match="key_tokens"):
            attention.attend(*inputs, key_tokens=wrong)
    with pytest.raises(ArgumentError, match=r"key_lengths: got 0 … 0; expected 1 … 3"):
        attention.attend(*inputs, key_tokens=good, key_lengths=np.zeros(7, int))
    with pytest.raises(DTypeError, match="key_lengths"):
        attention.attend(*inputs, key_tokens=good, key_lengths=np.ones(7))
    with pytest.raises(ShapeError, match="key_lengths"):
        attention.attend(*inputs, key_tokens=good, key_lengths=np.ones(6, int))
    with pytest.raises(ArgumentError, match="key_tokens="):
        attention.attend(*inputs, key_lengths=np.ones(7, int))


def test_options_that_do_not_go_together(create: Create) -> None:
    for options in (
        {"representation": "histogram"}, {"bins": 4}, {"bound": 3.0},
        {"representation": "quantiles", "bound": 3.0},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            create("sliced-wasserstein", dim=4, **options)


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"projections": 3}, {"power": 1.0}, {"sharpness": 3.0}, {"window": 2}]
)
def test_options_change_the_output(create: Create, arrays: Arrays, options: dict[str, Any]) -> None:
    base = {"dim": 8, "heads": 2, "projections": 2}
    plain = create("sliced-wasserstein", **base).attend(*arrays())
    other = create("sliced-wasserstein", **{**base, **options}).attend(*arrays())
    assert np.abs(plain - other).max() > 1e-3


# ---- the cache ----


def test_projections_of_keys_are_reused_until_keys_change(
    create: Create, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = arrays()
    attention = create("sliced-wasserstein", dim=8, heads=2, window=3)
    cached = attention.cached
    first = attention.attend(query, key, value)
    assert (cached.hits, cached.misses) == (0, 1)
    calls: list[Any] = []
    project = type(cached)._projected
    monkeypatch.setattr(type(cached), "_projected", lambda s, t: calls.append(t) or project(s, t))
    np.testing.assert_array_equal(attention.attend(query, key, value), first)
    assert (cached.hits, cached.misses) == (1, 1)
    assert len(calls) == 1  # of the queries alone
    key[0, 0, 0, 0] += 1  # in place
    changed = attention.attend(query, key, value)
    assert (cached.hits, cached.misses) == (1, 2)
    fresh = create("sliced-wasserstein", dim=8, heads=2, window=3)
    np.testing.assert_array_equal(fresh.attend(query, key, value), changed)
    cached.reset()
    attention.attend(query, key, value)
    assert (cached.hits, cached.misses) == (0, 1)
    other = copy.deepcopy(attention)
    assert (other.cached.hits, other.cached.misses) == (0, 0)
    np.testing.assert_array_equal(other.attend(query, key, value), changed)


def test_cache_in_threads(create: Create, arrays: Arrays) -> None:
    attention = create("sliced-wasserstein", dim=8, heads=2)
    inputs = [arrays(seed=seed) for seed in range(3)]
    expected = [attention.attend(*each) for each in inputs]
    wrong: list[int] = []

    def work(which: int) -> None:
        outputs = [attention.attend(*inputs[which]) for _ in range(30)]
        wrong.extend(which for found in outputs if not np.array_equal(found, expected[which]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert attention.cached.hits + attention.cached.misses == 93


def test_uneven_costs_are_those_on_the_line(create: Create) -> None:
    x, y = np.array([0.0, 1.0, 5.0]), np.array([2.0, 2.5])
    attention = create("sliced-wasserstein", dim=1, projections=1)
    point = np.zeros((1, 1, 1))
    seen = attention.observe(
        point, point, point, "log_sum_exp", query_tokens=x.reshape(1, 1, 3, 1),
        key_tokens=y.reshape(1, 1, 2, 1),
    )  # fmt: skip
    assert -float(seen.log_sum_exp[0, 0]) == pytest.approx(float(wasserstein_1d(x, y)) ** 2)
