"""Caches against plain lists of arrays: appending, forgetting, sharing, saving."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyattn_core.caches import Cache, KVCache, PagedCache, RingCache
from polyattn_core.errors import ArgumentError, DTypeError, FileFormatError, ShapeError
from polyattn_core.positions import Rope, rotate

HEADS, SIZE, VALUE_SIZE = 2, 5, 3
Lists = dict[int, list[tuple[Any, Any]]]


def tokens(rng: Any, *shape: int) -> tuple[Any, Any]:
    return (
        rng.standard_normal((*shape[:-1], HEADS, shape[-1], SIZE)).astype(np.float32),
        rng.standard_normal((*shape[:-1], HEADS, shape[-1], VALUE_SIZE)).astype(np.float32),
    )


def extend(lists: Lists, sequences: list[int], key: Any, value: Any) -> None:
    for n, sequence in enumerate(sequences):
        for t in range(key.shape[2]):
            lists[sequence].append((key[n, :, t], value[n, :, t]))


def same(cache: Cache, lists: Lists, held: Any = lambda sequence, position: True) -> None:
    for sequence, expected in lists.items():
        assert cache.lengths[sequence] == len(expected)
        positions, key, value = cache.read(sequence)
        wanted = [p for p in range(len(expected)) if held(sequence, p)]
        assert positions.tolist() == wanted
        for n, position in enumerate(wanted):
            np.testing.assert_array_equal(key[:, n], expected[position][0])
            np.testing.assert_array_equal(value[:, n], expected[position][1])


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "truncate", "reset"]),
        st.sets(st.integers(0, 2), min_size=1),
        st.integers(0, 9),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(0, 99), st.sampled_from([None, 20]))
def test_a_growing_cache_is_a_list(steps: Any, seed: int, capacity: int | None) -> None:
    rng = np.random.default_rng(seed)
    cache = KVCache(HEADS, SIZE, value_size=VALUE_SIZE, batch=3, capacity=capacity)
    lists: Lists = {0: [], 1: [], 2: []}
    for step, chosen, count in steps:
        sequences = sorted(chosen)
        if step == "append":
            key, value = tokens(rng, len(sequences), count)
            if capacity and max(len(lists[s]) for s in sequences) + count > capacity:
                with pytest.raises(ArgumentError, match=r"expected up to capacity=20 tokens"):
                    cache.append(key, value, sequences)
            else:
                cache.append(key, value, sequences)
                extend(lists, sequences, key, value)
        elif step == "truncate":
            lengths = [min(count, len(lists[s])) for s in sequences]
            cache.truncate(lengths, sequences)
            for sequence, length in zip(sequences, lengths, strict=True):
                del lists[sequence][length:]
        else:
            cache.reset(sequences)
            for sequence in sequences:
                lists[sequence].clear()
        same(cache, lists)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(0, 99), st.integers(0, 3), st.integers(1, 6), st.integers(1, 4))
def test_a_ring_is_the_end_of_a_list(
    steps: Any, seed: int, sinks: int, window: int, chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    cache = RingCache(
        HEADS, SIZE, value_size=VALUE_SIZE, batch=3, sinks=sinks, window=window, chunk=chunk
    )
    ring = window + chunk - 1
    lists: Lists = {0: [], 1: [], 2: []}
    # The first position beyond the sinks that nothing was written over.
    oldest = dict.fromkeys(lists, sinks)
    for step, chosen, count in steps:
        sequences = sorted(chosen)
        longest = max(len(lists[s]) for s in sequences)
        if step == "append":
            key, value = tokens(rng, len(sequences), count)
            if count > chunk and longest + count > sinks + ring:
                with pytest.raises(ArgumentError, match=f"up to chunk={chunk} at a time"):
                    cache.append(key, value, sequences)
                continue
            cache.append(key, value, sequences)
            extend(lists, sequences, key, value)
            for s in sequences:
                oldest[s] = max(oldest[s], len(lists[s]) - ring)
        elif step == "truncate":
            length = min(count, *(len(lists[s]) for s in sequences))
            whole = all(
                length <= sinks or max(length - window, sinks) >= oldest[s] for s in sequences
            )
            if not whole:
                with pytest.raises(ArgumentError, match=r"have not been overwritten"):
                    cache.truncate(length, sequences)
                continue
            cache.truncate(length, sequences)
            for s in sequences:
                del lists[s][length:]
                oldest[s] = sinks if length <= sinks else oldest[s]
        else:
            cache.reset(sequences)
            for s in sequences:
                lists[s].clear()
                oldest[s] = sinks
        same(cache, lists, lambda s, p: p < sinks or p >= oldest[s])


PAGED = st.lists(
    st.tuples(
        st.sampled_from(["add", "append", "append", "append", "fork", "truncate", "release"]),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    max_size=30,
)


@settings(max_examples=80, deadline=None)
@given(PAGED, st.integers(0, 99))
def test_pages_hold_lists_that_share_their_beginnings(steps: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cache = PagedCache(HEADS, SIZE, value_size=VALUE_SIZE, pages=12, page_size=3)
    lists: Lists = {}
    for step, which, count in steps:
        live = sorted(lists)
        if step == "add" or not live:
            lists[cache.add()] = []
            continue
        sequences = live if which == 0 else [live[which % len(live)]]
        first = sequences[0]
        if step == "append":
            key, value = tokens(rng, len(sequences), count)
            try:
                cache.append(key, value, sequences)
            except ArgumentError as error:
                assert "more pages" in str(error)  # noqa: PT017 - whether it is full, below
                assert cache.free_pages < len(sequences) * (count // 3 + 2)
            else:
                extend(lists, sequences, key, value)
        elif step == "fork":
            length = min(count, len(lists[first]))
            lists[cache.fork(first, length)] = lists[first][:length]
        elif step == "truncate":
            length = min(count, *(len(lists[s]) for s in sequences))
            cache.truncate(length, sequences)
            for s in sequences:
                del lists[s][length:]
        else:
            cache.release(first)
            del lists[first]
        same(cache, lists)
        assert cache.sequences == sorted(lists)
        used = {page for s in lists for page in cache.table(s)}
        assert cache.free_pages == 12 - len(used)


def test_what_is_shared_is_in_memory_once() -> None:
    rng = np.random.default_rng(0)
    cache = PagedCache(HEADS, SIZE, value_size=VALUE_SIZE, pages=10, page_size=4)
    prompt = cache.add()
    cache.append(*tokens(rng, 10), prompt)
    answers = [cache.fork(prompt) for _ in range(3)]
    assert cache.free_pages == 7
    cache.append(*tokens(rng, 3, 1), answers)
    assert [cache.table(a)[:2] for a in answers] == [cache.table(prompt)[:2]] * 3
    assert cache.free_pages == 4
    cache.release(prompt)
    assert cache.free_pages == 5  # its last page was nobody else's
    # The last user of a page writes to it without a copy.
    cache.release(answers[1:])
    cache.append(*tokens(rng, 1), answers[0])
    assert cache.free_pages == 7


def test_nothing_is_appended_where_there_is_no_room() -> None:
    rng = np.random.default_rng(0)
    paged = PagedCache(HEADS, SIZE, value_size=VALUE_SIZE, pages=3, page_size=2)
    first, second = paged.add(), paged.add()
    paged.append(*tokens(rng, 3), first)
    before = paged.state
    with pytest.raises(ArgumentError) as caught:
        paged.append(*tokens(rng, 2, 2))
    assert str(caught.value) == (
        "key: got 2 tokens, which need 2 more pages; expected up to what the 1 free ones of 3 hold"
    )
    assert paged.lengths.tolist() == [3, 0]
    assert all((before[name] == array).all() for name, array in paged.state.items())
    assert paged.table(second) == []
    fixed = KVCache(HEADS, SIZE, value_size=VALUE_SIZE, batch=2, capacity=4)
    fixed.append(*tokens(rng, 1, 3), sequences=1)
    with pytest.raises(ArgumentError) as caught:
        fixed.append(*tokens(rng, 2, 2))
    assert str(caught.value) == (
        "key: got 2 more tokens, which makes 5; expected up to capacity=4 tokens"
    )
    assert fixed.lengths.tolist() == [0, 3]


# ---- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, r"heads: got 0; expected a whole number from 1 on"),
        ({"size": 2.0}, r"size: got 2\.0"),
        ({"value_size": True}, r"value_size: got True"),
        ({"batch": "2"}, r"batch: got 2"),
        ({"capacity": 0}, r"capacity: got 0"),
        ({"storage": "int2"}, r"storage: got int2; expected one of float32, float64, float16"),
        ({"group": 32}, r"group: got 32; expected nothing: float32 numbers have no scales"),
        ({"storage": "int8", "group": 48}, r"group: got 48; expected 32 or 64"),
        ({"storage": "int4", "value_size": 32, "group": 64}, r"group: got 64; expected 32"),
        ({"rope": "yes"}, r"rope: got yes; expected a polyattn\.positions\.Rope, or None"),
        ({"start": -1}, r"start: got -1"),
    ],
)
def test_options_that_cannot_be(options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        KVCache(**{"heads": 2, "size": 64, **options})


def test_options_of_the_other_kinds() -> None:
    with pytest.raises(ArgumentError, match=r"^window: got 0"):
        RingCache(1, 4, window=0)
    with pytest.raises(ArgumentError, match=r"^positions: got cache; expected 'text', or rope="):
        RingCache(1, 4, window=3, positions="cache")
    with pytest.raises(ArgumentError, match=r"^positions: got here; expected 'text' or 'cache'"):
        RingCache(1, 4, window=3, positions="here")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^pages: got 0"):
        PagedCache(1, 4, pages=0)


def test_arrays_that_do_not_fit() -> None:
    cache = KVCache(2, 5, batch=3)
    key = np.ones((3, 2, 4, 5), np.float32)
    cases = [
        (key[:2], key[:2], ShapeError, r"^key: got \(2, 2, 4, 5\); expected \(3, 2, tokens, 5\)"),
        (key[:, :1], key, ShapeError, "^key"),
        (key, key[..., :4], ShapeError, r"^value: .*expected \(3, 2, tokens, 5\)"),
        (key, key[:, :, :3], ShapeError, "^value: .*4 tokens like key"),
        (key.astype(np.complex64), key, DTypeError, "^key"),
    ]
    for keys, values, kind, message in cases:
        with pytest.raises(kind, match=message):
            cache.append(keys, values)
    for sequences in (3, -1, 1.5, [0, 5]):
        with pytest.raises(ArgumentError, match=r"^sequences"):
            cache.append(key, key, sequences)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^sequences: .*each sequence once"):
        cache.append(key[:2], key[:2], [1, 1])
    for lengths in (1, -1, [0, 0], 0.5):
        with pytest.raises(ArgumentError, match=r"^lengths"):
            cache.truncate(lengths)
    assert len(cache) == 0


def test_numbers_that_cannot_be_stored() -> None:
    large = np.full((1, 2, 1, 5), 1e5, np.float32)
    with pytest.raises(ArgumentError, match=r"^key: got numbers beyond 65504"):
        KVCache(2, 5, storage="float16").append(large, large)
    for bad in (np.nan, np.inf):
        with pytest.raises(ArgumentError, match=r"^value: got numbers that are not finite; .*int4"):
            KVCache(2, 5, storage="int4").append(large, large * bad)
    with pytest.raises(ArgumentError, match=r"^sequences: got 0; expected"):
        PagedCache(2, 5, pages=1).read(0)


# ---- state ----------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float32", "float64", "float16", "bfloat16", "int8", "int4"])
def test_a_cache_comes_back_from_a_file(tmp_path: Any, storage: str) -> None:
    rng = np.random.default_rng(0)
    rope = Rope(base=100.0, size=4)
    options: dict[str, Any] = {"value_size": VALUE_SIZE, "storage": storage, "rope": rope}
    paged = PagedCache(HEADS, SIZE, pages=9, page_size=2, **options)
    for _ in range(3):
        paged.add()
    caches: list[Cache] = [
        KVCache(HEADS, SIZE, batch=3, start=7, **options),
        KVCache(HEADS, SIZE, batch=3, capacity=11, **options),
        RingCache(HEADS, SIZE, batch=3, window=2, sinks=1, chunk=2, positions="cache", **options),
        paged,
    ]
    for n, cache in enumerate(caches):
        cache.append(*tokens(rng, 3, 2))
        cache.append(*tokens(rng, 1, 2), sequences=[1])
        if isinstance(cache, PagedCache):
            cache.release(0)
        path = tmp_path / f"{n}.safetensors"
        cache.save(path)
        again = type(cache).load(path)
        assert repr(again) == repr(cache)
        assert again.rope == rope
        assert (again.start, again.nbytes) == (cache.start, cache.nbytes)
        for name, array in cache.state.items():
            np.testing.assert_array_equal(again.state[name], array)
        key, value = tokens(rng, 1)
        for each in (cache, again):
            each.append(key, value, 1)
        for one, two in zip(cache.read(1), again.read(1), strict=True):
            np.testing.assert_array_equal(one, two)


def test_files_of_something_else(tmp_path: Any) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "cache.safetensors"
    KVCache(2, 4, capacity=3).save(path)
    with pytest.raises(FileFormatError, match=r"another kind of cache.*that RingCache.save wrote"):
        RingCache.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match=r"expected a safetensors file that KVCache.save"):
        KVCache.load(path)
    key = np.zeros((1, 2, 3, 16), np.float32)
    options = {"cache": "KVCache", "heads": 2, "size": 4, "capacity": 3, "rope": None}
    lengths = np.array([1])
    for tensors, changed in (
        ({"key": key, "value": key, "lengths": lengths + 9}, {}),
        ({"key": key, "value": key, "lengths": lengths - 9}, {}),
        ({"key": key[:, :1], "value": key, "lengths": lengths}, {}),
        ({"key": key, "value": key}, {}),
        ({"key": key, "value": key, "lengths": lengths}, {"heads": -1}),
        ({"key": key, "value": key, "lengths": lengths}, {"rope": {"base": 0}}),
        ({"key": key, "value": key, "lengths": lengths}, {"surplus": 0}),
    ):
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()},
            str(path), {"polyattn": json.dumps({**options, **changed})},
        )  # fmt: skip
        with pytest.raises(FileFormatError):
            KVCache.load(path)


def test_the_state_can_be_looked_at_and_not_changed() -> None:
    cache = KVCache(2, 64, storage="int4", capacity=8)
    assert sorted(cache.state) == ["key", "key_scales", "lengths", "value", "value_scales"]
    assert cache.state["key"].nbytes == 2 * 8 * 64 // 2
    with pytest.raises(ValueError, match=r"read-only"):
        cache.state["key"][...] = 0


def test_packed_numbers_take_the_memory_that_they_claim() -> None:
    bits = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16, "int8": 8.5, "int4": 4.5}
    for storage, each in bits.items():
        cache = KVCache(4, 128, batch=2, capacity=4096, storage=storage)
        exact = 2 * 2 * 4 * 4096 * 128 * each / 8
        assert exact <= cache.nbytes <= 1.01 * exact


def test_keys_are_rotated_to_where_they_come_in() -> None:
    rng = np.random.default_rng(0)
    rope = Rope(size=4)
    key, value = tokens(rng, 2, 7)
    for cache in (
        KVCache(HEADS, SIZE, value_size=VALUE_SIZE, batch=2, rope=rope, start=5),
        RingCache(HEADS, SIZE, value_size=VALUE_SIZE, batch=2, rope=rope, start=5, window=9),
    ):
        for at in range(7):
            cache.append(key[:, :, at : at + 1], value[:, :, at : at + 1])
        positions, keys, _ = cache.read(1)
        assert positions.tolist() == list(range(5, 12))
        np.testing.assert_array_equal(keys, rotate(key[1], positions, rope))
