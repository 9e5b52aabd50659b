"""Biases of every shape and layout, and their gradients, against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polyattn as pa
from polyattn_core.simd import engine

torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")

Tensor = Callable[..., Any]
Close = Callable[..., None]

QUERIES, KEYS = 65, 100
SHAPES = {
    "whole": (3, 4, QUERIES, KEYS),
    "same for the batch": (4, QUERIES, KEYS),
    "same for the heads": (3, 1, QUERIES, KEYS),
    "one plane": (QUERIES, KEYS),
    "of keys": (4, 1, KEYS),
    "of queries": (3, 4, QUERIES, 1),
    "a number a head": (4, 1, 1),
}


def laid_out(rng: Any, shape: tuple[int, ...], layout: str) -> Any:
    """Numbers of a shape, with its last two axes in either order in memory, or every second one."""
    *lead, queries, keys = shape
    if layout == "by rows":
        return rng.standard_normal(shape)
    if layout == "by columns":
        return rng.standard_normal((*lead, keys, queries)).swapaxes(-1, -2)
    return rng.standard_normal((*lead, queries, 2 * keys))[..., ::2]


@pytest.mark.oracle
@pytest.mark.parametrize("layout", ["by rows", "by columns", "strided"])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(("batch", "key_heads"), [(3, 4), (3, 2), (3, 1), (1, 2)])
@pytest.mark.parametrize("slot", [True, False])
def test_bias_and_its_gradient(
    tensor: Tensor, close: Close, monkeypatch: pytest.MonkeyPatch, kind: str, layout: str,
    batch: int, key_heads: int, slot: bool,
) -> None:  # fmt: skip
    if not slot:  # as for biases that take too much memory for sums of their own
        monkeypatch.setattr(engine, "_BIAS_SLOTS", 0)
    rng = np.random.default_rng(1)
    query = rng.standard_normal((batch, 4, QUERIES, 16))
    key, value = rng.standard_normal((2, batch, key_heads, KEYS, 16))
    bias = laid_out(rng, SHAPES[kind], layout)
    bias = bias[:batch] if bias.ndim == 4 else bias
    flash = pa.create("flash", dim=64, heads=4, kv_heads=key_heads)
    output, pullback = flash.attend_vjp(query, key, value, bias=bias)
    incoming = rng.standard_normal(output.shape)
    found = pullback(incoming)

    theirs = [tensor(x, gradient=True) for x in (query, key, value, np.ascontiguousarray(bias))]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *theirs[:3], attn_mask=theirs[3], enable_gqa=key_heads < 4
    )
    expected.backward(tensor(incoming))
    close(output, expected, 1e-12, "output")
    parts = zip(("query", "key", "value", "bias"), theirs, strict=True)
    for name, its in parts:
        close(getattr(found, name), its.grad, 1e-11, name)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "a number a head"])
def test_dense_mask(tensor: Tensor, close: Close, kind: str) -> None:
    rng = np.random.default_rng(2)
    seen = rng.random(SHAPES[kind]) > 0.3
    if seen.shape[-1] == KEYS:
        seen[..., 64:80] = False  # a block of bytes that is empty, beside one that is full
        seen[..., 48:64] = True
    else:
        seen[:] = True
        seen[0, 0, 1:17] = False
    query = rng.standard_normal((3, 4, QUERIES, 16))
    key, value = rng.standard_normal((2, 3, 4, KEYS, 16))
    output = pa.create("flash", dim=64, heads=4).attend(query, key, value, mask=seen)
    expected = torch.nn.functional.scaled_dot_product_attention(
        tensor(query), tensor(key), tensor(value), attn_mask=tensor(np.ascontiguousarray(seen))
    )
    close(output, expected, 1e-12, "output")
