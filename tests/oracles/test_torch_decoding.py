"""Caches against torch.nn.functional.scaled_dot_product_attention on the concatenated tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn_core.caches import KVCache, PagedCache, RingCache
from polyattn_registry import create

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")

TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2, "int8": 3e-2}
BATCH, HEADS, KEY_HEADS, SIZE, TOKENS = 2, 6, 2, 40, 700


def _tokens(dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    return tuple(
        rng.standard_normal((BATCH, heads, TOKENS, SIZE)).astype(dtype)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )


def _torch(tensor: Callable[..., Any], query: Any, key: Any, value: Any, visible: Any) -> Any:
    key, value = (np.repeat(x, HEADS // KEY_HEADS, axis=1) for x in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(
        tensor(query), tensor(key), tensor(value), attn_mask=tensor(visible)
    ).numpy()


@pytest.mark.parametrize("storage", TOLERANCE)
@pytest.mark.parametrize("queries", [1, 2, 65])
def test_the_last_rows(tensor: Callable[..., Any], storage: str, queries: int) -> None:
    query, key, value = _tokens(np.float64 if storage == "float64" else np.float32)
    flash = create("flash", dim=HEADS * SIZE, heads=HEADS, kv_heads=KEY_HEADS, causal=True)
    paged = PagedCache.of(flash, pages=100, page_size=16, storage=storage)
    for _ in range(BATCH):
        paged.add()
    last = query[:, :, -queries:]
    visible = np.arange(TOKENS) <= np.arange(queries)[:, None] + TOKENS - queries
    expected = _torch(tensor, last, key, value, visible)
    for cache in (KVCache.of(flash, batch=BATCH, storage=storage), paged):
        for start, stop in ((0, 300), (300, 301), (301, TOKENS)):
            cache.append(key[:, :, start:stop], value[:, :, start:stop])
        found = flash.attend_cached(last, cache)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[storage])


@pytest.mark.parametrize(("window", "sinks"), [(64, 0), (100, 4)])
def test_a_ring(tensor: Callable[..., Any], window: int, sinks: int) -> None:
    query, key, value = _tokens()
    flash = create("flash", dim=HEADS * SIZE, heads=HEADS, kv_heads=KEY_HEADS)
    cache = RingCache.of(flash, batch=BATCH, window=window, sinks=sinks, chunk=50)
    i, j = np.arange(TOKENS)[:, None], np.arange(TOKENS)
    visible = (j <= i) & ((i - j < window) | (j < sinks))
    expected = _torch(tensor, query, key, value, visible)
    for start in range(0, TOKENS, 50):
        part = np.s_[:, :, start : start + 50]
        cache.append(key[part], value[part])
        found = flash.attend_cached(query[part], cache)
        np.testing.assert_allclose(found, expected[part], rtol=0, atol=2e-6)
