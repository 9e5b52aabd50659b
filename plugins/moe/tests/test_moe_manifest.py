"""The manifest says what is there; examples of the README run."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import polyattn_registry
from polyattn_core.spec import resolve
from polyattn_moe.plugin import FAMILY, MECHANISMS

README = Path(__file__).parents[1] / "README.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("spec", MECHANISMS, ids=lambda spec: spec.name)
def test_spec(spec: Any) -> None:
    text = resolve(spec.factory).__doc__
    assert spec.papers
    for paper in spec.papers:
        assert f"arXiv:{paper}" in text
    for heading in ("References", "Examples"):
        assert f"{heading}\n    ---" in text
    assert "O(" in text
    assert set(spec.leading) <= set(resolve(spec.config).model_fields)


def test_readme_lists_every_mechanism() -> None:
    text = README.read_text("utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)`", text, re.MULTILINE)
    assert set(rows) == {spec.name for spec in MECHANISMS}  # figures have rows of their own
    for spec in MECHANISMS:
        for paper in spec.papers:
            assert paper in text


@pytest.mark.parametrize(
    "place", ["README", *sorted({s.factory.partition(":")[0] for s in MECHANISMS})]
)
def test_examples(place: str) -> None:
    if not polyattn_registry.available(family=FAMILY):
        pytest.skip("the family is on the path, but not installed, so not found by name")
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    if place == "README":
        parts = re.split(r"^```(?:pycon)?$", README.read_text("utf-8"), flags=re.MULTILINE)
        source = "".join(part if ">>> " in part else "\n" * part.count("\n") for part in parts)
        found = [doctest.DocTestParser().get_doctest(source, {}, README.name, str(README), 0)]
    else:
        found = doctest.DocTestFinder().find(importlib.import_module(place))
    assert any(test.examples for test in found)
    for test in found:
        runner.run(test, out=report.append)
    assert not report, "".join(report)
