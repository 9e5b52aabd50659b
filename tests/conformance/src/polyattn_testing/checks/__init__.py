"""The checks, chosen by what a mechanism declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..subject import Subject

Check = Callable[[Subject], None]
"""Raises an `AssertionError` where the mechanism does not do what it should."""


def checks_for(subject: Subject) -> Iterator[tuple[str, Check]]:
    """Names and checks for a mechanism, cheap ones first."""
    from . import (
        caches,
        declaration,
        documentation,
        dropout,
        errors,
        gradients,
        invariance,
        masking,
        numbers,
        parameters,
        partial,
        state,
        statistics,
    )

    modules = (
        declaration, documentation, errors, numbers, masking, invariance, statistics, gradients,
        partial, caches, dropout, parameters, state,
    )  # fmt: skip
    for module in modules:
        for check in module.checks(subject):
            yield check.__name__, check
