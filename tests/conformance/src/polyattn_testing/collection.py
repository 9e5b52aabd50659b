"""Which mechanisms are meant by names of families and mechanisms, and tests of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import pytest

import polyattn_registry
from polyattn_core.errors import ArgumentError
from polyattn_registry.names import fold

from .comparison import NotApplicable
from .runner import Planned, plan


def mechanisms(names: Iterable[str]) -> list[str]:
    """Full names of the mechanisms of these families, and of these names; each once.

    Raises
    ------
    PolyattnError
        Where a name means neither, or a family has no mechanism.
    """
    return list(dict.fromkeys(full for name in names for full in _meant(name)))


def _meant(name: str) -> Iterator[str]:
    families = {status.family for status in polyattn_registry.plugins()}
    every = [polyattn_registry.spec(each) for each in polyattn_registry.available()]
    of_family = [spec.full_name for spec in every if spec.family == fold(name)]
    if of_family:
        yield from of_family
    elif fold(name) in families:
        # Raises where the plugin failed to load, saying why.
        polyattn_registry.available(family=name)
        raise ArgumentError("name", name, "a family with mechanisms, or a mechanism")
    else:
        yield polyattn_registry.spec(name).full_name


def planned_checks(names: Iterable[str]) -> Iterator[Planned]:
    """The checks of these families and mechanisms."""
    for full_name in mechanisms(names):
        yield from plan(full_name)


def run_as_test(planned: Planned) -> None:
    """Run a check as (part of) a test of pytest, which it may skip."""
    try:
        planned.execute()
    except NotApplicable as reason:
        pytest.skip(str(reason))


def expected_failure(planned: Planned) -> list[pytest.MarkDecorator]:
    """What pytest has to know of a check that is expected to fail; strict."""
    reason = planned.expected_failure
    return [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True)]


def conformance_tests(*names: str) -> pytest.MarkDecorator:
    """Decorator: run a test function with each check of these families and mechanisms.

    >>> @conformance_tests("my-family")  # doctest: +SKIP
    ... def test_conformance(check):
    ...     check()
    """
    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                partial(run_as_test, planned), id=str(planned), marks=expected_failure(planned)
            )
            for planned in planned_checks(names)
        ],
    )
