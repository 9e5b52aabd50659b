"""Conformance checks for attention mechanisms, of anybody's plugin.

>>> from polyattn_testing import assert_conforms, check_mechanism
>>> results = check_mechanism("my-family/mine")  # doctest: +SKIP
>>> assert_conforms("my-family/mine")  # doctest: +SKIP

``pytest --polyattn-conformance my-family`` runs the same checks, one test each; in a test module of
your own, :func:`conformance_tests` does so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collection import conformance_tests
    from .runner import CheckResult, assert_conforms, check_mechanism

__version__ = "0.1.0"

__all__ = ["CheckResult", "assert_conforms", "check_mechanism", "conformance_tests"]


def __getattr__(name: str) -> Any:
    # pytest imports this package in every run; NumPy and the registry are for those that check.
    if name in __all__:
        from . import collection, runner

        return getattr(collection if name == "conformance_tests" else runner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
