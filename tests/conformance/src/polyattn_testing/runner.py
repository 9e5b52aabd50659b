"""Runs checks and reports what became of them."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import polyattn_registry
from polyattn_core.errors import PolyattnError
from polyattn_core.spec import ConformanceCase, MechanismSpec

from .checks import Check, checks_for
from .comparison import NotApplicable
from .subject import Subject

Status = Literal["passed", "failed", "skipped", "expected failure"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What became of one check."""

    mechanism: str
    case: str
    check: str
    status: Status
    message: str = ""
    """Why it failed, was skipped, or was expected to fail."""
    details: str = ""
    """The traceback of a failure."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the mechanism does what it should, as far as this check goes."""
        return self.status != "failed"

    def __str__(self) -> str:
        text = f"{self.mechanism}[{self.case}] {self.check}: {self.status}"
        return f"{text}: {self.message}" if self.message else text


@dataclass(frozen=True, slots=True)
class Planned:
    """A check that applies to a mechanism in a case."""

    subject: Subject
    name: str
    check: Check

    @property
    def expected_failure(self) -> str | None:
        """Why it is expected to fail, where it is."""
        return self.subject.case.expected_failures.get(self.name)

    def __str__(self) -> str:
        return f"{self.subject.name}[{self.subject.case.name}]::{self.name}"

    def execute(self) -> None:
        """Run it. A warning of NumPy is a failure: users would see it, and could do nothing."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            self.check(self.subject)


def plan(
    name: str,
    registry: polyattn_registry.Registry = polyattn_registry.default,
    cases: Sequence[ConformanceCase] = (),
) -> Iterator[Planned]:
    """Every check that applies to a mechanism, in each of its cases.

    These are the given ones, or those of its plugin, or one without options.

    Raises
    ------
    PolyattnError
        Where there is no such mechanism, or its plugin is broken.
    """
    spec = registry.spec(name)
    assert isinstance(spec, MechanismSpec)
    default = ConformanceCase(mechanism=spec.full_name)
    for case in cases or registry.conformance_cases(spec.full_name) or [default]:
        subject = Subject(spec, case, registry)
        checks = dict(checks_for(subject))
        checks["check_expected_failures_exist"] = _expected_failures_exist(set(checks))
        yield from (Planned(subject, check_name, check) for check_name, check in checks.items())


def _expected_failures_exist(names: set[str]) -> Check:
    def check(subject: Subject) -> None:
        """An expected failure names a check that applies."""
        for name in subject.case.expected_failures:
            if name not in names:
                raise AssertionError(f"expected_failures: no check {name!r} applies here")

    return check


def run(planned: Planned) -> CheckResult:
    """Run one check. Strict: one that is expected to fail, and does not, has failed."""
    start = time.perf_counter()
    status: Status = "passed"
    message = details = ""
    try:
        planned.execute()
    except NotApplicable as reason:
        status, message = "skipped", str(reason)
    except Exception as error:
        status, details = "failed", traceback.format_exc()
        is_finding = type(error) is AssertionError
        message = str(error) if is_finding else f"{type(error).__name__}: {error}"
    expected = planned.expected_failure
    if expected is not None:
        if status == "failed":
            status, message = "expected failure", expected
        else:
            status, message = "failed", f"{status}, but expected to fail: {expected}"
    return CheckResult(
        planned.subject.name, planned.subject.case.name, planned.name, status, message, details,
        time.perf_counter() - start,
    )  # fmt: skip


def check_mechanism(
    name: str,
    *,
    checks: str = "*",
    cases: Sequence[ConformanceCase] = (),
    registry: polyattn_registry.Registry = polyattn_registry.default,
) -> list[CheckResult]:
    """Run the checks that apply to a mechanism.

    Parameters
    ----------
    name
        Of the mechanism, as `create` accepts it.
    checks
        Wildcards to match against names of checks.
    cases
        How to set it up, where its plugin does not say so.
    registry
        Where to find it.

    Returns
    -------
    A result for each check; nothing is raised. Where the mechanism cannot be found there is one
    failed result that says why.

    Examples
    --------
    >>> for result in check_mechanism("my-family/mine"):  # doctest: +SKIP
    ...     if not result.ok:
    ...         print(result)
    """
    try:
        planned = list(plan(name, registry, cases))
    except PolyattnError as error:
        details = traceback.format_exc()
        return [CheckResult(str(name), "", "check_is_found", "failed", str(error), details)]
    return [run(item) for item in planned if fnmatchcase(item.name, checks)]


def assert_conforms(
    name: str,
    *,
    checks: str = "*",
    cases: Sequence[ConformanceCase] = (),
    registry: polyattn_registry.Registry = polyattn_registry.default,
) -> None:
    """`check_mechanism`, and an `AssertionError` that lists all failures."""
    results = check_mechanism(name, checks=checks, cases=cases, registry=registry)
    failed = summary(results)
    if failed:
        raise AssertionError(failed)


def summary(results: Iterable[CheckResult]) -> str:
    """All failures, a line each; empty where there are none."""
    results = list(results)
    failed = [str(result) for result in results if not result.ok]
    if not failed:
        return ""
    return "\n  ".join((f"{len(failed)} of {len(results)} checks failed:", *failed))
