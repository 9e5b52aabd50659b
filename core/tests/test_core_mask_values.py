"""Masks as values: equality, hashes, pickles, and what they refuse."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest

from polyattn_core.errors import MaskError
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
    Or,
    Padding,
    Predicate,
    Prefix,
    Strided,
    Window,
)

# ---- equality -------------------------------------------------------------------------------

PAIRS = [
    lambda: Causal(),
    lambda: Causal(offset=1),
    lambda: Causal("upper_left"),
    lambda: Window(1, 2),
    lambda: Window(2, 1),
    lambda: GlobalTokens((1, 2)),
    lambda: GlobalTokens(2),
    lambda: Padding([1, 2]),
    lambda: Prefix([1, 2]),
    lambda: Padding([[1, 2]]),
    lambda: Documents([0, 1]),
    lambda: Documents([0, 1], [0, 1]),
    lambda: Dense(np.eye(3, dtype=bool)),
    lambda: Dense(np.eye(3, dtype=bool)[None]),
    lambda: Blocks(np.eye(3, dtype=bool), 2),
    lambda: Blocks(np.eye(3, dtype=bool), 3),
    lambda: Causal() & Padding([1, 2]),
    lambda: Causal() | Padding([1, 2]),
    lambda: ~Causal(),
]


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_equal_masks_are_equal_and_no_others(number: int) -> None:
    mask = PAIRS[number]()
    for other_number, other in enumerate(PAIRS):
        assert (mask == other()) is (number == other_number)
    assert hash(mask) == hash(PAIRS[number]())
    assert mask != "mask"
    assert pickle.loads(pickle.dumps(mask)) == mask


def test_sequences_of_any_kind_make_the_same_mask() -> None:
    assert GlobalTokens([0, np.int64(3)]) == GlobalTokens((0, 3)) == GlobalTokens(np.array([0, 3]))
    assert Padding([1, 2]) == Padding(np.array([1, 2], np.uint8))
    assert Causal(offset=np.int32(1)) == Causal(offset=1)


# ---- what is refused ------------------------------------------------------------------------

SQUARE = MaskShape((), 2, 4, 4)
BATCHED = MaskShape((3,), 2, 4, 4)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Causal("left"), "align: got left; expected 'lower_right' or 'upper_left'"),
        (lambda: Causal(offset=1.0), "offset: got 1.0; expected a whole number from"),
        (lambda: Window(-1), "left: got -1; expected a whole number from 0 to 2⁴⁰ or None"),
        (lambda: Window(1, True), "right: got True; expected a whole number from 0"),
        (lambda: Dilated(0), "step: got 0; expected a whole number from 1 to 2⁴⁰"),
        (lambda: Strided(0), "stride: got 0; expected a whole number from 1"),
        (lambda: Strided(2, "both"), "pattern: got both; expected 'strided' or 'fixed'"),
        (lambda: Strided(2, "fixed", 3), "summary: got 3; expected at most the stride 2"),
        (lambda: GlobalTokens(-1), "positions: got -1; expected a whole number from 0"),
        (lambda: GlobalTokens(True), "positions: got True; expected a number of tokens, or"),
        (lambda: GlobalTokens((1.5,)), "positions: got (1.5,); expected a number of tokens, or"),
        (lambda: GlobalTokens("12"), "positions: got 12; expected a number of tokens, or"),
        (lambda: Padding(-1), "lengths: got -1; expected whole numbers of at least 0"),
        (lambda: Prefix([1.0]), "lengths: got [1.0]; expected whole numbers of at least 0"),
        (lambda: Documents(3), "ids: got 3; expected an array (..., tokens) of document numbers"),
        (lambda: Documents([0], ["a"]), "key_ids: got ['a']; expected whole numbers"),
        (
            lambda: Dense(np.ones((2, 2))),
            "array: got float64 array of shape (2, 2); expected a boolean array (..., heads,",
        ),
        (lambda: Dense(np.ones(3, bool)), "array: got bool array of shape (3,); expected a"),
        (lambda: Blocks(np.ones((2, 2), bool), 0), "size: got 0; expected a whole number from 1"),
        (lambda: Blocks([1, 2], 2), "layout: got int64 array of shape (2,); expected a boolean"),
        (lambda: Predicate("f"), "function: got f; expected a function (batch, head, query, key)"),
        (lambda: And(()), "operands: got (); expected at least one mask"),
        (lambda: Or((Causal(), 1)), "operands: got 1; expected masks"),
        # For a call
        (
            lambda: Dense(np.ones((3, 4), bool)).dense(SQUARE),
            "array: got (1, 3, 4); expected 1 or 4 rows",
        ),
        (
            lambda: Dense(np.ones((4, 5), bool)).dense(SQUARE),
            "array: got (1, 4, 5); expected 1 or 4 columns",
        ),
        (
            lambda: Dense(np.ones((3, 4, 4), bool)).dense(SQUARE),
            "array: got (3, 4, 4); expected 1 or 2 heads in the third last axis",
        ),
        (
            lambda: Dense(np.ones((2, 2, 4, 4), bool)).dense(BATCHED),
            "array: got (2, 2, 4, 4); expected leading axes that broadcast to (3,)",
        ),
        (lambda: Padding([1, 2]).dense(BATCHED), "lengths: got (2,); expected leading axes that"),
        (
            lambda: Documents([0, 1, 2]).dense(SQUARE),
            "ids: got (3,); expected a last axis of the 4 queries",
        ),
        (
            lambda: Documents([0] * 4, [0]).dense(SQUARE),
            "key_ids: got (1,); expected a last axis of the 4 keys",
        ),
        (
            lambda: GlobalTokens((4,)).dense(SQUARE),
            "positions: got 4; expected positions among the 4 keys",
        ),
        (
            lambda: Blocks(np.ones((2, 3), bool), 2).dense(SQUARE),
            "layout: got (1, 2, 3); expected 1 or 2 columns",
        ),
    ],
)
def test_refusals(make: Callable[[], object], text: str) -> None:
    with pytest.raises(MaskError) as caught:
        make()
    assert str(caught.value).startswith(text)


def test_a_call_is_refused_by_lowering_as_it_is_by_dense() -> None:
    for mask in (Dense(np.ones((3, 4), bool)), Padding([1, 2]), GlobalTokens((4,))):
        for shape in (BATCHED,):
            with pytest.raises(MaskError):
                mask.program(shape)


def test_unfinished_masks_say_so() -> None:
    class Unfinished(Mask):
        __slots__ = ()

    with pytest.raises(TypeError, match=r"Unfinished does not define program\(\)"):
        Unfinished().program(SQUARE)
    with pytest.raises(TypeError, match=r"Unfinished does not define _allowed\(\)"):
        Unfinished().dense(SQUARE)
