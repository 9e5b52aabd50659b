"""Attention to keys and values in a cache: the same as one call with all tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from polyattn_core.caches import KVCache
from polyattn_core.errors import ArgumentError, CapabilityError, DTypeError
from polyattn_core.masks import Mask, MaskShape

from ..comparison import assert_close, assert_refused, require
from ..mask_examples import masks_of
from ..sizes import leading
from ..subject import Array, Example, Subject
from . import Check

SMALL = leading(2, queries=9, keys=9)
SIZES = (
    SMALL,
    leading(2, queries=8, keys=8, heads=4, key_heads=2),
    leading(1, queries=66, keys=66, size=8, value_size=5, heads=3, key_heads=1),
)
CHUNKS = ((-1,), (-1, 1), (1, 2, -1), (2, 1, 1, -1, 1))
"""How tokens are divided into calls; −1 for those that are left."""
STORAGE = {"float64": "float64", "float32": "float32"}
"""Storage that loses nothing, by dtype of the queries."""


def checks(subject: Subject) -> Iterator[Check]:
    """Where there are partial results, which caches need; otherwise that caches are refused."""
    can = subject.capabilities
    if not can.partial:
        yield check_caches_are_refused
        return
    if any(side.required for side in can.side_inputs):
        return  # there is no argument for them
    yield check_cached_tokens_are_those_of_one_call
    yield check_cached_sequences_of_different_lengths
    if can.masks and can.cross:
        yield check_cached_attention_under_masks
    if can.bias and can.cross:
        yield check_cached_attention_with_a_bias
    yield check_caches_that_do_not_fit


def _cache(example: Example) -> KVCache:
    return KVCache.of(
        example.mechanism,
        batch=int(np.prod(example.sizes.lead)),
        value_size=example.sizes.value_size,
        storage=STORAGE.get(example.dtype, "float32"),
    )


def _append(cache: KVCache, example: Example, tokens: slice) -> None:
    cache.append(example.key[..., tokens, :], example.value[..., tokens, :])


def _calls(tokens: int, chunks: Sequence[int]) -> Iterator[slice]:
    """The tokens of each call."""
    left = tokens - sum(chunk for chunk in chunks if chunk > 0)
    start = 0
    for chunk in chunks:
        stop = start + (left if chunk < 0 else chunk)
        yield slice(start, stop)
        start = stop


def _at_once(example: Example, tokens: slice) -> Array:
    """The rows of these tokens, in one call with all up to them."""
    arrays = (array[..., : tokens.stop, :] for array in example.inputs.values())
    return example.mechanism.attend(*arrays)[..., tokens, :]


def check_caches_are_refused(subject: Subject) -> None:
    """Attending to a cache is an error."""
    example = subject.example()
    sizes, config = example.sizes, example.mechanism.config
    cache = KVCache(
        config.key_heads,
        config.head_dim,
        batch=int(np.prod(sizes.lead)),
        value_size=sizes.value_size,
        storage=STORAGE.get(example.dtype, "float32"),
    )
    shape = (cache.batch, cache.heads, sizes.queries)
    cache.append(
        *(np.ones((*shape, n), example.query.dtype) for n in (cache.size, cache.value_size))
    )
    assert_refused(
        lambda: example.mechanism.attend_cached(example.query, cache),
        "a cache, which needs partial results, and these are not declared",
        CapabilityError,
    )


def check_cached_tokens_are_those_of_one_call(subject: Subject) -> None:
    """However tokens are divided into calls, each gets what it gets where there is no cache."""
    options = [{}, {"causal": True}] if subject.capabilities.causal else [{}]
    for dtype in subject.dtypes:
        for chosen in options:
            for sizes in SIZES if dtype in STORAGE else (SMALL,):
                example = subject.example(sizes, dtype, **chosen)
                for chunks in CHUNKS:
                    cache = _cache(example)
                    for tokens in _calls(sizes.queries, chunks):
                        _append(cache, example, tokens)
                        query = example.query[..., tokens, :]
                        output = example.mechanism.attend_cached(query, cache)
                        what = f"output of tokens {tokens.start} to {tokens.stop} from a cache of "
                        what += f"{cache.storage} for {example.sizes} {chosen or ''}"
                        require(output.dtype == query.dtype, f"{what}: it is {output.dtype}")
                        assert_close(output, _at_once(example, tokens), example.tolerance, what)


def check_cached_sequences_of_different_lengths(subject: Subject) -> None:
    """Each sequence of a cache is by itself."""
    example = subject.example(SMALL)
    cache = _cache(example)
    lengths, queries = (4, SMALL.queries), 2
    for number, length in enumerate(lengths):
        key, value = (x[number : number + 1, :, :length] for x in (example.key, example.value))
        cache.append(key, value, [number])
    query = np.stack([example.query[n, :, k - queries : k] for n, k in enumerate(lengths)])
    output = example.mechanism.attend_cached(query, cache)
    for number, length in enumerate(lengths):
        own = {name: x[number : number + 1] for name, x in example.inputs.items()}
        expected = _at_once(example.replace(**own), slice(length - queries, length))
        what = f"output of the sequence of {length} tokens, of {lengths}, from a cache"
        assert_close(output[number], expected[0], example.tolerance, what)


def check_cached_attention_under_masks(subject: Subject) -> None:
    """A mask speaks of the queries passed and of all keys."""
    example = subject.example(SMALL)
    for last in (1, 3):
        few = example.replace(query=example.query[..., -last:, :], side={})
        sizes = example.sizes
        shape = MaskShape(sizes.lead, sizes.heads, last, sizes.keys)
        cache = _cache(example)
        _append(cache, example, slice(None))
        masks: list[Mask] = [masks_of(kind, shape)[0] for kind in subject.capabilities.masks]
        for mask in masks:
            output = few.mechanism.attend_cached(few.query, cache, mask=mask)
            what = f"output of {last} queries from a cache under {mask!r}"
            assert_close(output, few.attend(mask=mask), example.tolerance, what)


def check_cached_attention_with_a_bias(subject: Subject) -> None:
    """A bias is for the queries passed and for all keys."""
    example = subject.example(SMALL)
    cache = _cache(example)
    _append(cache, example, slice(None))
    few = example.replace(query=example.query[..., -2:, :], side={})
    for axes in (("keys",), ("lead", "heads", "queries", "keys")):
        bias = example.bias(*axes)
        bias = bias[..., -2:, :] if bias.shape[-2] > 1 else bias
        output = few.mechanism.attend_cached(few.query, cache, bias=bias)
        what = f"output from a cache with a bias of shape {bias.shape}"
        assert_close(output, few.attend(bias=bias), example.tolerance, what)


def check_caches_that_do_not_fit(subject: Subject) -> None:
    """Caches of other sizes or of too few tokens, other things, and none at all, are errors."""
    example = subject.example(SMALL)
    heads, size = example.sizes.key_heads, example.sizes.size
    attend = partial(example.mechanism.attend_cached, example.query)
    cache = _cache(example)
    _append(cache, example, slice(SMALL.queries - 1))
    for what, caches in (
        ("no cache", ()),
        ("an array for a cache", (example.key,)),
        ("a cache of a head too many", (KVCache(heads + 1, size, batch=2),)),
        ("a cache of another head size", (KVCache(heads, size + 1, batch=2),)),
    ):
        assert_refused(partial(attend, *caches), what, ArgumentError, ("caches",))
    assert_refused(
        partial(attend, cache), "more queries than tokens", ArgumentError, ("append first",)
    )
    if subject.precise == "float64":
        narrow = KVCache.of(example.mechanism, batch=2, value_size=example.sizes.value_size)
        _append(narrow, example, slice(None))
        what = "float64 queries with float32 keys"
        assert_refused(partial(attend, narrow), what, DTypeError, ("float64",))
