"""The manifest says what is there, and the README's examples run."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyattn_registry
from polyattn_core.spec import resolve
from polyattn_diffusion.plugin import MECHANISMS, polyattn_presets

Create = Callable[..., Any]

README = Path(__file__).parents[1] / "README.md"
PRESETS = {preset.name: preset for preset in polyattn_presets()}


@pytest.mark.parametrize("spec", MECHANISMS, ids=lambda spec: spec.name)
def test_spec(spec: Any) -> None:
    factory = resolve(spec.factory)
    assert spec.papers
    for paper in spec.papers:
        assert f"arXiv:{paper}" in factory.__doc__
    for heading in ("References", "Examples"):
        assert f"{heading}\n    ---" in factory.__doc__
    assert "O(" in factory.__doc__
    if spec.sharpness:
        assert spec.sharpness in resolve(spec.config).model_fields


@pytest.mark.parametrize("name", PRESETS)
def test_preset(create: Create, name: str) -> None:
    preset = PRESETS[name]
    assert preset.source
    assert preset.summary
    mechanism = create(preset.mechanism, **preset.options)
    x = np.random.default_rng(0).standard_normal((40, mechanism.config.dim), np.float32)
    sides = [side.name for side in mechanism.capabilities.side_inputs if side.required]
    ring = np.stack([np.arange(40), np.roll(np.arange(40), 1)])
    assert np.isfinite(mechanism(x, **dict.fromkeys(sides, ring))).all()


def test_readme_lists_every_mechanism_and_preset() -> None:
    text = README.read_text("utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)`", text, re.MULTILINE)
    assert {*(spec.name for spec in MECHANISMS), *PRESETS} <= set(rows)
    for spec in MECHANISMS:
        for paper in spec.papers:
            assert paper in text


def test_examples_of_the_readme() -> None:
    if not polyattn_registry.available(family="diffusion"):
        pytest.skip("polyattn-diffusion is on the path, but not installed, so not found by name")
    # Everything else becomes empty lines, so that a failure names the line.
    parts = re.split(r"^```(?:pycon)?$", README.read_text("utf-8"), flags=re.MULTILINE)
    source = "".join(part if ">>> " in part else "\n" * part.count("\n") for part in parts)
    examples = doctest.DocTestParser().get_doctest(source, {}, README.name, str(README), 0)
    assert examples.examples
    report: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(optionflags=flags).run(examples, out=report.append)
    assert not report, "".join(report)
