"""The manifest says what is there, and the README runs."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import polyattn_topology
from polyattn_core.spec import resolve
from polyattn_topology.plugin import MECHANISMS

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("spec", MECHANISMS, ids=lambda spec: spec.name)
def test_spec(spec):
    factory = resolve(spec.factory)
    for paper in spec.papers:
        assert f"arXiv:{paper}" in factory.__doc__
    for heading in ("References", "Examples"):
        assert f"{heading}\n    ---" in factory.__doc__
    assert "O(" in factory.__doc__
    if spec.sharpness:
        assert spec.sharpness in resolve(spec.config).model_fields


def test_public_names():
    for name in polyattn_topology.__all__:
        assert getattr(polyattn_topology, name).__doc__
    with pytest.raises(AttributeError, match="WindowCoherense"):
        _ = polyattn_topology.WindowCoherense


def test_readme():
    assert doctest.testfile(str(README), module_relative=False).failed == 0
