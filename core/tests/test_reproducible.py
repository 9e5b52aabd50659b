"""The same bits for every batch, number of threads, and division of the queries into calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn_core.caches import KVCache, PagedCache, RingCache
from polyattn_core.errors import ArgumentError, ConfigError
from polyattn_core.masks import Causal, Documents, Padding, Prefix, Window
from polyattn_core.positions import Rope
from polyattn_core.streaming import StreamingMechanism

HEADS, KEY_HEADS, SIZE = 4, 2, 24
LAYOUT = {"dim": HEADS * SIZE, "heads": HEADS, "kv_heads": KEY_HEADS, "reproducible": True}
CUTS = [(0, 1), (5, 70), (63, 64), (64, 66), (130, 131), (150, 158), (200, 333), (332, 333)]


def draw(tokens: int, dtype: Any, batch: int = 3) -> Any:
    rng = np.random.default_rng(tokens)
    return tuple(
        (2 * rng.standard_normal((batch, heads, tokens, SIZE))).astype(dtype)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )


class Softpick(StreamingMechanism):
    """The other normaliser that goes tile by tile."""

    normaliser = "softpick"

    def _epsilon(self) -> float:
        return 1e-8


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ({}, None),
        ({"position": "rope"}, None),
        ({"position": "alibi", "softcap": 9.0}, None),
        ({"position": "t5"}, None),
        ({}, Window(19, 0)),
        ({}, Window(49, 0) | Prefix(3)),
        ({"kind": Softpick}, Window(70, 0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_is_the_same_however_it_is_asked_for(
    build: Any, options: Any, mask: Any, dtype: Any
) -> None:
    query, key, value = draw(333, dtype)
    one, other = (build(**LAYOUT, causal=True, threads=n, **options) for n in (1, None))
    whole = one.attend(query, key, value, mask=mask)
    np.testing.assert_array_equal(other.attend(query, key, value, mask=mask), whole)
    for n in range(3):
        alone = other.attend(query[n], key[n], value[n], mask=mask)
        np.testing.assert_array_equal(alone, whole[n])
    for start, stop in CUTS:
        part = other.attend(
            query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], mask=mask
        )
        np.testing.assert_array_equal(part, whole[:, :, start:stop])


def test_masks_that_differ_by_sequence(build: Any) -> None:
    query, key, value = draw(200, np.float32)
    rng = np.random.default_rng(0)
    mechanism = build(**LAYOUT)
    ids = np.sort(rng.integers(0, 5, (3, 200)))
    lengths = np.array([200, 77, 131])
    whole = mechanism.attend(query, key, value, mask=Documents(ids) & Padding(lengths) & Causal())
    for n in range(3):
        own = Documents(ids[n]) & Padding(lengths[n]) & Causal()
        alone = mechanism.attend(query[n], key[n], value[n], mask=own)
        np.testing.assert_array_equal(alone, whole[n])


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int4"])
@pytest.mark.parametrize("rope", [False, True])
def test_decoding_gives_the_rows_of_the_prompt(build: Any, storage: str, rope: bool) -> None:
    options = {"position": Rope()} if rope else {}
    mechanism = build(**LAYOUT, causal=True, **options)
    query, key, value = draw(150, np.float32)
    paged = PagedCache.of(mechanism, pages=40, page_size=17, storage=storage)
    for _ in range(3):
        paged.add()
    rows = []
    for cache in (KVCache.of(mechanism, batch=3, storage=storage), paged):
        whole = KVCache.of(mechanism, batch=3, storage=storage)
        whole.append(key, value)
        expected = mechanism.attend_cached(query, whole)
        at = 0
        for count in (90, 1, 1, 37, 1, 20):
            part = np.s_[:, :, at : at + count]
            cache.append(key[part], value[part])
            found = mechanism.attend_cached(query[part], cache)
            np.testing.assert_array_equal(found, expected[part])
            at += count
        rows.append(mechanism.attend_cached(query[1, :, -1:], cache, sequences=1))
        np.testing.assert_array_equal(rows[-1], expected[1, :, -1:])
    if storage == "float32" and not rope:
        np.testing.assert_array_equal(expected, mechanism.attend(query, key, value))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_long_row_is_not_split_by_threads(build: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, 1, n, 64)).astype(dtype) for n in (2, 9001, 9001))
    outputs = [
        build(dim=64, threads=n, reproducible=True).attend(query, key, value) for n in (1, 2, 3)
    ]
    assert all((output == outputs[0]).all() for output in outputs)
    row = build(dim=64, reproducible=True).attend(query[:, :, 1:], key, value)
    np.testing.assert_array_equal(row, outputs[0][:, :, 1:])
    # Otherwise the kernel for few queries takes over, and is right to other bits.
    usual = build(dim=64).attend(query, key, value)
    np.testing.assert_allclose(usual, outputs[0], atol=5 * np.finfo(dtype).eps)
    assert (usual != outputs[0]).any()


def test_gradients_do_not_depend_on_threads_and_batch(build: Any) -> None:
    query, key, value = draw(300, np.float32)
    found = []
    for n in (1, 2, 3):
        output, pull = build(**LAYOUT, causal=True, threads=n).attend_vjp(query, key, value)
        found.append(pull(output))
    output, pull = build(**LAYOUT, causal=True).attend_vjp(query[:1], key[:1], value[:1])
    alone = pull(output)
    for name in ("query", "key", "value"):
        first = getattr(found[0], name)
        assert all((getattr(other, name) == first).all() for other in found)
        np.testing.assert_array_equal(getattr(alone, name), first[:1])


class Moving(StreamingMechanism):
    """Looks at all keys before it computes a row."""

    by_row = False


class Sparsemax(StreamingMechanism):
    """A normaliser that needs a whole row first."""

    normaliser = "sparsemax"


@pytest.mark.parametrize("kind", [Moving, Sparsemax])
def test_rules_that_cannot_promise_it(build: Any, kind: Any) -> None:
    build(kind, dim=4)
    with pytest.raises(ConfigError, match=r"^reproducible: got True; .*plain does not"):
        build(kind, dim=4, reproducible=True)


def test_caches_that_are_merged_from_parts(build: Any) -> None:
    mechanism = build(**LAYOUT)
    query, key, value = draw(5, np.float32)
    ring = RingCache.of(mechanism, batch=3, window=9, chunk=9)
    ring.append(key, value)
    with pytest.raises(
        ArgumentError, match=r"^caches: got RingCache; expected one KVCache or Paged"
    ):
        mechanism.attend_cached(query, ring)
    cache = KVCache.of(mechanism, batch=3)
    with pytest.raises(ArgumentError, match=r"^caches: got KVCache, KVCache; expected one"):
        mechanism.attend_cached(query, cache, cache)
