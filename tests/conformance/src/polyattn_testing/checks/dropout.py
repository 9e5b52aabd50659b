"""Dropout on the weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from polyattn_core.errors import ArgumentError, PolyattnError

from ..comparison import assert_close, assert_refused, assert_same, require
from ..sizes import leading
from ..subject import STEP, Array, Example, Subject
from . import Check
from .gradients import slope

RATE = 0.3
DRAWS = 400


def checks(subject: Subject) -> Iterator[Check]:
    """Where dropout is declared; otherwise that the option is an error."""
    if not subject.capabilities.dropout:
        yield check_dropout_is_refused
        return
    yield check_dropout_acts_in_training_only
    yield check_dropout_follows_the_seed
    yield check_dropout_is_unbiased
    yield check_dropout_needs_a_seed
    if subject.capabilities.gradient:
        yield check_gradients_with_dropout


def check_dropout_is_refused(subject: Subject) -> None:
    """`dropout=` is an error."""
    what = "dropout=0.3, which is not declared"
    assert_refused(lambda: subject.create(dropout=RATE), what, PolyattnError, ("dropout",))


def _example(subject: Subject, **others: int) -> Example:
    return subject.example(leading(2, **{"queries": 6, "keys": 40, **others}), dropout=RATE)


def check_dropout_acts_in_training_only(subject: Subject) -> None:
    """Without `training=True`, and with `dropout=0`, nothing is dropped."""
    example = _example(subject)
    plain = example.replace(mechanism=subject.create(example.sizes, dropout=0.0))
    expected = plain.attend()
    assert_same(example.attend(), expected, "output outside of training, with dropout=0.3")
    assert_same(example.attend(rng=1), expected, "output outside of training, with a seed")
    assert_same(plain.attend(training=True), expected, "output in training, with dropout=0")
    dropped = example.attend(training=True, rng=1)
    require((dropped != expected).any(), "dropout=0.3 in training changes nothing")


def check_dropout_follows_the_seed(subject: Subject) -> None:
    """A seed decides what is dropped, in whatever tiles and threads; a generator moves on."""
    example = _example(subject, queries=70, keys=130)
    first = example.attend(training=True, rng=5)
    assert_same(example.attend(training=True, rng=5), first, "output with the same seed")
    require((example.attend(training=True, rng=6) != first).any(), "another seed drops the same")
    one, two = (np.random.default_rng(3) for _ in range(2))
    drawn = example.attend(training=True, rng=one)
    assert_same(example.attend(training=True, rng=two), drawn, "output with an equal generator")
    again = example.attend(training=True, rng=one)
    require((again != drawn).any(), "a generator drops the same twice")


def check_dropout_is_unbiased(subject: Subject) -> None:
    """Over many seeds, the mean output is that without dropout."""
    example = _example(subject)
    outputs = np.stack(
        [example.attend(training=True, rng=seed).astype(np.float64) for seed in range(DRAWS)]
    )
    spread = outputs.std(axis=0) / np.sqrt(DRAWS)
    error = np.abs(outputs.mean(axis=0) - example.attend())
    # Among hundreds of numbers a few stray beyond three times the spread, none beyond six.
    far = error > 6 * spread + 1e-6
    require(
        not far.any(),
        f"the mean output over {DRAWS} seeds is off by up to {float(error.max()):.3g}, "
        f"more than six times its spread",
    )
    share = float((error > 2 * spread + 1e-6).mean())
    require(share < 0.15, f"the mean output strays from that without dropout in {share:.0%}")


def check_dropout_needs_a_seed(subject: Subject) -> None:
    """In training, a call without a usable seed is an error."""
    example = _example(subject)
    for rng in (None, -1, 1.5, "seed", True, 1 << 40):
        what = f"dropout in training with rng={rng!r}"
        assert_refused(
            partial(example.attend, training=True, rng=rng),
            what,
            ArgumentError,
            ("rng",),
        )


def check_gradients_with_dropout(subject: Subject) -> None:
    """The pullback belongs to the very weights that the output was computed with."""
    example = _example(subject)
    options = {"training": True, "rng": 5}
    output, pullback = example.vjp(**options)
    what = "output of the differentiated call in training"
    assert_close(output, example.attend(**options), example.tolerance, what)
    incoming = example.direction()
    found = pullback(incoming)
    for name in ("query", "key", "value"):

        def varied(array: Array, name: str = name) -> Array:
            return example.replace(**{name: array}).attend(**options)

        at, gradient = example.inputs[name], getattr(found, name)
        along = np.random.default_rng(4).standard_normal(at.shape)
        expected = slope(varied, at, along, incoming, STEP[subject.precise])
        along_gradient = float((gradient * along).sum())
        what = f"gradient by {name} in training, along a random direction"
        assert_close(along_gradient, expected, subject.gradient_tolerance, what)
