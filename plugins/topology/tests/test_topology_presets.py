"""Presets are what their sources say."""

from __future__ import annotations

import numpy as np
import pytest

import polyattn_registry
from polyattn_topology.config import AttentionMode
from polyattn_topology.plugin import polyattn_presets

PRESETS = {preset.name: preset for preset in polyattn_presets()}


@pytest.mark.parametrize("name", PRESETS)
def test_preset(create, rng, name):
    preset = PRESETS[name]
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
