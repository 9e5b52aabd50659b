"""Masks of `linear` and `favor`, what stands behind them, and parts of the keys."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.errors import CapabilityError
from polyattn_core.masks import Causal, Dense, Mask, MaskShape, Padding, Prefix, Window

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {},
    "favor": {"features": 24},
    "linear-relu": {"features": "relu", "epsilon": 0.01},
    "favor-hyperbolic": {"features": 10, "kind": "hyperbolic", "orthogonal": False},
}
each = pytest.mark.parametrize("kind", OPTIONS)


@pytest.fixture
def make(create: Create) -> Callable[..., Any]:
    def made(kind: str, **options: Any) -> Any:
        sizes = {"dim": 16, "heads": 4, "kv_heads": 2}
        return create(kind.partition("-")[0], **sizes, **OPTIONS[kind], **options)

    return made


def products(mechanism: Any, query: Array, key: Array) -> Array:
    """φ(q)·φ(k) of all pairs, straight from the definitions."""
    config = mechanism.config

    def features(x: Array) -> Array:
        if mechanism.name == "sparse/favor":
            omega = mechanism.projection
            if config.kind == "hyperbolic":
                omega = np.concatenate((omega, -omega))
            x = x / x.shape[-1] ** 0.25
            norms = (x * x).sum(axis=-1, keepdims=True)
            return np.exp(x @ omega.T - norms / 2) / np.sqrt(len(omega))
        if config.features == "relu":
            return np.maximum(x, 0)
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    theirs = np.repeat(features(key), query.shape[1] // key.shape[1], axis=1)
    return features(query) @ theirs.swapaxes(-1, -2)


def dense(mechanism: Any, query: Array, key: Array, value: Array, visible: Array) -> Array:
    weights = np.where(visible, products(mechanism, query, key), 0)
    total = weights.sum(axis=-1, keepdims=True)
    total = np.where(total == 0, 1, total + getattr(mechanism.config, "epsilon", 0))
    return weights / total @ np.repeat(value, query.shape[1] // value.shape[1], axis=1)


def masks(keys: int) -> list[Mask]:
    lengths = np.array([keys // 2, keys])
    return [
        Causal(),
        Causal(align="upper_left"),
        Causal(offset=3),
        Causal(offset=-2),
        Causal(align="upper_left", offset=-70),
        Causal(offset=keys),
        Padding(lengths),
        Padding(keys // 3),
        Padding(np.array([0, keys])),
        Prefix(lengths),
        Causal() & Padding(lengths),
        Causal() | Prefix(lengths // 2),
        (Causal() | Prefix(7)) & Padding(lengths),
        Causal(offset=-1) & (Prefix(5) | Causal(offset=-20)),
        Causal() & Causal(offset=-4) & Padding(keys),
    ]


@each
@pytest.mark.parametrize(("queries", "keys"), [(6, 7), (70, 67), (67, 150), (150, 150), (5, 300)])
def test_masks(make: Create, arrays: Arrays, kind: str, queries: int, keys: int) -> None:
    query, key, value = arrays(queries, keys, heads=4, key_heads=2)
    mechanism = make(kind)
    shape = MaskShape((2,), 4, queries, keys)
    for mask in masks(keys):
        visible = mask.dense(shape)
        expected = dense(mechanism, query, key, value, visible)
        output = mechanism.attend(query, key, value, mask=mask)
        np.testing.assert_allclose(output, expected, **CLOSE, err_msg=repr(mask))
        assert not output[~visible.any(axis=-1)].any()
        masked = mechanism.observe(query, key, value, "log_sum_exp", "weights", mask=mask)
        empty = ~visible.any(axis=-1)
        np.testing.assert_array_equal(np.isneginf(masked.log_sum_exp), empty)
        assert not masked.weights[~visible].any()


@each
def test_causal_option(make: Create, arrays: Arrays, kind: str) -> None:
    query, key, value = arrays(70, 90, heads=4, key_heads=2)
    expected = make(kind).attend(query, key, value, mask=Causal())
    own = make(kind, causal=True)
    np.testing.assert_array_equal(own.attend(query, key, value), expected)
    both = own.attend(query, key, value, mask=Padding(60))
    expected = make(kind).attend(query, key, value, mask=Causal() & Padding(60))
    np.testing.assert_array_equal(both, expected)


@pytest.mark.parametrize(
    "mask",
    [~Causal(), ~Padding(3), Padding(6) & ~Padding(2), Causal() | ~Prefix(2)],
    ids=repr,
)
@pytest.mark.parametrize("name", ["linear", "favor"])
def test_masks_that_skip_keys_are_refused(
    make: Create, arrays: Arrays, name: str, mask: Mask
) -> None:
    inputs = arrays(6, 7, heads=4, key_heads=2)
    for call in ("attend", "attend_vjp", "attend_partial"):
        with pytest.raises(CapabilityError, match=f"sparse/{name} does not support .*&"):
            getattr(make(name), call)(*inputs, mask=mask)


@pytest.mark.parametrize("name", ["linear", "favor"])
def test_other_masks_and_biases_are_refused(make: Create, arrays: Arrays, name: str) -> None:
    inputs = arrays(6, 7, heads=4, key_heads=2)
    for mask in (Window(2), Dense(np.ones((6, 7), bool)), Causal() & Window(2)):
        with pytest.raises(CapabilityError, match="masks"):
            make(name).attend(*inputs, mask=mask)
    with pytest.raises(CapabilityError, match="bias"):
        make(name).attend(*inputs, bias=np.zeros((6, 7)))
    with pytest.raises(CapabilityError, match="entropy"):
        make(name).observe(*inputs, "entropy")


@each
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("queries", "keys"), [(70, 130), (130, 130), (3, 400)])
def test_what_is_hidden_is_not_seen(
    make: Create, arrays: Arrays, kind: str, poison: float, queries: int, keys: int
) -> None:
    query, key, value = arrays(queries, keys, heads=4, key_heads=2)
    mechanism = make(kind, causal=True)
    expected = mechanism.attend(query, key, value)
    last = keys - 2
    key[:, :, last], value[:, :, last] = poison, poison
    seeing = np.tri(queries, keys, keys - queries, dtype=bool)[:, last]
    output = mechanism.attend(query, key, value)
    np.testing.assert_allclose(output[:, :, ~seeing], expected[:, :, ~seeing], **CLOSE)
    if np.isnan(poison):
        assert np.isnan(output[:, :, seeing]).all()
    # A query spoils its own row only.
    query[:, :, 1] = poison
    output = mechanism.attend(query, key, value)
    spared = ~seeing & (np.arange(queries) != 1)
    np.testing.assert_allclose(output[:, :, spared], expected[:, :, spared], **CLOSE)
    # Behind padding nobody sees it, nor do gradients.
    query, key, value = arrays(queries, keys, heads=4, key_heads=2)
    padding = Padding(keys - 5)
    output, pull = mechanism.attend_vjp(query, key, value, mask=padding)
    clean = pull(np.ones_like(output))
    key[:, :, -5:], value[:, :, -5:] = poison, poison
    spoilt, pull = mechanism.attend_vjp(query, key, value, mask=padding)
    np.testing.assert_array_equal(spoilt, output)
    found = pull(np.ones_like(output))
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(getattr(found, name), getattr(clean, name), **CLOSE)
    assert not found.key[:, :, -5:].any()
    assert not found.value[:, :, -5:].any()


@each
def test_hidden_in_parts_of_a_head(create: Create, kind: str) -> None:
    # Large enough for the parts of a head to be summed up side by side.
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, 1, 3000, 32))
    options = {**OPTIONS[kind], "features": "relu" if kind == "linear-relu" else 24}
    if kind == "linear":
        del options["features"]
    mechanism = create(kind.partition("-")[0], dim=32, causal=True, threads=2, **options)
    expected = mechanism.attend(query, key, value)
    for place in (1000, 2047, 2048, 2990):
        spoilt = value.copy()
        spoilt[:, :, place] = np.inf
        output = mechanism.attend(query, key, spoilt)
        np.testing.assert_allclose(output[:, :, :place], expected[:, :, :place], **CLOSE)
        assert not np.isfinite(output[:, :, place:]).any()


@each
@pytest.mark.parametrize("mask", [None, Causal(), Padding(150), Causal() | Prefix(140)], ids=repr)
def test_parts_merge(make: Create, arrays: Arrays, kind: str, mask: Mask | None) -> None:
    query, key, value = arrays(70, 200, heads=4, key_heads=2)
    mechanism = make(kind)
    expected = mechanism.attend(query, key, value, mask=mask)
    cuts = [0, 1, 64, 129, 155, 200]
    parts = [
        mechanism.attend_partial(
            query, key[:, :, a:b], value[:, :, a:b], start=a, total=200, mask=mask
        )
        for a, b in pairwise(cuts)
    ]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3]):
        state = parts[order[0]]
        for i in order[1:]:
            state = state.merge(parts[i])
        np.testing.assert_allclose(state.finish(), expected, rtol=1e-9, atol=1e-11)
