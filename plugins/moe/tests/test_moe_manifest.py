"""The manifest says what is there; examples of the README run."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyattn_registry
from polyattn_core.spec import resolve
from polyattn_moe.plugin import FAMILY, MECHANISMS, polyattn_presets

PRESETS = {preset.name: preset for preset in polyattn_presets()}
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


@pytest.mark.parametrize("name", PRESETS)
def test_preset(create: Any, name: str) -> None:
    preset = PRESETS[name]
    assert preset.source
    assert preset.summary
    mechanism = create(preset.mechanism, **preset.options)
    x = np.random.default_rng(0).standard_normal((40, mechanism.config.dim), np.float32)
    assert np.isfinite(mechanism(x)).all()
    routing = mechanism.last_routing
    assert routing.capacity == 7  # ⌈1.25 · 40 / 8⌉
    assert routing.load.max() <= 7
    assert (routing.assigned.sum(axis=-1) + routing.dropped == 1).all()


def test_readme_lists_every_mechanism_and_preset() -> None:
    text = README.read_text("utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)`", text, re.MULTILINE)
    # Figures have rows of their own.
    assert set(rows) == {*(spec.name for spec in MECHANISMS), *PRESETS}
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
