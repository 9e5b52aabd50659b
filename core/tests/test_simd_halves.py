"""Attention in bfloat16, where the processor multiplies pairs of it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from polyattn_core.masks import Causal, Documents, Padding, Window
from polyattn_core.simd import halves
from polyattn_core.streaming import StreamingMechanism

pytestmark = pytest.mark.skipif(
    not halves.supported(), reason="the processor does not multiply pairs of bfloat16"
)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def draw(queries: int, keys: int, heads: Any = (4, 2), size: int = 24, value_size: int = 20) -> Any:
    rng = np.random.default_rng(queries + keys)
    shapes = (
        (2, heads[0], queries, size),
        (2, heads[1], keys, size),
        (2, heads[1], keys, value_size),
    )
    return tuple(rng.standard_normal(shape).astype(BFLOAT16) for shape in shapes)


def exact(query: Any, key: Any, value: Any, visible: Any = True, sink: Any = None) -> Any:
    """By definition, in float64; 0 where nothing is visible."""
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    key, value = (np.repeat(x, query.shape[1] // x.shape[1], axis=1) for x in (key, value))
    scores = np.where(visible, query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]), -np.inf)
    most = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = weights.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink[:, None, None] - most)
    return weights / np.where(total == 0, 1, total) @ np.where(np.isfinite(value), value, 0)


def close(found: Any, expected: Any) -> None:
    """Weights and outputs are each rounded by up to 2⁻⁹ of themselves."""
    assert found.dtype == BFLOAT16
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2**-8, atol=2**-7)


@pytest.mark.parametrize(
    ("queries", "keys", "size", "value_size"),
    [(16, 1, 2, 1), (64, 64, 64, 64), (65, 63, 40, 7), (100, 333, 16, 128), (17, 131, 256, 33)],
)
def test_odd_sizes(build: Any, queries: int, keys: int, size: int, value_size: int) -> None:
    query, key, value = draw(queries, keys, (4, 2), size, value_size)
    mechanism = build(dim=4 * size, heads=4, kv_heads=2)
    assert mechanism._narrow
    close(mechanism.attend(query, key, value), exact(query, key, value))


@pytest.mark.parametrize(
    "mask",
    [
        Causal(),
        Window(9, 3),
        Padding(np.array([0, 57])),
        Causal() & Documents(np.arange(100) // 30),
    ],
    ids=lambda mask: type(mask).__name__,
)
def test_masks_and_rows_that_see_nothing(build: Any, mask: Any) -> None:
    from polyattn_core.masks import MaskShape

    query, key, value = draw(100, 100)
    visible = mask.dense(MaskShape((2,), 4, 100, 100))
    found = build(dim=96, heads=4, kv_heads=2).attend(query, key, value, mask=mask)
    close(found, exact(query, key, value, visible))
    assert (found[~np.broadcast_to(visible, (2, 4, 100, 100)).any(-1)] == 0).all()


def test_what_is_hidden_stays_there_and_what_is_seen_does_not(build: Any) -> None:
    query, key, value = draw(80, 150)
    hidden = np.arange(150) % 7 == 3
    key[:, :, hidden], value[:, :, hidden] = np.nan, np.inf
    mechanism = build(dim=96, heads=4, kv_heads=2)
    found = mechanism.attend(query, key, value, mask=~hidden[None])
    clean = exact(query, key[:, :, ~hidden], value[:, :, ~hidden])
    close(found, clean)
    assert np.isnan(mechanism.attend(query, key, value).astype(np.float32)).all()
    # Seen by some and hidden from others: Window leaves partly visible tiles.
    query, key, value = draw(80, 150)
    value[0, 0, 100, 0] = np.inf
    found = mechanism.attend(query, key, value, mask=Causal()).astype(np.float32)
    sees = np.arange(80) + 70 >= 100
    assert np.isinf(found[0, :2, sees, 0]).all()
    assert np.isfinite(found[0, :2, ~sees]).all()
    assert np.isfinite(found[0, 2:]).all()


class Sunk(StreamingMechanism):
    """With a sink for each head."""

    def _sink(self) -> Any:
        return np.array([0.5, -1.0, 3.0, 0.0])


def test_a_sink_and_a_scale(build: Any) -> None:
    query, key, value = draw(70, 90)
    mechanism = build(Sunk, dim=96, heads=4, kv_heads=2, scale=24**-0.5, causal=True)
    visible = np.arange(90) <= np.arange(70)[:, None] + 20
    found = mechanism.attend(query, key, value)
    close(found, exact(query, key, value, visible, mechanism._sink()))


def test_layouts_and_threads(build: Any) -> None:
    query, key, value = draw(130, 90)
    whole = build(dim=96, heads=4, kv_heads=2, threads=1).attend(query, key, value)
    mechanism = build(dim=96, heads=4, kv_heads=2)
    turned = [np.asfortranarray(x) for x in (query, key, value)]
    tokens_first = [
        np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (query, key, value)
    ]
    for arrays in (turned, tokens_first):
        np.testing.assert_array_equal(mechanism.attend(*arrays), whole)
    shared = mechanism.attend(query, key[:1], value[:1])
    close(shared, exact(query, np.repeat(key[:1], 2, 0), np.repeat(value[:1], 2, 0)))


@pytest.mark.parametrize(
    "options", [{"softcap": 2.0}, {"position": "rope"}, {"reproducible": True}, {}], ids=str
)
def test_what_the_kernel_does_not_know_is_computed_in_float32(build: Any, options: Any) -> None:
    query, key, value = draw(70, 70)
    mechanism = build(dim=96, heads=4, kv_heads=2, **options)
    assert mechanism._narrow == (not options)
    bias = np.random.default_rng(0).standard_normal((70, 70)).astype(np.float32)
    more = {} if options else {"bias": bias}
    found = mechanism.attend(query, key, value, **more)
    wide = build(dim=96, heads=4, kv_heads=2, **options)
    expected = wide.attend(*(x.astype(np.float32) for x in (query, key, value)), **more)
    np.testing.assert_array_equal(found, expected.astype(BFLOAT16))


def test_odd_heads_few_queries_and_dropout(build: Any) -> None:
    for queries, size, more in ((70, 7, {}), (3, 8, {}), (70, 8, {"training": True, "rng": 3})):
        query, key, value = draw(queries, 90, (4, 2), size)
        mechanism = build(dim=4 * size, heads=4, kv_heads=2, dropout=0.4)
        found = mechanism.attend(query, key, value, **more)
        expected = mechanism.attend(*(x.astype(np.float32) for x in (query, key, value)), **more)
        np.testing.assert_array_equal(found, expected.astype(BFLOAT16))
