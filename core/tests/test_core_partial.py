"""Partial states: merging is associative, commutative, and gives attention over all keys."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyattn_core.errors import ArgumentError, CapabilityError, MaskError
from polyattn_core.masks import Causal, GlobalTokens, Padding, Strided, Window
from polyattn_core.partial import PartialState
from polyattn_core.spec import Capabilities

Array = Any


def state(scores: Array, values: Array, **more: Any) -> PartialState:
    """By definition: soft-max over some keys, and the log-sum-exp of their scores."""
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(scores).sum(axis=-1))
    weights = np.exp(scores) / np.maximum(np.exp(scores).sum(axis=-1, keepdims=True), 1e-300)
    return PartialState(weights @ values, total, **more)


def close(one: PartialState, two: PartialState) -> None:
    np.testing.assert_allclose(one.output, two.output, atol=1e-13)
    np.testing.assert_allclose(one.log_sum_exp, two.log_sum_exp, atol=1e-13)


def parts(seed: int, sizes: list[int], spread: float = 3.0) -> tuple[list[Any], Any]:
    """States over parts of the keys, and the state over all. A size of 0 sees nothing."""
    rng = np.random.default_rng(seed)
    found, scores, values = [], [], []
    for size in sizes:
        own = rng.standard_normal((2, 3, max(size, 1))) * spread
        if size == 0:
            own[:] = -np.inf
        elif size > 1:
            own[0, 1] = -np.inf  # a row that sees nothing of this part
        value = rng.standard_normal((2, max(size, 1), 4))
        scores.append(own)
        values.append(value)
        found.append(state(own, value))
    return found, state(np.concatenate(scores, axis=-1), np.concatenate(values, axis=-2))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 5), min_size=3, max_size=3))
def test_merging_is_associative_and_commutative(seed: int, sizes: list[int]) -> None:
    (a, b, c), everything = parts(seed, sizes)
    close(a.merge(b), b.merge(a))
    close(a.merge(b).merge(c), a.merge(b.merge(c)))
    close(a.merge(b).merge(c), everything)


def test_every_order_gives_the_same() -> None:
    found, everything = parts(1, [2, 0, 3, 1])
    for order in itertools.permutations(found):
        close(functools.reduce(PartialState.merge, order), everything)


def test_an_empty_state_is_neutral_whatever_its_output() -> None:
    (a,), _ = parts(2, [4])
    for filler in (0.0, np.nan, np.inf):
        empty = PartialState(np.full_like(a.output, filler), np.full_like(a.log_sum_exp, -np.inf))
        for merged in (a.merge(empty), empty.merge(a)):
            np.testing.assert_array_equal(merged.output, np.where(
                np.isneginf(a.log_sum_exp)[..., None], 0, a.output))  # fmt: skip
            np.testing.assert_array_equal(merged.log_sum_exp, a.log_sum_exp)
        nothing = empty.merge(empty)
        assert (nothing.output == 0).all()
        assert np.isneginf(nothing.log_sum_exp).all()


def test_a_part_that_vanishes_next_to_another_does_not_count() -> None:
    output = np.ones((1, 2, 3))
    high = PartialState(output, np.full((1, 2), 1e4))
    low = PartialState(output * np.inf, np.full((1, 2), -1e4))
    np.testing.assert_array_equal(high.merge(low).output, output)


def test_what_is_no_number_stays_in_its_row() -> None:
    a = PartialState(np.ones((1, 2, 3)), np.array([[np.nan, 0.0]]))
    merged = a.merge(PartialState(np.ones((1, 2, 3)), np.zeros((1, 2))))
    assert np.isnan(merged.output[0, 0]).all()
    assert np.isnan(merged.log_sum_exp[0, 0])
    np.testing.assert_allclose(merged.output[0, 1], 1)


def test_the_sink_enters_once_when_finished() -> None:
    rng = np.random.default_rng(3)
    scores, values = rng.standard_normal((2, 3, 6)), rng.standard_normal((2, 6, 4))
    sink = np.array([0.5, -2.0])
    weights = np.exp(scores)
    expected = weights / (weights.sum(-1, keepdims=True) + np.exp(sink)[:, None, None]) @ values
    pieces = [
        state(scores[..., part], values[:, part], sink=sink)
        for part in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    for order in itertools.permutations(pieces):
        merged = functools.reduce(PartialState.merge, order)
        np.testing.assert_allclose(merged.finish(), expected, atol=1e-14)
        # Finishing is no step of the merge: it may be done twice.
        np.testing.assert_array_equal(merged.finish(), merged.finish())
    empty = PartialState(np.zeros((2, 3, 4)), np.full((2, 3), -np.inf), sink)
    assert (empty.finish() == 0).all()


def test_finishing_gives_the_dtype_of_the_call() -> None:
    a = PartialState(np.ones((1, 2, 3), np.float32), np.zeros((1, 2), np.float32), None, np.float16)
    assert a.merge(a).output.dtype == np.float32
    assert a.merge(a).finish().dtype == np.float16


def test_states_that_do_not_belong_together() -> None:
    a = PartialState(np.ones((1, 2, 3)), np.zeros((1, 2)))
    b = PartialState(np.ones((1, 3, 3)), np.zeros((1, 3)))
    with pytest.raises(ArgumentError) as caught:
        a.merge(b)
    assert str(caught.value) == ("other: got a state of shape (1, 3, 3); expected shape (1, 2, 3)")


# ---- states of the engine -------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, Causal(), Window(5, 2), Padding(20)], ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_of_the_keys_merge_to_all(build: Any, mask: Any, dtype: Any) -> None:
    rng = np.random.default_rng(4)
    query, key, value = (
        rng.standard_normal((2, heads, n, 8)).astype(dtype)
        for heads, n in ((4, 40), (2, 75), (2, 75))
    )
    mechanism = build(dim=32, heads=4, kv_heads=2)
    whole = mechanism.observe(query, key, value, "log_sum_exp", mask=mask)
    edges = [0, 1, 30, 64, 75]
    pieces = [
        mechanism.attend_partial(
            query, key[..., a:b, :], value[..., a:b, :], start=a, total=75, mask=mask
        )
        for a, b in itertools.pairwise(edges)
    ]
    tolerance = 30 * np.finfo(dtype).eps
    for order in (pieces, pieces[::-1], [pieces[i] for i in (2, 0, 3, 1)]):
        merged = functools.reduce(PartialState.merge, order)
        np.testing.assert_allclose(merged.finish(), whole.output, atol=tolerance)
        np.testing.assert_allclose(merged.log_sum_exp, whole.log_sum_exp, atol=tolerance)


@pytest.mark.parametrize(
    ("start", "total"), [(-1, 20), (15, 20), (0, 9), (1.0, 20), (True, 20), (0, "20")]
)
def test_places_that_cannot_be(build: Any, start: Any, total: Any) -> None:
    tokens = np.ones((1, 10, 4))
    with pytest.raises(ArgumentError, match=r"^start, total: got .*0 ≤ start and start \+ 10 keys"):
        build(dim=4).attend_partial(tokens, tokens, tokens, start=start, total=total)


def test_partial_results_that_are_not_declared(build: Any) -> None:
    tokens = np.ones((1, 10, 4))
    mechanism = build(dim=4, capabilities=Capabilities())
    with pytest.raises(CapabilityError, match="tests/plain does not support partial results"):
        mechanism.attend_partial(tokens, tokens, tokens)


@pytest.mark.parametrize("mask", [GlobalTokens(2), Strided(4, "fixed")], ids=repr)
def test_masks_that_list_their_keys_are_refused_for_too_many(build: Any, mask: Any) -> None:
    arrays = [np.ones((1, 3, 8), np.float32)] * 3
    with pytest.raises(MaskError, match=r"mask for 1099511627776 keys in all; expected at most"):
        build(dim=8).attend_partial(*arrays, total=1 << 40, mask=mask)
    found = build(dim=8).attend_partial(*arrays, total=1 << 40, mask=Strided(4))
    assert found.output.shape == (1, 3, 8)
