"""Latent attention by its definition: both forms, positions, decoding, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.errors import ArgumentError, ConfigError, ShapeError
from torch_layers import learned, torch_gradients

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


OPTIONS = {"dim": 12, "heads": 3, "latent": 5, "rope_size": 4, "query_latent": 6}


def turn(torch: Any, x: Any, first: int) -> Any:
    place = (torch.arange(x.shape[-2], dtype=x.dtype) + first)[:, None]
    angle = place * torch.tensor([1.0, 0.01], dtype=x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), dim=-1)


@pytest.mark.oracle
@pytest.mark.parametrize("absorbed", [True, False])
def test_latent(create: Create, arrays: Arrays, absorbed: bool) -> None:
    """Equations 37–47 of the paper."""

    def rule(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
        def flat(x: Any) -> Any:
            return x.transpose(1, 2).flatten(2)

        def heads(x: Any) -> Any:
            return x.unflatten(-1, (3, -1)).transpose(1, 2)

        latent = flat(k) @ p["compress.key"].T + flat(v) @ p["compress.value"].T
        read = flat(q) @ p["query.down"].T
        queries = torch.cat(
            (heads(read @ p["query.weight"].T), turn(torch, heads(read @ p["query.rotary"].T), 2)),
            -1,
        )
        rotary = turn(torch, flat(k) @ p["key.rotary"].T, 0)[:, None].expand(-1, 3, -1, -1)
        keys = torch.cat((heads(latent @ p["key.up"].T), rotary), -1)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(8)
        output = torch.softmax(scores, -1) @ heads(latent @ p["value.up"].T)
        return heads(flat(output) @ p["output.weight"].T)

    query, key, value = arrays()
    layer = learned(create("latent", **OPTIONS, absorbed=absorbed))
    torch_gradients(layer, (query, key, value[..., :4]), rule)
    np.testing.assert_allclose(
        layer.attend(query, key, value[..., :4]),
        layer.attend_vjp(query, key, value[..., :4])[0],
        rtol=1e-9,
    )


@pytest.mark.parametrize("rope_size", [0, 4])
def test_latent_decodes_step_by_step(create: Create, rope_size: int) -> None:
    """Absorbed, token by token from a growing cache = expanded, causal, all at once."""
    x = np.random.default_rng(0).standard_normal((2, 9, 12))
    options = {**OPTIONS, "rope_size": rope_size, "causal": True}
    expected = learned(create("latent", **options, absorbed=False))(x)
    layer = learned(create("latent", **options))
    cache = layer.compress(x[:, :4])
    np.testing.assert_allclose(layer.decode(x[:, :4], cache), expected[:, :4], **CLOSE)
    for step in range(4, 9):
        token = x[:, step : step + 1]
        cache = cache.extended(layer.compress(token, start=step))
        np.testing.assert_allclose(
            layer.decode(token, cache), expected[:, step : step + 1], **CLOSE
        )
    assert cache.tokens == 9
    assert cache.latent.nbytes + cache.rotary.nbytes == 2 * 9 * (5 + rope_size) * 8


SIZES = {
    "head_size": 5, "value_size": 3, "norm": True, "norm_epsilon": 0.1,
    "position": {"kind": "rope", "interleaved": True},
}  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("absorbed", [True, False])
@pytest.mark.parametrize("query_latent", [None, 6])
@pytest.mark.parametrize("tied", [True, False])
def test_latent_with_norms_and_sizes(
    create: Create, arrays: Arrays, absorbed: bool, query_latent: int | None, tied: bool
) -> None:
    """As in the code of DeepSeek's models, with keys and values that may be others."""

    def rule(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
        def flat(x: Any) -> Any:
            return x.transpose(1, 2).flatten(2)

        def heads(x: Any) -> Any:
            return x.unflatten(-1, (3, -1)).transpose(1, 2)

        def normed(x: Any, name: str) -> Any:
            return torch.nn.functional.rms_norm(x, x.shape[-1:], p[name], eps=0.1)

        def neighbours(x: Any, first: int) -> Any:
            paired = torch.cat((x[..., 0::2], x[..., 1::2]), -1)
            return turn(torch, paired, first)

        latent = flat(k) @ p["compress.key"].T
        if not tied:
            latent = latent + flat(v) @ p["compress.value"].T
        latent, read = normed(latent, "latent_norm.weight"), flat(q)
        if query_latent:
            read = normed(read @ p["query.down"].T, "query_norm.weight")
        own = neighbours(heads(read @ p["query.rotary"].T), 2)
        queries = torch.cat((heads(read @ p["query.weight"].T), own), -1)
        rotary = neighbours(flat(k) @ p["key.rotary"].T, 0)[:, None].expand(-1, 3, -1, -1)
        keys = torch.cat((heads(latent @ p["key.up"].T), rotary), -1)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(5 + 4)
        output = torch.softmax(scores, -1) @ heads(latent @ p["value.up"].T)
        return heads(flat(output) @ p["output.weight"].T) + 0 * v.sum()

    query, key, value = arrays()
    value = key if tied else value[..., :4]
    options = {**OPTIONS, **SIZES, "query_latent": query_latent, "tied": tied}
    layer = learned(create("latent", **options, absorbed=absorbed))
    assert layer.parameters["query.weight"].shape == (15, query_latent or 12)
    assert layer.parameters["output.weight"].shape == (12, 9)
    torch_gradients(layer, (query, key, value), rule)
    expected = layer.attend_vjp(query, key, value)[0]
    np.testing.assert_allclose(layer.attend(query, key, value), expected, rtol=1e-9)


@pytest.mark.parametrize("tied", [True, False])
def test_latent_decodes_with_norms_and_sizes(create: Create, tied: bool) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 12))
    options = {**OPTIONS, **SIZES, "causal": True, "tied": tied}
    expected = learned(create("latent", **options, absorbed=False))(x)
    layer = learned(create("latent", **options))
    cache = layer.compress(x[:, :1])
    for step in range(1, 9):
        token = x[:, step : step + 1]
        cache = cache.extended(layer.compress(token, start=step))
        found = layer.decode(token, cache)
        np.testing.assert_allclose(found, expected[:, step : step + 1], **CLOSE)
    assert cache.latent.shape == (2, 9, 5)


def test_latent_drops_the_same_weights_in_both_forms(create: Create) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 12))
    options = {**OPTIONS, **SIZES, "dropout": 0.5}
    one = learned(create("latent", **options, absorbed=True))
    other = learned(create("latent", **options, absorbed=False))
    dropped = one(x, training=True, rng=5)
    np.testing.assert_allclose(dropped, other(x, training=True, rng=5), **CLOSE)
    np.testing.assert_allclose(dropped, one.vjp(x, training=True, rng=5)[0], **CLOSE)
    assert not np.allclose(dropped, one(x, training=True, rng=6))
    np.testing.assert_array_equal(one(x), learned(create("latent", **OPTIONS, **SIZES))(x))


def test_latent_of_tied_tokens_takes_no_others(create: Create) -> None:
    x, other = np.random.default_rng(0).standard_normal((2, 9, 12))
    layer = create("latent", **OPTIONS, tied=True)
    hidden = x.copy()
    hidden[-1] = np.nan
    seen = np.arange(9) < 8
    found = layer(x, hidden, hidden.copy(), mask=np.broadcast_to(seen, (9, 9)))
    np.testing.assert_array_equal(found, layer(x, x, mask=np.broadcast_to(seen, (9, 9))))
    for call in (lambda: layer(x, x, other), lambda: layer.compress(x, other)):
        with pytest.raises(ArgumentError, match=r"value: got other tokens than the key; .*tied"):
            call()


def test_latent_rotates_its_own_size(create: Create) -> None:
    position = {"kind": "rope", "size": 4}
    with pytest.raises(ConfigError, match=r"position: .*its size is the option rope_size"):
        create("latent", **OPTIONS, position=position)
    with pytest.raises(ConfigError, match=r"position"):
        create("latent", **OPTIONS, position="alibi")
    np.testing.assert_array_equal(
        create("latent", **OPTIONS, position="rope")(np.eye(12)),
        create("latent", **OPTIONS)(np.eye(12)),
    )


def test_latent_says_what_does_not_fit(create: Create) -> None:
    layer = create("latent", **OPTIONS)
    with pytest.raises(ShapeError, match="tokens, dim=12"):
        layer.compress(np.ones((4, 5)))
    with pytest.raises(ShapeError, match="cache"):
        layer.decode(np.ones((2, 1, 12)), layer.compress(np.ones((4, 12))))
