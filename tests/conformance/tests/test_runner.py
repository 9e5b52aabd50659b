"""The plain functions: results, cases, expected failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyattn_core.spec import ConformanceCase
from polyattn_registry import Registry
from polyattn_testing import CheckResult, assert_conforms, check_mechanism


@pytest.fixture
def filled(registry: Registry) -> Registry:
    from acme_plain import spec

    registry.register(spec("plain", "acme_plain:Plain"))
    registry.register(spec("off", "acme_wrong:SlightlyOff"))
    return registry


def only(results: list[CheckResult]) -> CheckResult:
    (result,) = results
    return result


def test_a_result_tells_what_was_checked_and_found(filled: Registry) -> None:
    result = only(check_mechanism("off", checks="check_bias", registry=filled))
    assert (result.mechanism, result.case, result.check) == ("acme/off", "default", "check_bias")
    assert (result.status, result.ok) == ("failed", False)
    assert "tolerance 1e-09" in result.message
    assert "AssertionError" in result.details
    assert result.seconds > 0
    assert str(result).startswith("acme/off[default] check_bias: failed: output with a bias")


def test_an_error_inside_a_mechanism_is_a_failure(registry: Registry) -> None:
    from acme_plain import spec

    registry.register(spec("missing", "acme_wrong:NoSuchClass"))
    results = check_mechanism("acme/missing", registry=registry)
    assert {result.status for result in results if result.check == "check_bias"} == {"failed"}
    assert "NoSuchClass" in only([r for r in results if r.check == "check_bias"]).message


def test_an_unknown_name_is_one_failed_result(filled: Registry) -> None:
    result = only(check_mechanism("acme/plane", registry=filled))
    assert not result.ok
    assert "acme/plain" in result.message


def test_assert_conforms_lists_failures(filled: Registry) -> None:
    assert_conforms("plain", checks="check_repr", registry=filled)
    with pytest.raises(AssertionError, match=r"(?s)^2 of 4 checks failed:.*_axes: .*_bias: "):
        assert_conforms("off", checks="check_[bl]*[as]", registry=filled)


def test_what_does_not_apply_is_skipped_with_a_reason(filled: Registry) -> None:
    result = only(check_mechanism("plain", checks="check_manifest_is_light", registry=filled))
    assert (result.status, result.ok) == ("skipped", True)
    assert "running program" in result.message


def expecting(check: str) -> list[ConformanceCase]:
    return [ConformanceCase(mechanism="acme/off", expected_failures={check: "off by 0.001"})]


def test_an_expected_failure_carries_its_reason(filled: Registry) -> None:
    cases = expecting("check_bias")
    result = only(check_mechanism("off", checks="check_bias", cases=cases, registry=filled))
    assert (result.status, result.ok) == ("expected failure", True)
    assert result.message == "off by 0.001"


@pytest.mark.parametrize("check", ["check_repr", "check_manifest_is_light"])
def test_an_expected_failure_that_does_not_fail_has_failed(filled: Registry, check: str) -> None:
    cases = expecting(check)
    result = only(check_mechanism("off", checks=check, cases=cases, registry=filled))
    assert result.status == "failed"
    assert "but expected to fail: off by 0.001" in result.message


def test_an_expected_failure_of_no_check_has_failed(filled: Registry) -> None:
    cases = expecting("check_bais")
    name = "check_expected_failures_exist"
    result = only(check_mechanism("off", checks=name, cases=cases, registry=filled))
    assert result.status == "failed"
    assert "'check_bais'" in result.message


def test_the_tolerance_of_a_case_is_honoured(filled: Registry) -> None:
    def status(tolerance: float) -> str:
        cases = [ConformanceCase(mechanism="acme/off", tolerance=tolerance)]
        return only(
            check_mechanism("off", checks="check_bias", cases=cases, registry=filled)
        ).status

    assert status(1e-4) == "failed"
    assert status(1e-2) == "passed"


@pytest.mark.parametrize(
    "options", [{"heads": 1}, {"dim": 6}, {"dim": 12, "heads": 3}, {"heads": 4, "kv_heads": 2}]
)
def test_options_of_a_case_are_honoured(filled: Registry, options: dict[str, int]) -> None:
    cases = [ConformanceCase(mechanism="acme/plain", options=options)]
    failed = [
        str(result)
        for result in check_mechanism("plain", checks="check_[egms]*", cases=cases, registry=filled)
        if not result.ok
    ]
    assert failed == []


@pytest.mark.parametrize(("family", "status"), [("acme", "passed"), ("heavy", "failed")])
def test_a_manifest_that_imports_numpy_is_noticed(
    installed: Path, monkeypatch: pytest.MonkeyPatch, family: str, status: str
) -> None:
    monkeypatch.syspath_prepend(installed)
    name = f"{family}/plain"
    results = check_mechanism(name, checks="check_manifest_is_light", registry=Registry())
    assert {result.status for result in results} == {status}
    if status == "failed":
        assert "heavy_plugin imports numpy" in results[0].message


def test_cases_of_the_plugin_are_used(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    results = check_mechanism("acme/plain", checks="check_repr", registry=Registry())
    assert [(result.case, result.status) for result in results] == [
        ("default", "passed"),
        ("sharp", "passed"),
    ]
