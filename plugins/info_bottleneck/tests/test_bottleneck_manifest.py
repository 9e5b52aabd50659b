"""The manifest says what is there, and the README runs."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

import polyattn_info_bottleneck
from polyattn_core.spec import resolve
from polyattn_info_bottleneck.plugin import MECHANISMS, polyattn_presets

README = Path(__file__).parents[1] / "README.md"
PRESETS = {preset.name: preset for preset in polyattn_presets()}


@pytest.mark.parametrize("spec", MECHANISMS, ids=lambda spec: spec.name)
def test_spec(spec):
    factory = resolve(spec.factory)
    for paper in spec.papers:
        assert f"arXiv:{paper}" in factory.__doc__
    for heading in ("References", "Examples"):
        assert f"{heading}\n    ---" in factory.__doc__
    assert "O(" in factory.__doc__
    assert spec.sharpness in resolve(spec.config).model_fields


@pytest.mark.parametrize(
    ("name", "size", "price"), [("vib-64", 64, (0.0, 0.05, 0.1)), ("vib-deep", 256, (0.001,) * 3)]
)
def test_preset(create, rng, name, size, price):
    preset = PRESETS[name]
    assert preset.source
    assert preset.summary
    vib = create(preset.mechanism, **preset.options)
    x = rng.standard_normal((40, vib.config.dim)).astype(np.float32)
    assert np.isfinite(vib(x)).all()
    key = x[None, None]
    assert vib.draw_noise(key, rng).shape == (1, 1, 40, size)
    nats, grown = vib.kl_vjp(key, 10**6)[0], [vib.kl_vjp(key, step)[0] for step in (0, 500, 1000)]
    np.testing.assert_allclose(grown, nats / price[2] * np.array(price), rtol=1e-6)


def test_readme_lists_every_mechanism_and_preset():
    rows = re.findall(r"^\| `([a-z0-9-]+)`", README.read_text("utf-8"), re.MULTILINE)
    assert {*(spec.name for spec in MECHANISMS), *PRESETS} <= set(rows)


def test_public_names():
    for name in polyattn_info_bottleneck.__all__:
        assert getattr(polyattn_info_bottleneck, name).__doc__
    with pytest.raises(AttributeError, match="DiagonalGausian"):
        _ = polyattn_info_bottleneck.DiagonalGausian


def test_readme():
    assert doctest.testfile(str(README), module_relative=False).failed == 0
