"""The pytest front end, in a run of its own."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def run(
    pytester: pytest.Pytester,
    installed: Path,
    mechanisms_on_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> object:
    path = [str(installed), str(mechanisms_on_path), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    # Other plugins cost a second each time.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return partial(pytester.runpytest_subprocess, "-p", "polyattn_testing.pytest_plugin")


def test_ids_are_readable(run) -> None:
    result = run("--polyattn-conformance", "acme/plain", "--collect-only", "-q")
    result.stdout.fnmatch_lines(
        [
            "conformance::acme/plain[[]default]::check_manifest_is_light",
            "conformance::acme/plain[[]default]::check_agrees_with_reference_in_bfloat16",
            "conformance::acme/plain[[]sharp]::check_bias",
        ]
    )


def test_a_family_is_all_its_mechanisms(run) -> None:
    result = run("--polyattn-conformance", "acme", "-k", "check_repr", "-v")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*[[]XPASS(strict)] an expectation that is wrong*"])


def test_findings_are_shown_without_traceback(run) -> None:
    result = run("--polyattn-conformance", "acme/off", "-k", "check_bias and not fit")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["acme/off: output with a bias of shape * (tolerance 1e-09)", "Required: A bias is added*"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_expected_failures_are_reported_as_such(run) -> None:
    result = run("--polyattn-conformance", "known", "-k", "check_bias and not fit", "-rx")
    result.assert_outcomes(xfailed=1)
    result.stdout.fnmatch_lines(["XFAIL *known*check_bias* - it is slightly off"])


def test_checks_join_other_tests(pytester: pytest.Pytester, run) -> None:
    pytester.makepyfile("def test_own(): pass")
    run("-q").assert_outcomes(passed=1)
    arguments = ("--polyattn-conformance", "acme/plain,acme/off")
    run(*arguments, "-k", "test_own or check_repr").assert_outcomes(passed=4)


def test_an_unknown_name_ends_the_run(run) -> None:
    result = run("--polyattn-conformance", "acme/plian")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--polyattn-conformance: *'acme/plian'*did you mean*"])


def test_decorator(pytester: pytest.Pytester, run) -> None:
    pytester.makepyfile(
        """
        from polyattn_testing import conformance_tests

        @conformance_tests("acme/plain", "acme/known")
        def test_conformance(check):
            check()
        """
    )
    arguments = ("-k", "check_repr or check_spec or (check_bias and not fit)")
    result = run(*arguments, "-v")
    # The spec of both has no papers, which is permitted; the others see test_a_family….
    result.assert_outcomes(passed=7, xfailed=1, failed=1)
    result.stdout.fnmatch_lines(["*::test_conformance[[]acme/plain[[]sharp]::check_bias] PASSED*"])
