"""States over some of the keys, and their merges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import numpy as np

from polyattn_core.errors import ArgumentError, CapabilityError
from polyattn_core.masks import Mask
from polyattn_core.partial import PartialState

from ..comparison import assert_close, assert_refused, require
from ..mask_examples import masks_of, masks_that_hide_keys, masks_with_empty_rows
from ..sizes import leading
from ..subject import Example, Subject
from . import Check

SIZES = leading(2, queries=66, keys=130, size=8, value_size=5, heads=2, key_heads=1)
SMALL = leading(2, queries=6, keys=9)
CUTS = ((64,), (1, 129), (63, 65, 66), (3, 30, 64, 128))
"""Where keys are divided."""


def checks(subject: Subject) -> Iterator[Check]:
    """Where partial results are declared; otherwise that asking for one is an error."""
    if not subject.capabilities.partial:
        yield check_partial_results_are_refused
        return
    yield check_parts_merge_to_the_whole
    yield check_merging_is_associative_and_commutative
    if subject.capabilities.masks:
        yield check_parts_under_masks
    yield check_parts_in_every_dtype
    yield check_parts_that_do_not_fit


def check_partial_results_are_refused(subject: Subject) -> None:
    """Asking for a state is an error."""
    example = subject.example()
    what = "a partial result, which is not declared"
    assert_refused(lambda: _part(example, 0, example.sizes.keys), what, CapabilityError)


def _part(example: Example, start: int, stop: int, **options: Any) -> PartialState:
    return example.mechanism.attend_partial(
        example.query,
        example.key[..., start:stop, :],
        example.value[..., start:stop, :],
        start=start,
        total=example.sizes.keys,
        **example.side,
        **options,
    )


def _parts(example: Example, cuts: Sequence[int], **options: Any) -> list[PartialState]:
    keys = example.sizes.keys
    places = [0, *(cut for cut in cuts if cut < keys), keys]
    return [_part(example, start, stop, **options) for start, stop in pairwise(places)]


def _merged(states: Sequence[PartialState]) -> PartialState:
    return reduce(lambda first, second: first.merge(second), states)


def check_parts_merge_to_the_whole(subject: Subject) -> None:
    """Keys divided anywhere give the same output as all at once."""
    example = subject.example(SIZES)
    expected = example.attend()
    for cuts in ((), *CUTS):
        output = _merged(_parts(example, cuts)).finish()
        what = f"output merged from parts divided at {cuts}"
        require(output.dtype == expected.dtype, f"{what}: it is {output.dtype}")
        assert_close(output, expected, example.tolerance, what)


def check_merging_is_associative_and_commutative(subject: Subject) -> None:
    """States merge in any order."""
    example = subject.example(SMALL)
    expected = example.attend()
    a, b, c, d = _parts(example, (1, 4, 5))
    orders = {
        "((a b) c) d": a.merge(b).merge(c).merge(d),
        "a (b (c d))": a.merge(b.merge(c.merge(d))),
        "(a b) (c d)": a.merge(b).merge(c.merge(d)),
        "((d b) a) c": d.merge(b).merge(a).merge(c),
        "(c a) (d b)": c.merge(a).merge(d.merge(b)),
    }
    for order, state in orders.items():
        what = f"output merged as {order}"
        assert_close(state.finish(), expected, example.tolerance, what)
    first = next(iter(orders.values()))
    for order, state in orders.items():
        what = f"log-sum-exp merged as {order}"
        assert_close(state.log_sum_exp, first.log_sum_exp, example.tolerance, what)


def check_parts_under_masks(subject: Subject) -> None:
    """A mask speaks of all keys, wherever they are divided; a part that nobody sees is neutral."""
    kinds = subject.capabilities.masks
    for sizes, cuts in ((SMALL, (1, 4, 5)), (SIZES, (3, 64, 128))):
        example = subject.example(sizes)
        chosen: list[Mask] = [masks_of(kind, example.shape)[0] for kind in kinds]
        chosen += masks_with_empty_rows(kinds, example.shape)[:2]
        for mask in chosen:
            what = f"output merged from parts under {mask!r} for {example.sizes}"
            output = _merged(_parts(example, cuts, mask=mask)).finish()
            assert_close(output, example.attend(mask=mask), example.tolerance, what)
    if subject.capabilities.causal:
        example = subject.example(SMALL, causal=True)
        output = _merged(_parts(example, (1, 4, 5))).finish()
        assert_close(output, example.attend(), example.tolerance, "merged output, causal=True")
    _check_hidden_part(subject)


def _check_hidden_part(subject: Subject) -> None:
    """A part whose keys are all hidden does not count, even where its values are not finite."""
    example = subject.example(SMALL)
    for mask in masks_that_hide_keys(subject.capabilities.masks, example.shape):
        seen = example.visible(mask).any(axis=(0, 1, 2))
        last = int(np.flatnonzero(seen)[-1]) + 1
        if last == example.sizes.keys:
            continue
        value, key = example.value.copy(), example.key.copy()
        value[..., last:, :], key[..., last:, :] = np.inf, np.nan
        poisoned = example.replace(key=key, value=value)
        parts = _parts(poisoned, (2, last), mask=mask)
        lowest = np.isneginf(parts[-1].log_sum_exp).all()
        require(lowest, f"log-sum-exp of a part that nobody sees is not −∞ under {mask!r}")
        expected = example.attend(mask=mask)
        for order in (parts, parts[::-1]):
            what = f"output merged with a part of infinite values hidden by {mask!r}"
            assert_close(_merged(order).finish(), expected, example.tolerance, what)


def check_parts_in_every_dtype(subject: Subject) -> None:
    """The finished output has the dtype of the inputs."""
    for dtype in subject.dtypes:
        example = subject.example(SMALL, dtype)
        output = _merged(_parts(example, (4,))).finish()
        require(output.dtype == example.query.dtype, f"merged {dtype} output is {output.dtype}")
        assert_close(output, example.expected(), example.tolerance, f"merged output in {dtype}")


def check_parts_that_do_not_fit(subject: Subject) -> None:
    """Positions outside of the keys, and states of other shapes, are errors."""
    example = subject.example(SMALL)
    other = subject.example(leading(1, queries=5, keys=9))
    keys = example.sizes.keys
    state = _part(example, 0, 4)
    attend = partial(example.mechanism.attend_partial, *example.inputs.values())
    for start, total in ((-1, keys), (keys - 1, keys), (0, 1)):
        what = f"a part of {keys} keys at start={start} of total={total}"
        assert_refused(
            partial(attend, start=start, total=total, **example.side),
            what,
            ArgumentError,
            ("start",),
        )
    what = "merging with a state of another shape"
    assert_refused(lambda: state.merge(_part(other, 4, 9)), what, ArgumentError, ("other",))
