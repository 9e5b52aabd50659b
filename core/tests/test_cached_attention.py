"""Attention to caches: the rows that attention to everything at once would have given."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from polyattn_core.caches import Cache, KVCache, PagedCache, RingCache
from polyattn_core.errors import ArgumentError, CapabilityError, DTypeError, MaskError, ShapeError
from polyattn_core.masks import (
    Blocks,
    Causal,
    Dilated,
    Documents,
    GlobalTokens,
    Padding,
    Predicate,
    Prefix,
    Strided,
    Window,
)
from polyattn_core.positions import Rope
from polyattn_core.simd.rules import score_rule
from polyattn_core.spec import Capabilities
from polyattn_core.streaming import StreamingMechanism

HEADS, KEY_HEADS, SIZE, TOKENS = 4, 2, 16, 100
CHUNKS = (40, 1, 1, 3, 30, 4, 1, 20)
LAYOUT = {"dim": HEADS * SIZE, "heads": HEADS, "kv_heads": KEY_HEADS}


def draw(batch: int = 2, tokens: int = TOKENS, dtype: Any = np.float32, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return tuple(
        rng.standard_normal((batch, heads, tokens, SIZE)).astype(dtype)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )


def softmax(query: Any, key: Any, value: Any, scores: Any = None, visible: Any = True) -> Any:
    """By definition, in float64; `scores` changes the scaled products."""
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    key, value = (np.repeat(x, query.shape[1] // x.shape[1], axis=1) for x in (key, value))
    products = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    products = products if scores is None else scores(products)
    products = np.where(visible, products, -np.inf)
    weights = np.exp(products - products.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


def caches(mechanism: Any, batch: int = 2, **options: Any) -> list[Cache]:
    paged = PagedCache.of(mechanism, pages=64, page_size=7, **options)
    for _ in range(batch):
        paged.add()
    return [
        KVCache.of(mechanism, batch=batch, **options),
        KVCache.of(mechanism, batch=batch, capacity=TOKENS, **options),
        paged,
    ]


def in_chunks(mechanism: Any, cache: Cache, query: Any, key: Any, value: Any, **more: Any) -> Any:
    """A prompt in chunks, and single tokens between."""
    rows, at = [], 0
    for count in CHUNKS:
        part = np.s_[:, :, at : at + count]
        cache.append(key[part], value[part])
        rows.append(mechanism.attend_cached(query[part], cache, **more))
        at += count
    return np.concatenate(rows, axis=2)


@score_rule
def near(score, h, query, key, strength):  # type: ignore[no-untyped-def]
    """A rule of heads, positions and a parameter."""
    return score - strength * np.float32((h + 1) * ((query + key) % 3))


class Ruled(StreamingMechanism):
    """A score rule of its own."""

    def _rules(self, call: Any) -> Any:
        return [(near, (0.1,))]


# ---- chunks give what the whole gives -------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"causal": True, "softcap": 2.0, "scale": 0.7},
        {"causal": True, "position": "rope"},
        {"causal": True, "position": {"kind": "rope", "size": 6, "interleaved": True}},
        {"causal": True, "position": "alibi"},
        {"causal": True, "position": "t5", "softcap": 5.0},
    ],
    ids=str,
)
def test_chunks_give_the_rows_of_the_whole(build: Any, options: Any) -> None:
    mechanism = build(**LAYOUT, **options)
    query, key, value = draw()
    causal = mechanism if options else build(**LAYOUT, causal=True)
    whole = causal.attend(query, key, value)
    for cache in caches(mechanism):
        found = in_chunks(mechanism, cache, query, key, value)
        if options:
            np.testing.assert_allclose(found, whole, atol=3e-6)
        else:
            # Without a mask, a query sees all of its chunk.
            np.testing.assert_allclose(found[:, :, -1], whole[:, :, -1], atol=3e-6)


LAYOUT_OF_BLOCKS = np.tril(np.ones((10, 10), bool)) & (np.indices((10, 10)).sum(0) % 3 > 0)
MASKS = [
    Causal(),
    Causal(offset=-2),
    Window(20, 0),
    Window(3, 5) & Causal(),
    Causal() & (Window(9, 0) | Prefix(5)),
    Causal() & GlobalTokens((0, 7, 8)),
    Dilated(3, 10, 0),
    Strided(7, "fixed", 2) & Causal(),
    Causal() & Padding(np.array([60, 35])),
    Causal() & ~Window(4, 4) | Window(0, 0),
    Predicate(lambda b, h, i, j: (b + h + j) % 4 != 1),
]


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("queries", [1, 4, 30])
def test_masks_count_in_positions_of_the_text(build: Any, mask: Any, queries: int) -> None:
    mechanism = build(**LAYOUT)
    query, key, value = draw()
    query = query[:, :, -queries:]
    whole = mechanism.attend(query, key, value, mask=mask)
    for cache in caches(mechanism):
        cache.append(key, value)
        if isinstance(mask, Predicate) and isinstance(cache, PagedCache) and queries > 4:
            continue  # see test_a_predicate_that_the_long_way_cannot_ask
        found = mechanism.attend_cached(query, cache, mask=mask)
        np.testing.assert_allclose(found, whole, atol=3e-6)


@pytest.mark.parametrize("queries", [1, 20])
def test_masks_and_biases_by_arrays(build: Any, queries: int) -> None:
    mechanism = build(**LAYOUT)
    query, key, value = draw()
    query = query[:, :, -queries:]
    rng = np.random.default_rng(1)
    dense = rng.random((2, HEADS, queries, TOKENS)) < 0.7
    documents = Documents(np.repeat([[0], [3]], queries, 1), rng.integers(0, 4, (2, TOKENS)))
    rows = np.ones((-(-queries // 10), 10), bool)
    for cache in caches(mechanism):
        cache.append(key, value)
        for mask in (dense, dense[0, 0], documents, Blocks(rows & (np.arange(10) % 3 > 0), 10)):
            for shape in (
                (2, HEADS, queries, TOKENS),
                (HEADS, 1, TOKENS),
                (1, TOKENS),
                (2, 1, 1, 1),
            ):
                bias = rng.standard_normal(shape).astype(np.float32)
                found = mechanism.attend_cached(query, cache, mask=mask, bias=bias)
                whole = mechanism.attend(query, key, value, mask=mask, bias=bias)
                np.testing.assert_allclose(found, whole, atol=3e-6)


def test_a_rule_of_the_mechanism_runs_along_keys(build: Any) -> None:
    mechanism = build(Ruled, **LAYOUT, causal=True)
    query, key, value = draw()
    for cache in caches(mechanism):
        cache.append(key, value)
        for queries in (1, 2, 3):
            last = query[:, :, -queries:]
            i = np.arange(queries)[:, None]
            h = np.arange(1, 1 + HEADS)[:, None, None]
            visible = np.arange(TOKENS) <= i + TOKENS - queries
            expected = softmax(
                last, key, value,
                lambda s, h=h, i=i: s - 0.1 * h * ((i + np.arange(TOKENS)) % 3), visible,
            )  # fmt: skip
            found = mechanism.attend_cached(last, cache)
            np.testing.assert_allclose(found, expected, atol=3e-6)
            np.testing.assert_allclose(mechanism.attend(last, key, value), expected, atol=3e-6)


@pytest.mark.parametrize("queries", [1, 3, 40])
def test_nothing_behind_a_mask_comes_out(build: Any, queries: int) -> None:
    mechanism = build(**LAYOUT)
    query, key, value = draw()
    query = query[:, :, -queries:]
    hidden = np.arange(TOKENS) % 5 == 2
    key[:, :, hidden], value[:, :, hidden] = np.nan, np.inf
    for cache in caches(mechanism):
        cache.append(key, value)
        found = mechanism.attend_cached(query, cache, mask=~hidden[None])
        expected = softmax(query, key[:, :, ~hidden], value[:, :, ~hidden])
        np.testing.assert_allclose(found, expected, atol=3e-6)
        nothing = mechanism.attend_cached(query, cache, mask=np.zeros((1, TOKENS), bool))
        assert (nothing == 0).all()
        state = mechanism.attend_cached_partial(query, cache, mask=np.zeros((1, TOKENS), bool))
        assert np.isneginf(state.log_sum_exp).all()
        assert np.isnan(mechanism.attend_cached(query, cache)).all()


# ---- sequences of different lengths ---------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True},
        {"causal": True, "position": "alibi"},
        {"causal": True, "position": "t5"},
        {"causal": True, "position": "rope", "softcap": 3.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("queries", [1, 4, 9])
def test_sequences_of_different_lengths(build: Any, options: Any, queries: int) -> None:
    mechanism = build(**LAYOUT, **options)
    query, key, value = draw(3)
    query = query[:, :, -queries:]
    lengths = (9, 100, 41)
    mask = Window(30, 0) | Prefix(np.array([1, 5, 2]))
    bias = np.random.default_rng(2).standard_normal((3, HEADS, queries, 100)).astype(np.float32)
    more = {} if options.get("position") == "t5" else {"bias": bias}
    for cache in caches(mechanism, 3):
        for n, length in enumerate(lengths):
            cache.append(key[n, :, :length], value[n, :, :length], n)
        found = mechanism.attend_cached(query, cache, mask=mask, **more)
        for n, length in enumerate(lengths):
            own = {name: array[n : n + 1, :, :, :length] for name, array in more.items()}
            whole = mechanism.attend(
                query[n : n + 1], key[n : n + 1, :, :length], value[n : n + 1, :, :length],
                mask=Window(30, 0) | Prefix(mask.operands[1].lengths[n]), **own,
            )  # fmt: skip
            np.testing.assert_allclose(found[n : n + 1], whole, atol=3e-6)
        chosen = mechanism.attend_cached(query[[2, 0]], cache, sequences=[2, 0])
        np.testing.assert_allclose(chosen, mechanism.attend_cached(query, cache)[[2, 0]], atol=1e-6)


def test_one_sequence_without_its_axis_and_several_axes(build: Any) -> None:
    mechanism = build(**LAYOUT, causal=True)
    query, key, value = draw(6)
    cache = KVCache.of(mechanism, batch=6)
    cache.append(key.reshape(2, 3, *key.shape[1:]), value)
    expected = mechanism.attend(query, key, value)[:, :, -2:]
    last = query[:, :, -2:]
    found = mechanism.attend_cached(last.reshape(2, 3, *last.shape[1:]), cache)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=3e-6)
    one = mechanism.attend_cached(last[4], cache, sequences=4)
    assert one.shape == (HEADS, 2, SIZE)
    np.testing.assert_allclose(one, expected[4], atol=3e-6)


def test_a_predicate_that_the_long_way_cannot_ask(build: Any) -> None:
    mechanism = build(**LAYOUT)
    query, key, value = draw()
    cache = KVCache.of(mechanism, batch=2)
    cache.append(key, value)
    cache.append(key[:1], value[:1], 0)
    with pytest.raises(MaskError, match=r"^mask: got a predicate"):
        mechanism.attend_cached(query[:, :, -20:], cache, mask=Predicate(lambda b, h, i, j: j > b))


# ---- storage --------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float64", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("queries", [1, 20])
def test_what_is_read_is_attended_to(build: Any, storage: str, queries: int) -> None:
    mechanism = build(**LAYOUT, causal=True)
    query, key, value = draw(dtype=np.float64 if storage == "float64" else np.float32)
    query = query[:, :, -queries:]
    visible = np.arange(TOKENS) <= np.arange(queries)[:, None] + TOKENS - queries
    for cache in caches(mechanism, storage=storage):
        cache.append(key, value)
        read = [cache.read(n)[1:] for n in range(2)]
        expected = softmax(query, *(np.stack(x) for x in zip(*read, strict=True)), None, visible)
        found = mechanism.attend_cached(query, cache)
        np.testing.assert_allclose(found, expected, atol=20 * np.finfo(found.dtype).eps)


@pytest.mark.parametrize(("storage", "steps"), [("int8", 254), ("int4", 14)])
def test_outputs_are_within_the_bound_that_is_stated(build: Any, storage: str, steps: int) -> None:
    mechanism = build(**LAYOUT)
    query, key, value = draw()
    cache = KVCache.of(mechanism, batch=2, storage=storage)
    cache.append(key, value)
    for queries in (1, 20):
        last = query[:, :, -queries:]
        off = np.abs(mechanism.attend_cached(last, cache) - softmax(last, key, value))
        delta = np.abs(last).sum(-1, keepdims=True) / np.sqrt(SIZE) * np.abs(key).max() / steps
        largest = np.abs(value).max()
        assert (off <= np.expm1(2 * delta) * largest + largest / steps + 1e-5).all()
        assert off.max() > 1e-4  # numbers were packed


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_narrow_queries(build: Any, name: str) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    mechanism = build(**LAYOUT, causal=True)
    query, key, value = (x.astype(dtype) for x in draw())
    for storage in (name, "float32", "int8"):
        cache = KVCache.of(mechanism, batch=2, storage=storage)
        cache.append(key, value)
        found = mechanism.attend_cached(query[:, :, -1:], cache)
        assert found.dtype == dtype
        expected = mechanism.attend(query, key, value)[:, :, -1:].astype(np.float32)
        np.testing.assert_allclose(found.astype(np.float32), expected, atol=0.03)


def test_values_of_another_size_and_heads_that_are_not_grouped(build: Any) -> None:
    rng = np.random.default_rng(0)
    mechanism = build(dim=24, heads=1)
    query, key, value = (rng.standard_normal((1, 1, n, d), np.float32) for n, d in (
        (1, 24), (50, 24), (50, 5)))  # fmt: skip
    for storage in ("float32", "int8"):
        cache = KVCache.of(mechanism, value_size=5, storage=storage)
        cache.append(key, value)
        found = mechanism.attend_cached(query, cache)
        assert found.shape == (1, 1, 1, 5)
        np.testing.assert_allclose(found, softmax(query, key, value), atol=0.03)


# ---- rings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "sinks", "chunk"), [(1, 0, 1), (7, 0, 4), (16, 3, 1), (5, 4, 40)]
)
@pytest.mark.parametrize("options", [{}, {"position": "alibi"}, {"position": "rope"}], ids=str)
def test_a_ring_is_a_window_with_sinks(
    build: Any, window: int, sinks: int, chunk: int, options: Any
) -> None:
    mechanism = build(**LAYOUT, **options)
    query, key, value = draw()
    mask = Causal() & (Window(window - 1, 0) | Prefix(sinks))
    whole = mechanism.attend(query, key, value, mask=mask)
    cache = RingCache.of(mechanism, batch=2, window=window, sinks=sinks, chunk=chunk)
    at = 0
    for count in itertools.cycle((1, chunk, max(chunk // 2, 1))):
        count = min(count, TOKENS - at)
        if not count:
            break
        part = np.s_[:, :, at : at + count]
        cache.append(key[part], value[part])
        found = mechanism.attend_cached(query[part], cache)
        np.testing.assert_allclose(found, whole[part], atol=3e-6)
        at += count
    assert cache.nbytes == 2 * 2 * KEY_HEADS * (sinks + window + chunk - 1) * SIZE * 4


@pytest.mark.parametrize("chunk", [1, 3])
def test_positions_counted_in_the_cache(build: Any, chunk: int) -> None:
    """Xiao et al.: keys are rotated by their place among those held, at each step anew."""
    rope = Rope()
    mechanism = build(**LAYOUT, position=rope)
    query, key, value = draw()
    window, sinks = 8, 3
    cache = RingCache.of(
        mechanism, batch=2, window=window, sinks=sinks, chunk=chunk, positions="cache"
    )
    frequency = 10_000.0 ** (-np.arange(0, SIZE, 2) / SIZE)

    def turned(array: Any, positions: Any) -> Any:
        angle = np.asarray(positions)[:, None] * frequency
        first, second = array[..., : SIZE // 2], array[..., SIZE // 2 :]
        return np.concatenate(
            [
                first * np.cos(angle) - second * np.sin(angle),
                first * np.sin(angle) + second * np.cos(angle),
            ],
            axis=-1,
        )

    for at in range(0, 60, chunk):
        part = np.s_[:, :, at : at + chunk]
        cache.append(key[part], value[part])
        found = mechanism.attend_cached(query[part], cache)
        for n in range(chunk):
            i = at + n
            held = [j for j in range(i + 1) if j < sinks or i - j < window]
            expected = softmax(
                turned(query[:, :, i : i + 1], [len(held) - 1]),
                turned(key[:, :, held], np.arange(len(held))), value[:, :, held],
            )  # fmt: skip
            np.testing.assert_allclose(found[:, :, n : n + 1], expected, atol=3e-6)


def test_queries_whose_keys_were_overwritten(build: Any) -> None:
    mechanism = build(**LAYOUT)
    query, key, value = draw()
    cache = RingCache.of(mechanism, batch=2, window=5, chunk=2)
    for at in range(0, 20, 2):
        cache.append(key[:, :, at : at + 2], value[:, :, at : at + 2])
    mechanism.attend_cached(query[:, :, :2], cache)
    with pytest.raises(ArgumentError, match=r"^query: got 3 queries; expected up to chunk=2"):
        mechanism.attend_cached(query[:, :, :3], cache)


# ---- several caches -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"position": "rope"}, {"position": "alibi"}], ids=str)
@pytest.mark.parametrize("queries", [1, 3, 12])
def test_a_common_beginning(build: Any, options: Any, queries: int) -> None:
    mechanism = build(**LAYOUT, causal=True, **options)
    query, key, value = draw(3)
    key[:, :, :60], value[:, :, :60] = key[:1, :, :60], value[:1, :, :60]
    lengths = (100, 80, 99)
    beginning = KVCache.of(mechanism)
    beginning.append(key[:1, :, :60], value[:1, :, :60])
    own = KVCache.of(mechanism, batch=3, start=60)
    for n, length in enumerate(lengths):
        own.append(key[n, :, 60:length], value[n, :, 60:length], n)
    mask = Window(50, 0) | Prefix(10)
    found = mechanism.attend_cached(query[:, :, :queries], beginning, own, mask=mask)
    for n, length in enumerate(lengths):
        one = slice(n, n + 1)
        whole = mechanism.attend(
            query[one, :, :queries], key[one, :, :length], value[one, :, :length], mask=mask
        )
        np.testing.assert_allclose(found[one], whole, atol=3e-6)


def test_states_merge_with_others(build: Any) -> None:
    mechanism = build(**LAYOUT)
    query, key, value = draw()
    cache = KVCache.of(mechanism, batch=2)
    cache.append(key[:, :, 30:], value[:, :, 30:])
    last = query[:, :, -1:]
    other = mechanism.attend_partial(last, key[:, :, :30], value[:, :, :30])
    state = mechanism.attend_cached_partial(last, cache)
    expected = softmax(last, key, value)
    for merged in (state.merge(other), other.merge(state)):
        np.testing.assert_allclose(merged.finish(), expected, atol=3e-6)
    three = [
        mechanism.attend_partial(last, key[:, :, a:b], value[:, :, a:b])
        for a, b in ((0, 30), (30, 31), (31, 100))
    ]
    np.testing.assert_allclose(three[1].merge(*three[::2]).finish(), expected, atol=3e-6)
    assert three[0].merge() is three[0]


def test_caches_that_do_not_follow_each_other(build: Any) -> None:
    mechanism = build(**LAYOUT)
    query, key, value = draw()
    first, second = KVCache.of(mechanism, batch=2), KVCache.of(mechanism, batch=2, start=9)
    for cache in (first, second):
        cache.append(key, value)
    with pytest.raises(
        ArgumentError, match=r"^caches: got one that starts at 9; expected start=100"
    ):
        mechanism.attend_cached(query, first, second)
    first.truncate([9, 8])
    with pytest.raises(ArgumentError, match=r"^caches: .*one length before the last cache"):
        mechanism.attend_cached(query, first, second)
    first.truncate(8)
    with pytest.raises(ArgumentError, match=r"expected start=8"):
        mechanism.attend_cached(query, first, second)


# ---- what is refused ------------------------------------------------------------------------


def test_calls_that_cannot_be(build: Any) -> None:
    mechanism = build(**LAYOUT)
    query, key, value = draw()
    cache = KVCache.of(mechanism, batch=2)
    last = query[:, :, -1:]
    with pytest.raises(ArgumentError, match=r"^query: got 1 queries; expected .*\[0, 0\]: append"):
        mechanism.attend_cached(last, cache)
    cache.append(key, value)
    wrong = build(dim=64, heads=4)
    rotating = build(**LAYOUT, position="rope")
    undeclared = build(**LAYOUT, capabilities=Capabilities())
    cases = [
        (mechanism, last[:1], (cache,), ShapeError, "^query: .*each of 2 sequences"),
        (mechanism, last[:, :3], (cache,), ShapeError, r"^query: .*\(..., 4, queries, 16\)"),
        (mechanism, last[0, 0], (cache,), ShapeError, "^query"),
        (mechanism, last[:, :, :0], (cache,), ShapeError, "^query: .*no empty axis"),
        (mechanism, last.astype(np.float64), (cache,), DTypeError, "^query: got float64 with floa"),
        (mechanism, last, (), ArgumentError, "^caches: got none"),
        (mechanism, last, (key,), ArgumentError, "^caches: .*a KVCache, RingCache or PagedCache"),
        (
            wrong,
            last,
            (cache,),
            ArgumentError,
            "^caches: got one of 2 heads of size 16; expected 4",
        ),
        (rotating, last, (cache,), ArgumentError, "^caches: got one with rope=None; .*KVCache.of"),
        (undeclared, last, (cache,), CapabilityError, "partial results"),
    ]
    for kind, array, given, error, message in cases:
        with pytest.raises(error, match=message):
            kind.attend_cached(array, *given)
    with pytest.raises(ShapeError, match=r"^bias"):
        mechanism.attend_cached(last, cache, bias=np.zeros(99, np.float32))
    with pytest.raises(MaskError, match=r"^mask"):
        mechanism.attend_cached(last, cache, mask="causal")
    with pytest.raises(ArgumentError, match=r"^sequences"):
        mechanism.attend_cached(last, cache, sequences=2)


# ---- threads --------------------------------------------------------------------------------

THREADS = """
import os, sys, threading
import numpy as np
from polyattn_core.caches import KVCache
from polyattn_core.simd import threads
from polyattn_core.spec import Capabilities, MechanismSpec
from polyattn_core.streaming import ScaledConfig, StreamingMechanism
spec = MechanismSpec(
    name="a", family="b", summary="", factory="a:b", config="a:b", reference="a:b",
    capabilities=Capabilities(partial=True),
)
rng = np.random.default_rng(0)
key, value = rng.standard_normal((2, 1, 2, 60_000, 16), np.float32)
query = rng.standard_normal((1, 2, 1, 16), np.float32)
used = []
run = threads.run
def counted(kernel, arguments, tasks, workers):
    used.append(workers)
    run(kernel, arguments, tasks, workers)
threads.run = counted
found = []
for n in (None, 1, 2, 3, 5):
    mechanism = StreamingMechanism(ScaledConfig(dim=32, heads=2, threads=n), spec=spec)
    cache = KVCache.of(mechanism, capacity=60_000)
    cache.append(key, value)
    found.append(mechanism.attend_cached(query, cache))
    assert np.allclose(found[-1], found[0], atol=1e-6)
assert used == [3, 1, 2, 3, 3], used
results = [None] * 8
def attend(n):
    for _ in range(20):
        results[n] = mechanism.attend_cached(query, cache)
own = [threading.Thread(target=attend, args=(n,)) for n in range(8)]
for thread in own: thread.start()
for thread in own: thread.join()
assert all(np.array_equal(r, found[-1]) for r in results)
if hasattr(os, "fork"):
    import signal, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        os._exit(0 if np.array_equal(mechanism.attend_cached(query, cache), found[-1]) else 3)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_threads_are_those_that_are_allowed(run_python: Any) -> None:
    run_python(THREADS, NUMBA_NUM_THREADS="3")


def test_caches_of_a_mechanism_have_its_heads_and_positions(build: Any) -> None:
    mechanism = build(**LAYOUT, position={"kind": "rope", "base": 500.0})
    cache = KVCache.of(mechanism, storage="bfloat16", batch=5)
    assert (cache.heads, cache.size, cache.batch, cache.storage) == (2, 16, 5, "bfloat16")
    assert cache.rope == Rope(base=500.0)
