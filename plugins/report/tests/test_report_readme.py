"""The examples of the README and of the guide run, and the figures are of all data sets."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
GUIDE = ROOT.parents[1] / "docs" / "report.md"


@pytest.mark.parametrize("page", [ROOT / "README.md", GUIDE], ids=["readme", "guide"])
def test_examples(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    exec("\n".join(blocks), {})
    assert "gaussian" in capsys.readouterr().out


def test_figures_are_of_all_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    place = ROOT / "benchmarks" / "shapes.py"
    specification = importlib.util.spec_from_file_location("shapes", place)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "shapes", module)
    specification.loader.exec_module(module)
    text = (ROOT / "README.md").read_text("utf-8")
    shown = re.findall(r"^\| ([\w-]+) \| (tuning|test|fresh) \|", text, re.MULTILINE)
    assert shown == [(shape.name, shape.part.value) for shape in module.SHAPES]
    for shape in module.SHAPES:
        vectors, target = shape.load()
        assert len(vectors) == len(target) <= 400
        assert np.isfinite(vectors).all()
