"""Instances as values: copied, pickled for another process, shown."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import numpy as np

from ..comparison import assert_same, require
from ..sizes import leading
from ..subject import Subject
from . import Check


def checks(subject: Subject) -> Iterator[Check]:
    """All of these, for every mechanism."""
    yield check_pickling
    yield check_copying
    yield check_repr


def check_pickling(subject: Subject) -> None:
    """It goes to another process and back, before its first call and after."""
    example = subject.example(leading(2, queries=6, keys=7))
    for when in ("before", "after"):
        sent = example.mechanism if when == "after" else subject.create(example.sizes)
        received = pickle.loads(pickle.dumps(sent))
        require(received.name == sent.name, f"pickling changes the name to {received.name}")
        require(received.config == sent.config, "pickling changes the configuration")
        expected = example.attend()
        output = example.replace(mechanism=received).attend()
        assert_same(output, expected, f"output of an instance pickled {when} its first call")


def check_copying(subject: Subject) -> None:
    """A deep copy computes the same, and shares no learned arrays."""
    example = subject.example(leading(2, queries=6, keys=7))
    expected = example.attend()
    other = copy.deepcopy(example.mechanism)
    copied = example.replace(mechanism=other)
    assert_same(copied.attend(), expected, "output of a deep copy")
    if other.parameters:
        other.parameters.update(
            {name: np.asarray(array) + 1 for name, array in other.parameters.items()}
        )
        assert_same(example.attend(), expected, "output after parameters of a copy were set")


def check_repr(subject: Subject) -> None:
    """It says what it is and how it differs from the default."""
    mechanism = subject.create()
    text = repr(mechanism)
    require(subject.name in text, f"repr does not name the mechanism: {text}")
    require(f"dim={mechanism.config.dim}" in text, f"repr does not tell dim: {text}")
