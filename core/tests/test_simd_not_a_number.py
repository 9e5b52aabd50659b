"""The streaming engine and rows of nothing, NaN and infinity: who is spoilt by what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn_core.masks import Causal, MaskShape, Window
from polyattn_core.simd import engine
from polyattn_core.simd.masking import encode
from polyattn_core.simd.rules import score_rule

Build = Callable[..., Any]
Array = Any

both = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@score_rule
def square(score, sharpness):  # type: ignore[no-untyped-def]
    return sharpness * score * score


def arrays(seed: int, dtype: Any, *shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def plain(query: Array, key: Array, value: Array) -> Array:
    """Soft-max attention as one writes it in NumPy, in double precision."""
    query, key, value = (array.astype(np.float64) for array in (query, key, value))
    grown = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]))
    return grown / grown.sum(axis=-1, keepdims=True) @ value


def run(normaliser: str, query: Array, key: Array, value: Array, **more: Any) -> engine.State:
    code = engine.NORMALISERS[normaliser]
    if normaliser == "elementwise":
        more["rules"] = [(square, (1.0,))]
    request = engine.Request(query, key, value, 0.25, code, top=5, epsilon=1e-6, **more)
    return engine.forward(request)


@both
def test_rows_of_minus_infinity_are_empty(build: Build, dtype: Any) -> None:
    query, key, value, incoming = arrays(11, dtype, *[(1, n, 8) for n in (70, 90, 90, 70)])
    bias = np.zeros((70, 90), dtype)
    bias[[0, 31, 69]] = -np.inf
    mechanism = build(dim=8)
    seen = mechanism.observe(query, key, value, "log_sum_exp", "entropy", "weights", bias=bias)
    empty = np.isneginf(bias).all(axis=-1)
    assert (seen.output[0, empty] == 0).all()
    assert np.isneginf(seen.log_sum_exp[0, empty]).all()
    assert (seen.entropy[0, empty] == 0).all()
    assert (seen.weights[0, empty] == 0).all()
    expected = mechanism.attend(query[:, ~empty], key, value)
    np.testing.assert_allclose(seen.output[:, ~empty], expected, atol=1e-6)

    _, pull = mechanism.attend_vjp(query, key, value, bias=bias)
    found = pull(incoming)
    assert (found.query[0, empty] == 0).all()
    _, pull = mechanism.attend_vjp(query[:, ~empty], key, value)
    expected = pull(incoming[:, ~empty])
    for name in ("key", "value"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)


@both
@pytest.mark.parametrize("normaliser", engine.NORMALISERS)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_query_that_is_no_number_spoils_its_own_row(
    dtype: Any, normaliser: str, poison: float
) -> None:
    query, key, value = arrays(12, dtype, *[(1, 1, n, 16) for n in (70, 90, 90)])
    expected = run(normaliser, query, key, value).out
    query[0, 0, 33] = poison
    state = run(normaliser, query, key, value)
    others = np.arange(70) != 33
    np.testing.assert_array_equal(state.out[:, :, others], expected[:, :, others])
    if np.isnan(poison):
        # It must not look like a row that sees nothing.
        assert np.isnan(state.out[0, 0, 33]).all()
    else:
        assert not np.isfinite(state.out[0, 0, 33]).all()


@both
@pytest.mark.parametrize("queries", [1, 4])
def test_few_queries_have_rows_of_their_own(build: Build, dtype: Any, queries: int) -> None:
    """Decoding has a kernel of its own."""
    query, key, value = arrays(18, dtype, *[(1, n, 24) for n in (queries, 1500, 1500)])
    mechanism = build(dim=24)
    expected = plain(query, key, value)
    found = mechanism.attend(query, key, value)
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * np.finfo(dtype).eps)
    value[0, 3] = np.nan
    hidden = mechanism.attend(query, key, value, mask=Window(1400, 0))
    assert np.isfinite(hidden).all()
    assert np.isnan(mechanism.attend(query, key, value)).all()
    value[0, 3] = 0
    query[0, -1] = np.nan
    seen = mechanism.observe(query, key, value, "log_sum_exp")
    assert np.isnan(seen.output[0, -1]).all()
    assert np.isnan(seen.log_sum_exp[0, -1])
    assert np.isfinite(seen.output[0, :-1]).all()
    empty = mechanism.observe(query, key, value, "log_sum_exp", mask=~Window())
    assert (empty.output == 0).all()
    assert np.isneginf(empty.log_sum_exp).all()


@both
def test_a_query_that_is_no_number_has_no_log_sum_exp(build: Build, dtype: Any) -> None:
    query, key, value = arrays(13, dtype, *[(1, n, 8) for n in (20, 90, 90)])
    query[0, 7, 2] = np.nan
    mechanism = build(dim=8)
    seen = mechanism.observe(query, key, value, "log_sum_exp", "weights", mask=Window(3, 3))
    assert np.isnan(seen.log_sum_exp[0, 7])
    assert np.isfinite(np.delete(seen.log_sum_exp, 7, axis=1)).all()
    state = mechanism.attend_partial(query, key, value)
    assert np.isnan(state.merge(state).log_sum_exp[0, 7])


@both
@pytest.mark.parametrize("normaliser", ["softmax", "softpick", "elementwise"])
def test_what_is_no_number_reaches_those_who_see_it_only(dtype: Any, normaliser: str) -> None:
    query, key, value = arrays(14, dtype, *[(1, 1, n, 16) for n in (150, 150, 150)])
    shape = MaskShape((1,), 1, 150, 150)
    mask = encode(Causal().program(shape))
    expected = run(normaliser, query, key, value, mask=mask).out
    before = np.arange(150) < 77
    for spoiled in (key, value):
        for poison in (np.nan, np.inf, -np.inf):
            kept = spoiled[0, 0, 77, 3]
            spoiled[0, 0, 77, 3] = poison
            found = run(normaliser, query, key, value, mask=mask).out
            spoiled[0, 0, 77, 3] = kept
            np.testing.assert_array_equal(found[:, :, before], expected[:, :, before])
            if np.isnan(poison):
                own = found[0, 0, 77:, 3] if spoiled is value else found[0, 0, 77:]
                assert np.isnan(own).all()


@both
def test_infinite_values_are_averages_of_infinity(build: Build, dtype: Any) -> None:
    query, key, value = arrays(15, dtype, (1, 30, 8), (1, 90, 8), (1, 90, 3))
    value[0, 40, 0] = np.inf
    value[0, 41, 1] = -np.inf
    found = build(dim=8).attend(query, key, value)
    assert np.isposinf(found[..., 0]).all()
    assert np.isneginf(found[..., 1]).all()
    assert np.isfinite(found[..., 2]).all()
    value[0, 50, 0] = -np.inf
    assert np.isnan(build(dim=8).attend(query, key, value)[..., 0]).all()
