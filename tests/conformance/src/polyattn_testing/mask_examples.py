"""Masks of every kind that fit a call, some pairs hidden and some visible in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core import masks
from polyattn_core.masks import Mask, MaskShape
from polyattn_core.spec import MASK_KINDS

Array = npt.NDArray[Any]
Maker = Callable[[MaskShape, np.random.Generator], list[Mask]]


def masks_of(kind: str, shape: MaskShape, seed: int = 0) -> list[Mask]:
    """Several masks of one kind, the plainest first."""
    return _MAKERS[kind](shape, np.random.default_rng(seed))


def combinations(kinds: tuple[str, ...], shape: MaskShape) -> Iterator[Mask]:
    """Negations, intersections and unions of masks of these kinds."""
    each = [masks_of(kind, shape, seed=1)[-1] for kind in MASK_KINDS if kind in kinds]
    for mask in each:
        yield ~mask
    for first, second in pairwise(each):
        yield first & second
        yield first | ~second
    if len(each) > 2:
        yield (each[0] | each[-1]) & ~(each[1] & each[-2])


def masks_with_empty_rows(kinds: tuple[str, ...], shape: MaskShape) -> list[Mask]:
    """Masks under which some queries see nothing and others do."""
    return [mask for kind in MASK_KINDS if kind in kinds for mask in _emptying(kind, shape)]


def masks_that_hide_keys(kinds: tuple[str, ...], shape: MaskShape) -> list[Mask]:
    """Masks under which some keys are seen by no query of some batch element."""
    found: list[Mask] = []
    hidden = max(1, shape.keys // 3)
    if "padding" in kinds:
        found.append(masks.Padding(shape.keys - hidden))
    if "causal" in kinds:
        found.append(masks.Causal(offset=-hidden))
    if "dense" in kinds:
        visible = np.ones((1, shape.keys), bool)
        visible[:, 1::3] = False
        found.append(masks.Dense(visible))
    if not found and "prefix" in kinds:
        found.append(masks.Prefix(shape.keys - hidden))
    if not found and "window" in kinds:
        found.append(masks.Window(left=shape.keys, right=0) & ~masks.Window(left=0, right=0))
    return found


def _emptying(kind: str, shape: MaskShape) -> list[Mask]:
    lengths = np.full(shape.lead, shape.keys)
    lengths.reshape(-1)[::2] = 0
    if kind == "causal":
        return [masks.Causal(offset=-max(1, shape.keys - shape.queries + 2))]
    if kind == "padding":
        return [masks.Padding(lengths)]
    if kind == "documents":
        ids = np.arange(shape.queries) // 2
        return [masks.Documents(ids, np.arange(shape.keys) // 2 + 1)]
    if kind == "prefix":
        return [masks.Prefix(lengths)]
    if kind == "dense":
        visible = np.ones((shape.queries, 1), bool)
        visible[::2] = False
        return [masks.Dense(visible)]
    if kind == "predicate":
        return [masks.Predicate(_late_queries_see_all)]
    return []


def _causal(shape: MaskShape, rng: np.random.Generator) -> list[Mask]:
    return [masks.Causal(), masks.Causal(align="upper_left", offset=1), masks.Causal(offset=-1)]


def _window(shape: MaskShape, rng: np.random.Generator) -> list[Mask]:
    return [masks.Window(2, 1), masks.Window(right=2), masks.Window(3, 0, align="upper_left")]


def _padding(shape: MaskShape, rng: np.random.Generator) -> list[Mask]:
    lengths = rng.integers(1, shape.keys + 1, shape.lead)
    return [masks.Padding(max(1, shape.keys - 1)), masks.Padding(lengths)]


def _prefix(shape: MaskShape, rng: np.random.Generator) -> list[Mask]:
    lengths = rng.integers(1, shape.keys + 1, shape.lead)
    return [masks.Prefix(max(1, shape.keys - 1)), masks.Prefix(lengths)]


def _documents(shape: MaskShape, rng: np.random.Generator) -> list[Mask]:
    ids = np.arange(shape.queries) // 3
    key_ids = np.sort(rng.integers(0, 3, (*shape.lead, shape.keys)))
    return [masks.Documents(ids, np.arange(shape.keys) // 3), masks.Documents(ids % 3, key_ids)]


def _global(shape: MaskShape, rng: np.random.Generator) -> list[Mask]:
    return [masks.GlobalTokens(1), masks.GlobalTokens((0, -1))]


def _dilated(shape: MaskShape, rng: np.random.Generator) -> list[Mask]:
    return [masks.Dilated(2), masks.Dilated(2, left=2, right=1), masks.Dilated(3, right=0)]


def _strided(shape: MaskShape, rng: np.random.Generator) -> list[Mask]:
    return [masks.Strided(3), masks.Strided(4, "fixed", summary=2)]


def _blocks(shape: MaskShape, rng: np.random.Generator) -> list[Mask]:
    def layout(size: int, *lead: int) -> Array:
        return rng.random((*lead, -(-shape.queries // size), -(-shape.keys // size))) < 0.6

    return [
        masks.Blocks(layout(2), 2),
        masks.Blocks(layout(16, shape.heads), 16),
        masks.Blocks(layout(3, *shape.lead, 1), 3),
    ]


def _dense(shape: MaskShape, rng: np.random.Generator) -> list[Mask]:
    queries, keys = shape.queries, shape.keys
    sizes = (
        (queries, keys),
        (1, keys),
        (shape.heads, queries, 1),
        (*shape.lead, 1, queries, keys),
        (*shape.lead, shape.heads, queries, keys),
    )
    return [masks.Dense(rng.random(size) < 0.6) for size in sizes]


def _predicate(shape: MaskShape, rng: np.random.Generator) -> list[Mask]:
    return [masks.Predicate(_not_in_fives)]


def _not_in_fives(batch: int, head: int, query: int, key: int) -> bool:
    return (batch + 2 * head + 3 * query + key) % 5 != 0


def _late_queries_see_all(batch: int, head: int, query: int, key: int) -> bool:
    return query > 1


_MAKERS: dict[str, Maker] = {
    "causal": _causal,
    "window": _window,
    "padding": _padding,
    "documents": _documents,
    "prefix": _prefix,
    "global": _global,
    "dilated": _dilated,
    "strided": _strided,
    "blocks": _blocks,
    "dense": _dense,
    "predicate": _predicate,
}
