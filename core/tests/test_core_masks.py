"""Masks: what each lets through, pair by pair, and their algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyattn_core.masks import (
    And,
    Blocks,
    Causal,
    Dense,
    Dilated,
    Documents,
    GlobalTokens,
    Mask,
    MaskShape,
    Not,
    Or,
    Padding,
    Predicate,
    Prefix,
    Strided,
    Window,
)

Visible = Callable[[int, int, int, int], bool]
"""(batch, head, position of the query among the keys, key) → visible."""

SHAPES = [
    MaskShape((), 1, 1, 1),
    MaskShape((2,), 2, 6, 6),
    MaskShape((2,), 1, 4, 9),
    MaskShape((), 3, 9, 4),
    MaskShape((2, 2), 2, 5, 7),
]
both_aligns = pytest.mark.parametrize("align", ["lower_right", "upper_left"])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def expected(shape: MaskShape, visible: Visible, align: str = "upper_left") -> Any:
    """Pair by pair, with plain loops."""
    first = shape.keys - shape.queries if align == "lower_right" else 0
    result = np.zeros((shape.batch, shape.heads, shape.queries, shape.keys), bool)
    for b in range(shape.batch):
        for h in range(shape.heads):
            for i in range(shape.queries):
                for j in range(shape.keys):
                    result[b, h, i, j] = visible(b, h, i + first, j)
    return result


def check(mask: Mask, shape: MaskShape, visible: Visible, align: str = "upper_left") -> None:
    found = mask.dense(shape)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, expected(shape, visible, align))


# ---- what each lets through -----------------------------------------------------------------


@both_aligns
@each_shape
@pytest.mark.parametrize("offset", [0, 2, -1, np.int64(1)])
def test_causal(shape: MaskShape, align: Any, offset: int) -> None:
    check(Causal(align, offset), shape, lambda b, h, p, j: j <= p + offset, align)


@both_aligns
@each_shape
@pytest.mark.parametrize(("left", "right"), [(None, None), (0, 0), (2, None), (None, 1), (1, 3)])
def test_window(shape: MaskShape, align: Any, left: int | None, right: int | None) -> None:
    def visible(b: int, h: int, p: int, j: int) -> bool:
        near = left is None or p - j <= left
        return near and (right is None or j - p <= right)

    check(Window(left, right, align), shape, visible, align)


@both_aligns
@each_shape
@pytest.mark.parametrize("reach", [(None, None), (1, 0), (0, 2)])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_dilated(shape: MaskShape, align: Any, step: int, reach: tuple[Any, Any]) -> None:
    left, right = reach

    def visible(b: int, h: int, p: int, j: int) -> bool:
        # Keys at p + n·step, for n from −left to right.
        lowest = -100 if left is None else -left
        highest = 100 if right is None else right
        return any(j == p + n * step for n in range(lowest, highest + 1))

    check(Dilated(step, left, right, align), shape, visible, align)


@both_aligns
@each_shape
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_strided(shape: MaskShape, align: Any, stride: int) -> None:
    def visible(b: int, h: int, p: int, j: int) -> bool:
        return j in range(p - stride + 1, p + stride) or (p - j) % stride == 0

    check(Strided(stride, align=align), shape, visible, align)


@both_aligns
@each_shape
@pytest.mark.parametrize(("stride", "summary"), [(1, 1), (3, 1), (3, 2), (4, 4)])
def test_fixed(shape: MaskShape, align: Any, stride: int, summary: int) -> None:
    def visible(b: int, h: int, p: int, j: int) -> bool:
        block = next(n for n in range(-20, 20) if n * stride <= p < (n + 1) * stride)
        own = block * stride <= j < (block + 1) * stride
        return own or j % stride in range(stride - summary, stride)

    check(Strided(stride, "fixed", summary, align), shape, visible, align)


@both_aligns
@each_shape
@pytest.mark.parametrize("positions", [0, 1, 3, 100, (), (0, -1), (0, 0)])
def test_global_tokens(shape: MaskShape, align: Any, positions: Any) -> None:
    if isinstance(positions, tuple):
        chosen = {position % shape.keys for position in positions}
    else:
        chosen = set(range(positions))
    check(
        GlobalTokens(positions, align),
        shape,
        lambda b, h, p, j: j in chosen or (p in chosen and 0 <= p < shape.keys),
        align,
    )


@each_shape
@pytest.mark.parametrize("kind", [Padding, Prefix])
def test_lengths(shape: MaskShape, kind: Any) -> None:
    check(kind(3), shape, lambda b, h, p, j: j < 3)
    check(kind(0), shape, lambda b, h, p, j: False)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, shape.keys + 2, shape.lead)
    flat = lengths.reshape(-1)
    check(kind(lengths), shape, lambda b, h, p, j: j < flat[b])


def test_lengths_broadcast() -> None:
    shape = MaskShape((2, 3), 1, 4, 5)
    lengths = np.array([[1, 5, 0]])
    check(Padding(lengths), shape, lambda b, h, p, j: j < lengths[0, b % 3])
    lengths = np.array([[2], [4]])
    check(Padding(lengths), shape, lambda b, h, p, j: j < lengths[b // 3, 0])


@each_shape
def test_documents(shape: MaskShape) -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(-1, 3, (*shape.lead, shape.queries))
    key_ids = rng.integers(-1, 3, (*shape.lead, shape.keys))
    of_query, of_key = (x.reshape(shape.batch, -1) for x in (ids, key_ids))
    check(Documents(ids, key_ids), shape, lambda b, h, p, j: of_query[b, p] == of_key[b, j])
    shared = key_ids.reshape(shape.batch, -1)[0]
    check(Documents(ids, shared), shape, lambda b, h, p, j: of_query[b, p] == shared[j])


def test_documents_from_lengths() -> None:
    mask = Documents.from_lengths(2, 1, 3)
    assert mask == Documents([0, 0, 1, 2, 2, 2])
    visible = mask.dense(MaskShape((), 1, 6, 6))[0, 0]
    assert visible.sum() == 4 + 1 + 9
    assert visible[:2, :2].all()
    assert visible[3:, 3:].all()


@each_shape
def test_blocks(shape: MaskShape) -> None:
    size = 3
    rows, columns = -(-shape.queries // size), -(-shape.keys // size)
    layout = np.random.default_rng(2).random((*shape.lead, shape.heads, rows, columns)) < 0.5
    flat = layout.reshape(shape.batch, shape.heads, rows, columns)
    check(Blocks(layout, size), shape, lambda b, h, p, j: flat[b, h, p // size, j // size])
    same = flat[0, 0]
    check(Blocks(same, size), shape, lambda b, h, p, j: same[p // size, j // size])


@each_shape
def test_dense(shape: MaskShape) -> None:
    rng = np.random.default_rng(3)
    array = rng.random((*shape.lead, shape.heads, shape.queries, shape.keys)) < 0.5
    flat = array.reshape(shape.batch, shape.heads, shape.queries, shape.keys)
    check(Dense(array), shape, lambda b, h, p, j: flat[b, h, p, j])
    keys = array.reshape(-1, shape.keys)[:1]
    check(Dense(keys), shape, lambda b, h, p, j: keys[0, j])
    rows = rng.random((shape.heads, shape.queries, 1)) < 0.5
    check(Dense(rows), shape, lambda b, h, p, j: rows[h, p, 0])


@each_shape
def test_predicate(shape: MaskShape) -> None:
    def visible(b: int, h: int, i: int, j: int) -> bool:
        return (i * 2 + j + h + b) % 3 == 0

    check(Predicate(visible), shape, visible)


def test_a_dense_mask_keeps_what_it_was_made_from() -> None:
    array = np.ones((4, 4), bool)
    mask = Dense(array)
    array[:] = False
    assert mask.dense(MaskShape((), 1, 4, 4)).all()
    lengths = np.array([3, 4])
    padding = Padding(lengths)
    lengths[:] = 0
    assert padding == Padding([3, 4])


# ---- algebra --------------------------------------------------------------------------------

SHAPE = MaskShape((2,), 2, 7, 9)
_RNG = np.random.default_rng(4)
LEAVES = [
    Causal(),
    Causal("upper_left", 1),
    Window(2, 1),
    Dilated(2, 3),
    Strided(3),
    GlobalTokens((1, -1)),
    Padding([3, 9]),
    Prefix(2),
    Documents([0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2]),
    Blocks(_RNG.random((2, 3, 3)) < 0.5, 3),
    Dense(_RNG.random((2, 2, 7, 9)) < 0.5),
    Predicate(lambda b, h, i, j: (i + j) % 2 == 0),
]
masks = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        inner.map(lambda mask: ~mask),
    ),
    max_leaves=4,
)


def same(one: Mask, two: Mask) -> bool:
    return np.array_equal(one.dense(SHAPE), two.dense(SHAPE))


@settings(max_examples=60, deadline=None)
@given(masks, masks, masks)
def test_laws(a: Mask, b: Mask, c: Mask) -> None:
    assert same(a & b, b & a)
    assert same(a | b, b | a)
    assert same((a & b) & c, a & (b & c))
    assert same((a | b) | c, a | (b | c))
    assert same(a & (b | c), (a & b) | (a & c))
    assert same(a | (b & c), (a | b) & (a | c))
    assert same(~(a & b), ~a | ~b)
    assert same(~(a | b), ~a & ~b)
    assert same(a & a, a)
    assert not (a & ~a).dense(SHAPE).any()
    assert (a | ~a).dense(SHAPE).all()


@settings(max_examples=60, deadline=None)
@given(masks, masks)
def test_operators_are_those_of_arrays(a: Mask, b: Mask) -> None:
    np.testing.assert_array_equal((a & b).dense(SHAPE), a.dense(SHAPE) & b.dense(SHAPE))
    np.testing.assert_array_equal((a | b).dense(SHAPE), a.dense(SHAPE) | b.dense(SHAPE))
    np.testing.assert_array_equal((~a).dense(SHAPE), ~a.dense(SHAPE))


def test_expressions_stay_flat() -> None:
    a, b, c = Causal(), Window(1), Prefix(2)
    assert (a & b) & c == a & (b & c) == And((a, b, c))
    assert a | b | c == Or((a, b, c))
    assert ~~a is a
    assert ~(a & b) == Not(And((a, b)))
    assert (a & b | ~c).kinds == {"causal", "window", "prefix"}
    with pytest.raises(TypeError):
        a & True  # type: ignore[operator]
    with pytest.raises(TypeError):
        a | np.ones((2, 2), bool)


def test_reprs() -> None:
    mask = (Causal() | Window(1)) & ~(Prefix(2) & Padding(3))
    assert repr(mask) == (
        "(Causal(align='lower_right', offset=0) | Window(left=1, right=None, align='lower_right'))"
        " & ~(Prefix(lengths=array(2)) & Padding(lengths=array(3)))"
    )
    assert repr(Dense(np.ones((2, 3), bool))) == "Dense(<2×3 booleans>)"
    assert repr(Blocks(np.ones((2, 3), bool), 8)) == "Blocks(<2×3 layout>, size=8)"
