"""The compiled mask interpreter against `Mask.dense`, tile by tile."""

from __future__ import annotations

import ctypes
import tracemalloc
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyattn_core.errors import KernelError
from polyattn_core.masks import (
    Blocks,
    Causal,
    Dense,
    Dilated,
    Documents,
    GlobalTokens,
    Mask,
    MaskShape,
    Padding,
    Predicate,
    Prefix,
    Strided,
    Window,
)
from polyattn_core.simd import masking
from polyattn_core.simd.masking import EMPTY, FULL, PARTIAL

ALIGN = ("lower_right", "upper_left")
GUARD = 0xA5


def scattered(batch: int, head: int, query: int, key: int) -> bool:
    return (batch * 7 + head * 5 + query * 3 + key) % 4 != 0


class Interpreter:
    """The interpreter called as kernels call it, with memory behind its stacks watched."""

    def __init__(self, mask: Mask, shape: MaskShape) -> None:
        self.shape = shape
        self.encoded = masking.encode(mask.program(shape))
        self._steps = np.ascontiguousarray(self.encoded.steps)

    def _call(self, name: str, place: list[int], seen: Any) -> tuple[int, Any]:
        pointer = ctypes.c_void_p
        signature = ctypes.CFUNCTYPE(ctypes.c_int64, pointer, ctypes.c_int64, *[pointer] * 5)
        function = signature(getattr(masking.interpreter(), name).address)
        count = len(self._steps)
        stack = np.full(2 * count + 8, -77, np.int64)
        where = np.array(place, np.int64)
        encoded = self.encoded
        result = function(
            self._steps.ctypes.data,
            count,
            encoded.integers.ctypes.data,
            encoded.octets.ctypes.data,
            where.ctypes.data,
            stack.ctypes.data,
            seen.ctypes.data,
        )
        assert (stack[2 * count + 2 :] == -77).all()
        return result, stack

    def _place(self, b: int, h: int, first: int, count: int, key: int, width: int, wide: int):  # type: ignore[no-untyped-def]
        return [b, h, first, count, self.shape.queries, self.shape.keys, key, width, wide]

    def key_range(self, b: int, h: int, first: int, count: int) -> tuple[int, int]:
        seen = np.zeros(1, np.uint8)
        _, stack = self._call("key_range", self._place(b, h, first, count, 0, 0, 0), seen)
        return int(stack[0]), int(stack[1])

    def classify(self, b: int, h: int, first: int, count: int, key: int, width: int) -> int:
        seen = np.zeros(1, np.uint8)
        return self._call("classify", self._place(b, h, first, count, key, width, 0), seen)[0]

    def fill(self, b: int, h: int, first: int, count: int, key: int, width: int, wide: int) -> Any:
        size = self.encoded.depth * width * wide
        seen = np.full(size + 64, GUARD, np.uint8)
        self._call("fill", self._place(b, h, first, count, key, width, wide), seen)
        assert (seen[size:] == GUARD).all()
        return seen[: width * wide].reshape(width, wide)


@st.composite
def shapes(draw: Callable[..., Any]) -> MaskShape:
    lead = draw(st.sampled_from([(), (1,), (2,), (2, 2)]))
    size = st.integers(1, 37)
    return MaskShape(lead, draw(st.integers(1, 3)), draw(size), draw(size))


def leaves(shape: MaskShape) -> st.SearchStrategy[Mask]:
    """Every kind of mask, for calls of this shape."""
    align = st.sampled_from(ALIGN)
    reach = st.none() | st.integers(0, 40)
    rng = st.integers(0, 2**32 - 1).map(np.random.default_rng)

    def leading(generator: Any) -> tuple[int, ...]:
        return shape.lead if generator.integers(2) else ()

    def booleans(generator: Any, *tail: int) -> Any:
        tail = (int(generator.choice([1, shape.heads])), *tail)
        tail = tuple(1 if generator.random() < 0.15 else size for size in tail)
        return generator.random((*leading(generator), *tail)) < generator.choice([0.1, 0.5, 0.95])

    def documents(generator: Any) -> Mask:
        if shape.queries == shape.keys:
            return Documents(np.sort(generator.integers(0, 4, (*shape.lead, shape.keys)), axis=-1))
        return Documents(
            generator.integers(0, 3, (*leading(generator), shape.queries)),
            generator.integers(0, 3, (*leading(generator), shape.keys)),
        )

    def blocks(generator: Any) -> Mask:
        size = int(generator.integers(1, 20))
        tail = (-(-shape.queries // size), -(-shape.keys // size))
        return Blocks(booleans(generator, *tail), size)

    def lengths(generator: Any) -> Any:
        return generator.integers(0, shape.keys + 3, leading(generator))

    return st.one_of(
        st.builds(Causal, align, st.integers(-40, 40)),
        st.builds(Window, reach, reach, align),
        st.builds(Dilated, st.integers(1, 9), reach, reach, align),
        st.integers(1, 9).flatmap(
            lambda stride: st.builds(
                Strided,
                st.just(stride),
                st.sampled_from(["strided", "fixed"]),
                st.integers(1, stride),
                align,
            )
        ),
        st.builds(GlobalTokens, st.integers(0, 5), align),
        st.builds(
            GlobalTokens,
            st.lists(st.integers(-shape.keys, shape.keys - 1), max_size=4).map(tuple),
            align,
        ),
        rng.map(lambda g: Padding(lengths(g))),
        rng.map(lambda g: Prefix(lengths(g))),
        rng.map(documents),
        rng.map(blocks),
        rng.map(lambda g: Dense(booleans(g, shape.queries, shape.keys))),
        st.just(Predicate(scattered)),
    )


def expressions(shape: MaskShape) -> st.SearchStrategy[Mask]:
    return st.recursive(
        leaves(shape),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
            st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
            inner.map(lambda mask: ~mask),
        ),
        max_leaves=5,
    )


def tiles(draw: Callable[..., Any], shape: MaskShape) -> tuple[int, ...]:
    first = draw(st.integers(0, shape.queries - 1))
    count = draw(st.integers(1, shape.queries - first))
    key = draw(st.integers(0, shape.keys - 1))
    width = draw(st.integers(1, shape.keys - key))
    b = draw(st.integers(0, shape.batch - 1))
    h = draw(st.integers(0, shape.heads - 1))
    return b, h, first, count, key, width


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_tiles_agree_with_the_dense_mask(data: Any) -> None:
    shape = data.draw(shapes())
    mask = data.draw(expressions(shape))
    interpreter = Interpreter(mask, shape)
    dense = mask.dense(shape)
    for _ in range(4):
        b, h, first, count, key, width = tiles(data.draw, shape)
        wide = count + data.draw(st.integers(0, 5))
        visible = dense[b, h, first : first + count, key : key + width]

        low, high = interpreter.key_range(b, h, first, count)
        assert 0 <= low <= high
        seen_by_any = dense[b, h, first : first + count].any(axis=0)
        assert not seen_by_any[:low].any()
        assert not seen_by_any[high:].any()

        found = interpreter.classify(b, h, first, count, key, width)
        assert found in (EMPTY, PARTIAL, FULL)
        assert found != EMPTY or not visible.any()
        assert found != FULL or visible.all()

        filled = interpreter.fill(b, h, first, count, key, width, wide)
        assert np.array_equal(filled[:, :count], visible.T)
        assert not filled[:, count:].any()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_single_masks_are_classified_exactly(data: Any) -> None:
    """A tile that is empty or full is known to be, so that its work is saved."""
    shape = data.draw(shapes())
    exact = ("causal", "window", "padding", "prefix", "blocks", "dense", "documents")
    mask = data.draw(leaves(shape).filter(lambda m: m.kind in exact))
    b, h, first, count, key, width = tiles(data.draw, shape)
    visible = mask.dense(shape)[b, h, first : first + count, key : key + width]
    expected = FULL if visible.all() else PARTIAL if visible.any() else EMPTY
    found = Interpreter(mask, shape).classify(b, h, first, count, key, width)
    if mask.kind == "documents" and expected == EMPTY:
        # Only ranges of document numbers are compared.
        expected = found if found == PARTIAL else expected
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_key_range_of_windows_is_tight(data: Any) -> None:
    shape = data.draw(shapes())
    mask = data.draw(leaves(shape).filter(lambda m: m.kind in ("causal", "window", "padding")))
    b, h, first, count, _, _ = tiles(data.draw, shape)
    seen = np.flatnonzero(mask.dense(shape)[b, h, first : first + count].any(axis=0))
    low, high = Interpreter(mask, shape).key_range(b, h, first, count)
    if seen.size:
        assert (low, high) == (seen[0], seen[-1] + 1)
    else:
        assert low == high


def test_no_mask_shows_everything() -> None:
    assert masking.NO_MASK.depth == 0
    assert len(masking.NO_MASK.steps) == 0


def test_depth_is_that_of_the_stack() -> None:
    shape = MaskShape((), 1, 5, 5)
    a, b, c = Causal(), Window(1, 1), Prefix(2)
    assert masking.encode(a.program(shape)).depth == 1
    assert masking.encode((~~~a).program(shape)).depth == 1
    assert masking.encode((a & b & c).program(shape)).depth == 3
    assert masking.encode(((a & b) | c).program(shape)).depth == 2
    assert masking.encode((a & (b | c)).program(shape)).depth == 3


POSITIONAL = [
    Causal(),
    Window(64, 3),
    Dilated(8, 4),
    Strided(128),
    Strided(128, "fixed", 4),
    GlobalTokens(16),
    Prefix(100),
    (Causal() & Window(256)) | GlobalTokens((0, -1)),
    Documents(np.repeat(np.arange(1 << 7), 1 << 10)),
    Blocks(np.eye(1 << 7, dtype=bool), 1 << 10),
]


@pytest.mark.parametrize("mask", POSITIONAL, ids=repr)
def test_lowering_takes_linear_memory(mask: Mask) -> None:
    tokens = 1 << 17
    shape = MaskShape((1,), 4, tokens, tokens)
    tracemalloc.start()
    encoded = masking.encode(mask.program(shape))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Queries × keys bits would be 2 GB. A few integers a token are what is needed.
    assert encoded.integers.nbytes + encoded.octets.nbytes <= 20 * tokens
    assert peak <= 100 * tokens


def test_a_single_table_is_not_copied() -> None:
    array = np.random.default_rng(0).random((3, 40, 50)) < 0.5
    array.flags.writeable = False
    encoded = masking.encode(Dense(array).program(MaskShape((), 3, 40, 50)))
    assert np.shares_memory(encoded.octets, array)


def test_predicates_take_numba_functions() -> None:
    shape = MaskShape((2,), 2, 9, 9)
    dense = Predicate(scattered).dense(shape)
    jitted = Predicate(numba.njit(scattered))
    assert np.array_equal(jitted.dense(shape), dense)
    filled = Interpreter(jitted, shape).fill(1, 1, 0, 9, 0, 9, 9)
    assert np.array_equal(filled, dense[1, 1].T)


def test_a_predicate_that_does_not_compile_says_where() -> None:
    def nonsense(batch: int, head: int, query: int, key: int) -> bool:
        return open(str(key)).closed

    with pytest.raises(KernelError, match=r"the mask predicate .*nonsense .*test_mask_lowering"):
        Predicate(nonsense).program(MaskShape((), 1, 2, 2))
