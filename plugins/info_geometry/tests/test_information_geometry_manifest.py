"""The manifest says what is there, and the README runs."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest

import polyattn_info_geometry
from polyattn_core.spec import resolve
from polyattn_info_geometry.plugin import MECHANISMS, polyattn_presets

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("spec", MECHANISMS, ids=lambda spec: spec.name)
def test_spec(spec):
    factory = resolve(spec.factory)
    for paper in spec.papers:
        assert f"arXiv:{paper}" in factory.__doc__
    for heading in ("References", "Examples"):
        assert f"{heading}\n    ---" in factory.__doc__
    assert "O(" in factory.__doc__
    assert spec.sharpness in resolve(spec.config).model_fields


@pytest.mark.parametrize("preset", polyattn_presets(), ids=lambda preset: preset.name)
def test_preset(create, preset):
    assert preset.source
    mechanism = create(preset.mechanism, **preset.options)
    assert np.isfinite(mechanism(np.eye(6, mechanism.config.dim))).all()


def test_public_names():
    for name in polyattn_info_geometry.__all__:
        assert getattr(polyattn_info_geometry, name).__doc__
    with pytest.raises(AttributeError, match="FisherMetrik"):
        _ = polyattn_info_geometry.FisherMetrik


def test_readme():
    assert doctest.testfile(str(README), module_relative=False).failed == 0
