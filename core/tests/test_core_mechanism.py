"""The base class of mechanisms: levels, defaults, side inputs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn_core.arrays import Array, split_heads
from polyattn_core.config import AttentionConfig
from polyattn_core.errors import ArgumentError, CapabilityError, MissingInputError
from polyattn_core.masks import Causal, Dense, Padding
from polyattn_core.mechanism import Attention, Call, Mechanism
from polyattn_core.spec import Capabilities, SideInput

Build = Callable[..., Any]


class Mean(Mechanism):
    """The mean of the values that are visible, times a side input: NumPy alone."""

    def _forward(self, call: Call) -> Array:
        visible = np.ones((1, 1, call.shape.queries, call.shape.keys))
        if call.mask is not None:
            visible = call.mask.dense(call.shape).astype(float)
        group = call.query.shape[1] // call.value.shape[1]
        value = np.repeat(call.value, group, axis=1)
        weights = visible / np.maximum(visible.sum(axis=-1, keepdims=True), 1)
        return np.asarray(weights @ value * call.side.get("gain", 1.0), call.dtype)


def numbers(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.fixture
def mean(build: Build) -> Any:
    return build(Mean, AttentionConfig, Capabilities(), dim=8, heads=2)


# ---- levels ---------------------------------------------------------------------------------


def test_it_is_an_attention(mean: Any) -> None:
    assert isinstance(mean, Attention)
    assert mean.name == "tests/plain"


def test_model_level_is_head_level_split_and_merged(build: Build) -> None:
    mechanism = build(dim=12, heads=4, kv_heads=2)
    query, key, value = numbers(3, 5, 12), numbers(3, 7, 6), numbers(7, 10)
    heads = [split_heads(x, n, "x") for x, n in ((query, 4), (key, 2), (value, 2))]
    expected = mechanism.attend(*heads)
    found = mechanism(query, key, value)
    assert found.shape == (3, 5, 20)
    for h in range(4):
        np.testing.assert_array_equal(found[..., 5 * h : 5 * h + 5], expected[:, h])


def test_defaults(build: Build) -> None:
    mechanism = build(dim=8, heads=2)
    tokens, key = numbers(5, 8), numbers(6, 8)
    np.testing.assert_array_equal(mechanism(tokens), mechanism(tokens, tokens, tokens))
    np.testing.assert_array_equal(mechanism(tokens, key), mechanism(tokens, key, key))
    value = numbers(5, 4)
    np.testing.assert_array_equal(mechanism(tokens, value=value), mechanism(tokens, tokens, value))


def test_gradients_of_defaults_are_sums(build: Build) -> None:
    mechanism = build(dim=8, heads=2)
    tokens, incoming = numbers(5, 8), numbers(5, 8) ** 2
    _, pull = mechanism.vjp(tokens, tokens, tokens)
    parts = pull(incoming)
    _, pull = mechanism.vjp(tokens)
    found = pull(incoming)
    np.testing.assert_allclose(found.query, parts.query + parts.key + parts.value)
    np.testing.assert_allclose(found.value, parts.value)
    _, pull = mechanism.vjp(tokens, tokens)
    np.testing.assert_allclose(pull(incoming).key, parts.key + parts.value)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_a_single_query(build: Build, lead: tuple[int, ...]) -> None:
    """(dim,) against (…, keys, dim): the one row that (1, dim) gives."""
    mechanism = build(dim=8, heads=2)
    query, key, value = numbers(8), numbers(*lead, 6, 8), numbers(*lead, 6, 4)
    found = mechanism(query, key, value)
    expected = mechanism(query[None], key, value)
    assert found.shape == (*lead, 4)
    np.testing.assert_array_equal(found, expected[..., 0, :])

    incoming = numbers(*lead, 4)
    output, pull = mechanism.vjp(query, key, value)
    np.testing.assert_array_equal(output, found)
    single = pull(incoming)
    _, pull = mechanism.vjp(query[None], key, value)
    row = pull(incoming[..., None, :])
    np.testing.assert_allclose(single.query, row.query[0])
    np.testing.assert_allclose(single.key, row.key)
    np.testing.assert_allclose(single.value, row.value)


def test_gradients_of_what_was_broadcast_are_sums(build: Build) -> None:
    mechanism = build(dim=4)
    query, key, value = numbers(3, 1, 5, 4), numbers(1, 6, 4), numbers(3, 1, 6, 4)
    bias = numbers(3, 1, 1, 6)[:1]
    incoming = numbers(3, 1, 5, 4)
    _, pull = mechanism.attend_vjp(query, key, value, bias=bias)
    found = pull(incoming)
    full = np.broadcast_to(key, (3, 1, 6, 4))
    whole = np.broadcast_to(bias, (3, 1, 5, 6))
    _, pull = mechanism.attend_vjp(query, full, value, bias=whole)
    parts = pull(incoming)
    np.testing.assert_allclose(found.key, parts.key.sum(axis=0), atol=1e-12)
    assert found.bias.shape == bias.shape
    total = parts.bias.sum(axis=(0, 2)).reshape(1, 1, 1, 6)
    np.testing.assert_allclose(found.bias, total, atol=1e-12)


# ---- side inputs ----------------------------------------------------------------------------

SIDE = Capabilities(
    side_inputs=(
        SideInput(name="gain", shape="()", description="what the mean is multiplied with"),
        SideInput(name="hint", shape="()", description="no matter", required=False),
    )
)


def test_side_inputs(build: Build, mean: Any) -> None:
    mechanism = build(Mean, AttentionConfig, SIDE, dim=8, heads=2)
    tokens = numbers(5, 8)
    np.testing.assert_allclose(mechanism(tokens, gain=2.0), 2 * mean(tokens))
    np.testing.assert_allclose(mechanism(tokens, gain=2.0, hint=1), 2 * mean(tokens))
    for side in ({}, {"gain": None}, {"hint": 1}):
        with pytest.raises(MissingInputError) as missing:
            mechanism(tokens, **side)
        assert str(missing.value) == (
            "tests/plain needs gain=: what the mean is multiplied with, ()"
        )
    with pytest.raises(ArgumentError) as caught:
        mechanism(tokens, gain=2.0, gian=1)
    assert str(caught.value) == (
        "gian: got an argument; expected mask, bias, training, rng or its side inputs (gain, hint)"
    )
    with pytest.raises(ArgumentError, match=r"its side inputs \(none\)$"):
        mean(tokens, gain=2.0)


# ---- the rest -------------------------------------------------------------------------------


def test_an_array_is_a_mask(mean: Any) -> None:
    visible = np.tril(np.ones((5, 5), bool))
    tokens = numbers(5, 8)
    expected = np.cumsum(tokens, axis=0) / np.arange(1, 6)[:, None]
    for mask in (visible, Dense(visible), Causal()):
        np.testing.assert_allclose(mean(tokens, mask=mask), expected)


def test_the_option_causal_is_added_to_the_mask(build: Build) -> None:
    tokens = numbers(7, 8)
    plain, causal = build(dim=8), build(dim=8, causal=True)
    np.testing.assert_array_equal(causal(tokens), plain(tokens, mask=Causal()))
    np.testing.assert_array_equal(
        causal(tokens, mask=Padding(3)), plain(tokens, mask=Causal() & Padding(3))
    )


def test_repr_and_pickle(build: Build, mean: Any) -> None:
    assert repr(mean) == "tests/plain(dim=8, heads=2)"
    mechanism = build(dim=8, position="rope", causal=True)
    tokens = numbers(5, 8)
    expected = mechanism(tokens)
    again = pickle.loads(pickle.dumps(mechanism))
    assert repr(again) == repr(mechanism)
    np.testing.assert_array_equal(again(tokens), expected)


@pytest.mark.parametrize("method", ["_vjp", "_observe", "_partial"])
def test_what_is_declared_but_not_implemented(mean: Any, method: str) -> None:
    with pytest.raises(CapabilityError, match="tests/plain does not support"):
        getattr(mean, method)(*[None] * (2 if method == "_observe" else 1))
