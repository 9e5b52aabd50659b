"""Learned arrays: initialised, set all or none, saved and loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polyattn_core.errors import FileFormatError, ParameterError
from polyattn_core.mechanism import Mechanism

from ..comparison import assert_refused, assert_same, require
from ..subject import Array, Subject
from . import Check


def checks(subject: Subject) -> Iterator[Check]:
    """Where parameters are declared."""
    if not subject.capabilities.parametric:
        return
    yield check_initialised_by_a_seed
    yield check_parameters_matter
    yield check_parameters_are_read_only
    yield check_parameters_are_set_all_or_none
    yield check_parameters_are_saved_and_loaded


def _values(mechanism: Mechanism) -> dict[str, Array]:
    return {name: np.array(array) for name, array in mechanism.parameters.items()}


def _assert_values(mechanism: Mechanism, expected: dict[str, Array], what: str) -> None:
    found = _values(mechanism)
    require(list(found) == list(expected), f"{what}: the names are {list(found)}")
    for name, array in expected.items():
        assert_same(found[name], array, f"{name} {what}")


def check_initialised_by_a_seed(subject: Subject) -> None:
    """Two instances start alike, and a seed gives the same values again."""
    mechanism, other = subject.create(), subject.create()
    require(len(mechanism.parameters) > 0, "parameters are declared, but there are none")
    for name, array in mechanism.parameters.items():
        require(array.dtype.kind == "f", f"{name} is of dtype {array.dtype}")
        require(np.isfinite(array).all(), f"{name} does not start finite")
    mechanism.initialise(5)
    expected = _values(mechanism)
    other.initialise(5)
    _assert_values(other, expected, "of another instance initialised with the same seed")
    mechanism.initialise(6)
    mechanism.initialise(np.random.default_rng(5))
    _assert_values(mechanism, expected, "initialised with a generator of the same seed")


def check_parameters_matter(subject: Subject) -> None:
    """The output depends on each of them."""
    example = subject.example()
    mechanism = example.mechanism
    before = example.attend()
    for name, array in _values(mechanism).items():
        rng = np.random.default_rng(3)
        mechanism.parameters.update({name: array + rng.standard_normal(array.shape)}, partial=True)
        require((example.attend() != before).any(), f"the output does not depend on {name}")
        mechanism.parameters.update({name: array}, partial=True)


def check_parameters_are_read_only(subject: Subject) -> None:
    """Reading gives arrays that cannot be written; those given are copied."""
    mechanism = subject.create()
    given = _values(mechanism)
    mechanism.parameters.update(given)
    expected = _values(mechanism)
    for name, array in mechanism.parameters.items():
        require(not array.flags.writeable, f"{name} can be written to where it is read")
        given[name][...] = 7
    _assert_values(mechanism, expected, "after the array it was set from has changed")


def check_parameters_are_set_all_or_none(subject: Subject) -> None:
    """Wrong names, shapes and values are errors that name the array; nothing is set then."""
    mechanism = subject.create()
    before = _values(mechanism)
    first, array = next(iter(before.items()))
    others = {name: value + 1 for name, value in before.items()}
    bad = np.array(array)
    bad.reshape(-1)[:1] = np.nan
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "a surplus array": ({**others, "no_such_array": array}, "no_such_array"),
        "a missing array": ({name: a for name, a in others.items() if name != first}, first),
        "an array of another shape": ({**others, first: np.zeros((*array.shape, 2))}, first),
        "an array of text": ({**others, first: np.full(array.shape, "x")}, first),
        "an array with NaN": ({**others, first: bad}, first),
    }
    for what, (arrays, name) in wrong.items():
        # The one that is wrong comes last, so that setting one by one would be noticed.
        ordered = {n: a for n, a in arrays.items() if n != name}
        ordered.update({n: a for n, a in arrays.items() if n == name})
        assert_refused(
            partial(mechanism.parameters.update, ordered),
            what,
            ParameterError,
            (name,),
        )
        _assert_values(mechanism, before, f"after an update with {what}")


def check_parameters_are_saved_and_loaded(subject: Subject) -> None:
    """Safetensors and back; a damaged file is an error."""
    example = subject.example()
    expected = _values(example.mechanism)
    output = example.attend()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parameters.safetensors"
        example.mechanism.parameters.save(path)
        other = subject.create(example.sizes)
        other.initialise(9)
        other.parameters.load(path)
        _assert_values(other, expected, "after saving and loading")
        assert_same(example.replace(mechanism=other).attend(), output, "output after loading")
        path.write_bytes(path.read_bytes()[:-1])
        what = "a truncated file of parameters"
        assert_refused(lambda: other.parameters.load(path), what, FileFormatError, (path.name,))
        _assert_values(other, expected, "after a file could not be read")
