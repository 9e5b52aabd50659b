"""The manifest says what is there, and the README runs."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

import polyattn_registry
import polyattn_topology
from polyattn_core.spec import resolve
from polyattn_topology.config import AttentionMode
from polyattn_topology.plugin import MECHANISMS, polyattn_presets

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
    if spec.sharpness:
        assert spec.sharpness in resolve(spec.config).model_fields


@pytest.mark.parametrize("name", PRESETS)
def test_preset(create, rng, name):
    preset = PRESETS[name]
    assert preset.source
    assert preset.summary
    gate = create(preset.mechanism, **preset.options)
    width, heads = gate.config.dim, gate.config.heads
    together = 2 + 0.1 * rng.standard_normal((200, width)).astype(np.float32)
    plain = polyattn_registry.create("flash", dim=width, heads=heads, causal=gate.config.causal)
    np.testing.assert_array_equal(gate(together), plain(together))
    assert gate.current_mode == "stable"
    apart = np.concatenate((together[:100], -together[100:]))
    assert np.isfinite(gate(together, apart)).all()
    assert gate.current_mode in ("cautious", "freeze")


def test_thresholds_of_presets(create):
    policy = create("topology-gated", **PRESETS["gated-512"].options).config.policy
    assert policy.model_dump() == {
        "stable_threshold": 0.8, "cautious_threshold": 0.5, "freeze_threshold": 0.3,
        "hysteresis": 0.05,
    }  # fmt: skip
    stream = create("topology-gated", **PRESETS["gated-stream"].options)
    assert stream.config.policy == policy
    cautious = stream.mechanism(AttentionMode.CAUTIOUS).config
    assert (cautious.sinks, cautious.window, cautious.causal) == (4, 1020, True)


def test_readme_lists_every_mechanism_and_preset():
    rows = re.findall(r"^\| `([a-z0-9-]+)`", README.read_text("utf-8"), re.MULTILINE)
    assert {*(spec.name for spec in MECHANISMS), *PRESETS} <= set(rows)


def test_public_names():
    for name in polyattn_topology.__all__:
        assert getattr(polyattn_topology, name).__doc__
    with pytest.raises(AttributeError, match="WindowCoherense"):
        _ = polyattn_topology.WindowCoherense


def test_readme():
    assert doctest.testfile(str(README), module_relative=False).failed == 0
