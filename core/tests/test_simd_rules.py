"""Score rules of users against their closed forms, forward and backward."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from polyattn_core.errors import CapabilityError
from polyattn_core.masks import Causal, Window
from polyattn_core.mechanism import Call
from polyattn_core.simd.mathematics import tanh
from polyattn_core.simd.rules import ScoreRule, Statistic, score_rule, squared_norm
from polyattn_core.streaming import ScaledConfig, StreamingMechanism

Array = Any
ONE, TWO = np.float32(1), np.float32(2)


@score_rule(row=squared_norm, column=squared_norm)
def negative_distance(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    """−sharpness · |q − k|²."""
    return -sharpness * (row + column - TWO * dot)


@negative_distance.derivative
def negative_distance_derivative(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    return (TWO * sharpness, -sharpness, -sharpness, -(row + column - TWO * dot))


@score_rule
def capped(score, cap, slope, query, key):  # type: ignore[no-untyped-def]
    return cap * tanh(score / cap) + slope * np.float32(key - query)


@capped.derivative
def capped_derivative(score, cap, slope, query, key):  # type: ignore[no-untyped-def]
    t = tanh(score / cap)
    return (ONE - t * t, t - score / cap * (ONE - t * t), np.float32(key - query))


@score_rule
def by_place(score, b, h, i, j):  # type: ignore[no-untyped-def]
    return score + np.float32(1000 * b + 100 * h + 10 * i + j)


class Ruled(StreamingMechanism):
    """Distance, then a cap and a slope a head, then the sizes of places."""

    rules: Any = ()

    def _scale(self, call: Call) -> float:
        return 1.0

    def _rules(self, call: Call) -> Sequence[Any]:
        return self.rules

    def _parameter_gradients(self, rule_parameters: Array, sink: Any) -> dict[str, Array]:
        return {"rules": rule_parameters}


def attention(scores: Array, value: Array, mask: Any = None) -> Array:
    scores = scores if mask is None else np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


SHARPNESS, CAP, SLOPE = np.array([0.3, 0.7]), 5.0, np.array([0.01, -0.02])


def closed_form(query: Array, key: Array, value: Array, numbers: Array, mask: Any) -> Array:
    """The chain of both rules, in NumPy; `numbers` (heads, 3) are their parameters."""
    sharpness, cap, slope = (numbers[:, n, None, None] for n in range(3))
    difference = query[:, :, :, None] - key[:, :, None]
    scores = -sharpness * (difference**2).sum(axis=-1)
    queries, keys = scores.shape[-2:]
    distance = np.arange(keys) - np.arange(queries)[:, None]
    return attention(cap * np.tanh(scores / cap) + slope * distance, value, mask)


@pytest.fixture
def ruled(build: Callable[..., Any]) -> Any:
    mechanism = build(Ruled, ScaledConfig, dim=12, heads=2)
    mechanism.rules = [(negative_distance, (SHARPNESS,)), (capped, (CAP, SLOPE))]
    return mechanism


def inputs(dtype: Any = np.float64, queries: int = 21, keys: int = 70) -> list[Array]:
    rng = np.random.default_rng(0)
    shapes = [(2, 2, n, 6) for n in (queries, keys, keys, queries)]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


NUMBERS = np.stack([SHARPNESS, np.full(2, CAP), SLOPE], axis=1)
MASKS = [None, Causal(), Window(9, 3)]


def dense(mask: Any, queries: int, keys: int) -> Any:
    from polyattn_core.masks import MaskShape

    return None if mask is None else mask.dense(MaskShape((2,), 2, queries, keys))


@pytest.mark.parametrize("mask", MASKS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_chain_of_rules_is_its_closed_form(ruled: Any, mask: Any, dtype: Any) -> None:
    query, key, value, _ = inputs(dtype)
    found = ruled.attend(query, key, value, mask=mask)
    exact = (x.astype(np.float64) for x in (query, key, value))
    expected = closed_form(*exact, NUMBERS, dense(mask, 21, 70))
    np.testing.assert_allclose(found, expected, atol=60 * np.finfo(dtype).eps)


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_gradients_are_those_of_the_closed_form(ruled: Any, mask: Any) -> None:
    """Along random directions, by central differences of the closed form in NumPy."""
    query, key, value, incoming = inputs()
    visible = dense(mask, 21, 70)
    _, pull = ruled.attend_vjp(query, key, value, mask=mask)
    found = pull(incoming)
    rng = np.random.default_rng(1)
    at = {"query": query, "key": key, "value": value, "numbers": NUMBERS}
    gradients = {
        "query": found.query,
        "key": found.key,
        "value": found.value,
        "numbers": found.parameters["rules"],
    }
    for name, gradient in gradients.items():
        assert gradient.shape == at[name].shape
        for _ in range(3):
            direction = rng.standard_normal(at[name].shape)
            step = 1e-5
            ahead, behind = (
                closed_form(**{**at, name: at[name] + sign * step * direction}, mask=visible)
                for sign in (1, -1)
            )
            slope = ((ahead - behind) * incoming).sum() / (2 * step)
            assert np.vdot(gradient, direction) == pytest.approx(slope, rel=1e-7, abs=1e-7)


def test_each_parameter_has_a_gradient_of_its_own(ruled: Any) -> None:
    query, key, value, incoming = inputs()
    _, pull = ruled.attend_vjp(query, key, value)
    found = pull(incoming).parameters["rules"]
    for head in range(2):
        for number in range(3):
            moved = NUMBERS.copy()
            moved[head, number] += 1e-5
            ahead = closed_form(query, key, value, moved, None)
            moved[head, number] -= 2e-5
            behind = closed_form(query, key, value, moved, None)
            slope = ((ahead - behind) * incoming).sum() / 2e-5
            assert found[head, number] == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_rules_see_where_they_are(build: Callable[..., Any]) -> None:
    mechanism = build(Ruled, ScaledConfig, dim=2, heads=2)
    mechanism.rules = [(by_place, ())]
    query = np.zeros((3, 2, 50, 1))
    key = np.zeros((3, 2, 130, 1))
    value = np.broadcast_to(np.arange(130.0)[:, None], (3, 2, 130, 1))
    seen = mechanism.observe(query, key, value, "log_sum_exp")
    b, h, i = np.ogrid[:3, :2, :50]
    # Σⱼ e^{c+j} = e^c · (e¹³⁰ − 1)/(e − 1)
    expected = 1000 * b + 100 * h + 10 * i + 130 - np.log(np.e - 1)
    np.testing.assert_allclose(seen.log_sum_exp, expected, rtol=1e-12)


def test_the_positions_of_a_part_of_the_keys_are_those_in_all(build: Callable[..., Any]) -> None:
    mechanism = build(Ruled, ScaledConfig, dim=2, heads=2)
    mechanism.rules = [(by_place, ())]
    query, key = np.zeros((2, 50, 1)), np.zeros((2, 130, 1))
    value = np.random.default_rng(2).standard_normal((2, 130, 1))
    whole = mechanism.attend(query, key, value)
    parts = [
        mechanism.attend_partial(query, key[:, s], value[:, s], start=s.start, total=130)
        for s in (slice(0, 63), slice(63, 130))
    ]
    np.testing.assert_allclose(parts[0].merge(parts[1]).finish(), whole, atol=1e-13)


def test_a_statistic_of_ones_own(build: Callable[..., Any]) -> None:
    total = Statistic(
        "total",
        lambda x: x.sum(axis=-1),
        lambda x, gradient: np.broadcast_to(gradient[..., None], x.shape),
    )

    @score_rule(column=total)
    def shifted(score, column):  # type: ignore[no-untyped-def]
        return score + column

    @shifted.derivative
    def shifted_derivative(score, column):  # type: ignore[no-untyped-def]
        return (ONE, ONE)

    mechanism = build(Ruled, ScaledConfig, dim=12, heads=2)
    mechanism.rules = [(shifted, ())]
    query, key, value, incoming = inputs()

    def exact(key: Array) -> Array:
        scores = query @ key.swapaxes(-1, -2) + key.sum(axis=-1)[..., None, :]
        return attention(scores, value)

    output, pull = mechanism.attend_vjp(query, key, value)
    np.testing.assert_allclose(output, exact(key), atol=1e-13)
    direction = np.random.default_rng(3).standard_normal(key.shape)
    slope = (exact(key + 1e-5 * direction) - exact(key - 1e-5 * direction)) / 2e-5
    assert np.vdot(pull(incoming).key, direction) == pytest.approx((slope * incoming).sum(), 1e-7)


# ---- names are part of a rule ---------------------------------------------------------------


def test_rules_of_one_name_and_code_but_other_arguments_are_not_mixed_up(
    build: Callable[..., Any],
) -> None:
    """Compiled code is kept by what a rule computes: here only the names say what that is."""

    def made(source: str) -> ScoreRule:
        scope: dict[str, Any] = {"np": np}
        exec(source, scope)
        return score_rule(scope["slope"])

    by_key = made("def slope(score, j, amount): return score + np.float32(j) * amount")
    by_query = made("def slope(score, i, amount): return score + np.float32(i) * amount")
    query, key, value, _ = inputs()
    plain = build(Ruled, ScaledConfig, dim=12, heads=2)
    expected = plain.attend(query, key, value)
    mechanism = build(Ruled, ScaledConfig, dim=12, heads=2)
    mechanism.rules = [(by_key, (0.1,))]
    assert not np.allclose(mechanism.attend(query, key, value), expected)
    mechanism.rules = [(by_query, (0.1,))]
    # The same for all keys of a query.
    np.testing.assert_allclose(mechanism.attend(query, key, value), expected, atol=1e-13)


def test_a_rule_is_compiled_once_for_all_threads() -> None:
    @score_rule
    def fresh(score, a_parameter_of_this_test):  # type: ignore[no-untyped-def]
        return score * a_parameter_of_this_test

    addresses: list[int] = []
    threads = [
        threading.Thread(target=lambda: addresses.append(fresh.address("float32", False)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(addresses) == 4
    assert len(set(addresses)) == 1


@score_rule
def halved(score, times):  # type: ignore[no-untyped-def]
    while times > ONE:
        score = score / TWO
        times = times - ONE
    return score


def test_gradients_of_a_rule_without_derivative(build: Callable[..., Any]) -> None:
    mechanism = build(Ruled, ScaledConfig, dim=12, heads=2)
    mechanism.rules = [(halved, (3.0,))]
    query, key, value, _ = inputs()
    expected = attention(query @ key.swapaxes(-1, -2) / 4, value)
    np.testing.assert_allclose(mechanism.attend(query, key, value), expected, atol=1e-13)
    with pytest.raises(CapabilityError) as caught:
        mechanism.attend_vjp(query, key, value)
    line = halved.function.__code__.co_firstlineno + 2
    assert str(caught.value) == (
        "tests/plain does not support gradients with the score rule halved, which has no "
        f"derivative: one cannot be derived ({__file__}:{line}: a `while` statement), so give it "
        "with @halved.derivative"
    )
