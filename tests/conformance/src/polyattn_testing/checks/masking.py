"""Masks: every declared kind, rows that see nothing, and what stands behind a mask."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from polyattn_core.errors import CapabilityError
from polyattn_core.masks import Dense, Mask
from polyattn_core.resolver import alternatives
from polyattn_core.spec import MASK_KINDS

from ..comparison import NotApplicable, assert_close, assert_refused, assert_same, require
from ..mask_examples import combinations, masks_of, masks_that_hide_keys, masks_with_empty_rows
from ..sizes import leading
from ..subject import Array, Example, Subject
from . import Check

SIZES = (leading(2, queries=6, keys=7), leading(1, 2, queries=70, keys=67, key_heads=1))
POISON = (np.nan, np.inf, -np.inf)


def checks(subject: Subject) -> Iterator[Check]:
    """Those that fit the declared kinds of masks."""
    can = subject.capabilities
    if set(can.masks) != set(MASK_KINDS):
        yield check_undeclared_masks_are_refused
    if not can.masks:
        return
    yield check_every_kind_of_mask
    yield check_combined_masks
    if "dense" in can.masks:
        yield check_boolean_array_as_mask
    yield check_empty_rows
    yield check_hidden_keys_do_not_leak
    yield check_partly_hidden_keys_do_not_leak
    if can.gradient:
        yield check_empty_rows_have_no_gradient
        yield check_hidden_keys_do_not_leak_into_gradients


def _compare(example: Example, mask: Mask) -> None:
    what = f"output under {mask!r} for {example.sizes}"
    expected = example.expected(mask=mask)
    assert_close(example.attend(mask=mask), expected, example.tolerance, what)


def check_every_kind_of_mask(subject: Subject) -> None:
    """Agrees with the reference under each declared kind of mask."""
    for sizes in SIZES:
        example = subject.example(sizes)
        for kind in subject.capabilities.masks:
            for mask in masks_of(kind, example.shape):
                _compare(example, mask)


def check_combined_masks(subject: Subject) -> None:
    """Agrees with the reference under combinations by &, | and ~.

    One that takes arrays can take any combination; others may refuse some.
    """
    for sizes in SIZES:
        example = subject.example(sizes)
        for mask in combinations(subject.capabilities.masks, example.shape):
            try:
                _compare(example, mask)
            except CapabilityError:
                if "dense" in subject.capabilities.masks:
                    raise


def check_boolean_array_as_mask(subject: Subject) -> None:
    """A boolean array is a mask as it stands."""
    example = subject.example()
    rng = np.random.default_rng(0)
    visible = rng.random((example.sizes.queries, example.sizes.keys)) < 0.6
    assert_same(
        example.attend(mask=visible),
        example.attend(mask=Dense(visible)),
        "output with an array as mask against that with Dense(array)",
    )


def check_undeclared_masks_are_refused(subject: Subject) -> None:
    """A kind of mask that is not declared is an error that names mechanisms which take it."""
    example = subject.example()
    for kind in MASK_KINDS:
        if kind in subject.capabilities.masks:
            continue
        mask = masks_of(kind, example.shape)[0]
        error = assert_refused(
            partial(example.attend, mask=mask),
            f"a {kind} mask, which is not declared",
            CapabilityError,
            (kind,),
        )
        named = getattr(error, "alternatives", ())
        known = alternatives("masks", kind)
        require(bool(named) or not known, f"{kind}: the error does not name one that can: {error}")


def _empty_rows(subject: Subject) -> Iterator[tuple[Example, Mask, Array]]:
    found = False
    for sizes in SIZES:
        example = subject.example(sizes)
        for mask in masks_with_empty_rows(subject.capabilities.masks, example.shape):
            empty = np.asarray(~example.visible_by_lead(mask).any(axis=-1))
            if empty.any():
                found = True
                yield example, mask, empty
    if not found:
        raise NotApplicable("no declared mask can hide all keys from a query")


def check_empty_rows(subject: Subject) -> None:
    """A query that sees nothing gets 0, and log-sum-exp −∞; the others are as ever."""
    for example, mask, empty in _empty_rows(subject):
        what = f"under {mask!r} for {example.sizes}"
        output = example.attend(mask=mask)
        require((output[empty] == 0).all(), f"rows that see nothing are not 0 {what}")
        assert_close(output, example.expected(mask=mask), example.tolerance, f"output {what}")
        statistics = subject.capabilities.statistics
        if not statistics:
            continue
        seen = example.observe(*statistics, mask=mask)
        if seen.log_sum_exp is not None:
            lowest = np.isneginf(seen.log_sum_exp) == empty
            require(lowest.all(), f"log-sum-exp is not −∞ exactly where nothing is seen {what}")
        for name in ("weights", "entropy"):
            found = getattr(seen, name)
            if found is not None:
                require((found[empty] == 0).all(), f"{name} of rows that see nothing {what}")


def check_empty_rows_have_no_gradient(subject: Subject) -> None:
    """A query that sees nothing passes no gradient on, and receives none."""
    for example, mask, empty in _empty_rows(subject):
        what = f"under {mask!r} for {example.sizes}"
        incoming = example.direction()
        only_empty = np.where(empty[..., None], incoming, 0).astype(incoming.dtype)
        found = example.gradients(only_empty, mask=mask)
        for name in ("query", "key", "value"):
            gradient = getattr(found, name)
            require(
                (gradient == 0).all(), f"rows that see nothing have a gradient by {name} {what}"
            )
        everything = example.gradients(incoming, mask=mask)
        require((everything.query[empty] == 0).all(), f"the gradient by an unseeing query {what}")
        for name in ("query", "key", "value"):
            require(np.isfinite(getattr(everything, name)).all(), f"gradient by {name} {what}")


def _poisoned(example: Example, hidden: Array, poison: float) -> Example:
    """Keys and values replaced where `hidden` (…, keys)."""
    chosen = np.broadcast_to(hidden, (*example.sizes.lead, example.sizes.keys))[..., None, :, None]
    return example.replace(
        key=np.where(chosen, poison, example.key), value=np.where(chosen, poison, example.value)
    )


def _hiding(subject: Subject) -> Iterator[tuple[Example, Mask, Array]]:
    for sizes in SIZES:
        example = subject.example(sizes)
        for mask in masks_that_hide_keys(subject.capabilities.masks, example.shape):
            # A mechanism may mix heads before it attends: hidden is what no head sees.
            hidden = np.asarray(~example.visible_by_lead(mask).any(axis=(-3, -2)))
            if hidden.any():
                yield example, mask, hidden


def check_hidden_keys_do_not_leak(subject: Subject) -> None:
    """NaN and infinity in keys and values that nobody sees do not reach the output."""
    tried = False
    for example, mask, hidden in _hiding(subject):
        tried = True
        expected = example.attend(mask=mask)
        for poison in POISON:
            output = _poisoned(example, hidden, poison).attend(mask=mask)
            what = f"output with {poison} behind {mask!r} for {example.sizes}"
            assert_close(output, expected, example.tolerance, what)
    if not tried:
        raise NotApplicable("no declared mask can hide a key from all queries")


def check_partly_hidden_keys_do_not_leak(subject: Subject) -> None:
    """NaN in a key and value reaches those queries only that see them."""
    tried = False
    for sizes in SIZES:
        example = subject.example(sizes)
        position = np.arange(example.sizes.keys) == example.sizes.keys - 2
        for kind in subject.capabilities.masks:
            mask = masks_of(kind, example.shape)[0]
            sees = example.visible_by_lead(mask)[..., position]
            affected = np.asarray(sees.any(axis=(-3, -1)))
            spared = np.broadcast_to(~affected[..., None, :], example.direction().shape[:-1])
            if not spared.any():
                continue
            tried = True
            expected = example.attend(mask=mask)[spared]
            for poison in POISON:
                # Seen, it may well be 0·∞ somewhere: that is not what is looked at here.
                with np.errstate(invalid="ignore"):
                    output = _poisoned(example, position, poison).attend(mask=mask)[spared]
                what = f"rows that do not see {poison} behind {mask!r} for {example.sizes}"
                assert_close(output, expected, example.tolerance, what)
    if not tried:
        raise NotApplicable("no declared mask hides a key from some queries")


def check_hidden_keys_do_not_leak_into_gradients(subject: Subject) -> None:
    """Neither do they reach gradients; their own are 0."""
    tried = False
    for example, mask, hidden in _hiding(subject):
        tried = True
        incoming = example.direction()
        expected = _poisoned(example, hidden, 0.0).gradients(incoming, mask=mask)
        for poison in POISON:
            what = f"with {poison} behind {mask!r} for {example.sizes}"
            found = _poisoned(example, hidden, poison).gradients(incoming, mask=mask)
            for name in ("query", "key", "value"):
                assert_close(
                    getattr(found, name),
                    getattr(expected, name),
                    example.tolerance,
                    f"gradient by {name} {what}",
                )
            for name, gradient in found.parameters.items():
                wanted = expected.parameters[name]
                assert_close(gradient, wanted, example.tolerance, f"gradient by {name} {what}")
            for name in ("key", "value"):
                own = np.broadcast_to(hidden[..., None, :], getattr(found, name).shape[:-1])
                require((getattr(found, name)[own] == 0).all(), f"gradient by hidden {name} {what}")
    if not tried:
        raise NotApplicable("no declared mask can hide a key from all queries")
