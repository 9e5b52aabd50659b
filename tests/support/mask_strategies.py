"""Strategies of hypothesis for masks that fit a call."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polyattn_core import masks
from polyattn_core.masks import Mask, MaskShape

align = st.sampled_from(["lower_right", "upper_left"])
reach = st.one_of(st.none(), st.integers(0, 9), st.integers(0, 200))


def _seen_by_thirds(batch: int, head: int, query: int, key: int) -> bool:
    return (query + 2 * key + head + batch) % 3 != 0


def _seen_near_the_end(batch: int, head: int, query: int, key: int) -> bool:
    return key > 60 or query > 63


def _random_booleans(shape: tuple[int, ...], seed: int, share: float) -> Any:
    return np.random.default_rng(seed).random(shape) < share


def _booleans(*shape: int) -> st.SearchStrategy[Any]:
    seeds, share = st.integers(0, 1 << 20), st.sampled_from([0.03, 0.5, 0.97])
    return st.builds(_random_booleans, st.just(shape), seeds, share)


def _lengths(shape: MaskShape) -> st.SearchStrategy[Any]:
    one = st.integers(0, shape.keys + 3)
    return st.one_of(one, hnp.arrays(np.int64, shape.lead, elements=one))


def _documents(shape: MaskShape) -> st.SearchStrategy[Mask]:
    def ids(tokens: int) -> st.SearchStrategy[Any]:
        sizes = st.sampled_from([(tokens,), (*shape.lead, tokens)])
        # A few runs, as sequences have, or anything.
        few = st.integers(0, 3)
        return sizes.flatmap(lambda s: hnp.arrays(np.int64, s, elements=few, fill=few))

    return st.builds(masks.Documents, ids(shape.queries), ids(shape.keys))


def _blocks(shape: MaskShape) -> st.SearchStrategy[Mask]:
    def layout(size: int) -> st.SearchStrategy[Mask]:
        blocks = (-(-shape.queries // size), -(-shape.keys // size))
        layouts = st.one_of(_booleans(*blocks), _booleans(*shape.lead, shape.heads, *blocks))
        return st.builds(masks.Blocks, layouts, st.just(size))

    return st.sampled_from([1, 3, 16, 64, 100]).flatmap(layout)


def _dense(shape: MaskShape) -> st.SearchStrategy[Mask]:
    queries, keys = shape.queries, shape.keys
    return st.one_of(
        *(
            st.builds(masks.Dense, _booleans(*size))
            for size in (
                (queries, keys),
                (1, keys),
                (queries, 1),
                (shape.heads, queries, keys),
                (*shape.lead, 1, 1, keys),
                (*shape.lead, shape.heads, queries, keys),
            )
        )
    )


def _positions(shape: MaskShape) -> st.SearchStrategy[Any]:
    one = st.integers(-shape.keys, shape.keys - 1)
    return st.one_of(st.integers(0, shape.keys + 2), st.lists(one, max_size=3).map(tuple))


def _strided(shape: MaskShape) -> st.SearchStrategy[Mask]:
    def of_stride(stride: int) -> st.SearchStrategy[Mask]:
        patterns, summary = st.sampled_from(["strided", "fixed"]), st.integers(1, stride)
        return st.builds(masks.Strided, st.just(stride), patterns, summary, align)

    return st.integers(1, 70).flatmap(of_stride)


KINDS = {
    "causal": lambda shape: st.builds(masks.Causal, align, st.integers(-150, 150)),
    "window": lambda shape: st.builds(masks.Window, reach, reach, align),
    "padding": lambda shape: st.builds(masks.Padding, _lengths(shape)),
    "prefix": lambda shape: st.builds(masks.Prefix, _lengths(shape)),
    "documents": _documents,
    "global": lambda shape: st.builds(masks.GlobalTokens, _positions(shape), align),
    "dilated": lambda shape: st.builds(masks.Dilated, st.integers(1, 70), reach, reach, align),
    "strided": _strided,
    "blocks": _blocks,
    "dense": _dense,
    "predicate": lambda shape: st.sampled_from(
        [masks.Predicate(_seen_by_thirds), masks.Predicate(_seen_near_the_end)]
    ),
}


def expressions(shape: MaskShape) -> st.SearchStrategy[Mask]:
    """Any combination of masks that fit."""
    leaves = st.one_of(*(make(shape) for make in KINDS.values()))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            st.builds(lambda a: ~a, inner),
        ),
        max_leaves=6,
    )
