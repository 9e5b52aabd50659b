"""Checks of what a plugin says and shows fail where it is wrong, and pass where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyattn_registry import Registry
from polyattn_testing import check_mechanism

COMPLAINTS = {
    "check_manifest_names_what_exists": "the metric heavy/nothing: acme_plain:nothing",
    "check_readme_names_it": "the readme of heavy-attention does not name `plain`",
    "check_examples_of_the_readme": "Expected:",
    "check_presets": "the preset heavy/from-nowhere does not say where its numbers come from",
}


@pytest.mark.parametrize("check", COMPLAINTS)
def test_wrong_plugin_is_caught(
    installed: Path, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    monkeypatch.syspath_prepend(installed)
    (result,) = check_mechanism("heavy/plain", checks=check, registry=Registry())
    assert result.status == "failed"
    assert COMPLAINTS[check] in result.message
    results = check_mechanism("acme/plain", checks=check, registry=Registry())
    assert {result.status for result in results} == {"passed"}


def test_the_readme_of_an_editable_plugin_is_read_where_it_is_written(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    project = tmp_path / "acme"
    project.mkdir()
    (project / "pyproject.toml").write_text('[project]\nreadme = "about.md"\n', "utf-8")
    (project / "about.md").write_text("`plain`", "utf-8")
    origin = {"url": project.as_uri(), "dir_info": {"editable": True}}
    (metadata,) = installed.glob("acme*")
    (metadata / "direct_url.json").write_text(json.dumps(origin), "utf-8")

    def status(name: str) -> set[str]:
        results = check_mechanism(name, checks="check_readme_names_it", registry=Registry())
        return {result.status for result in results}

    assert status("acme/plain") == {"passed"}
    assert status("acme/off") == {"failed"}


def test_a_plugin_has_a_readme(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    (metadata,) = installed.glob("acme*/METADATA")
    metadata.write_text("Metadata-Version: 2.1\nName: acme-attention\nVersion: 1.0\n", "utf-8")
    result, *_ = check_mechanism("acme/off", checks="check_readme*", registry=Registry())
    assert result.status == "failed"
    assert "acme-attention has no readme" in result.message
