"""Presets are what their sources say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn_moe.plugin import polyattn_presets

PRESETS = {preset.name: preset for preset in polyattn_presets()}


@pytest.mark.parametrize("name", PRESETS)
def test_preset(create: Any, name: str) -> None:
    preset = PRESETS[name]
    mechanism = create(preset.mechanism, **preset.options)
    x = np.random.default_rng(0).standard_normal((40, mechanism.config.dim), np.float32)
    assert np.isfinite(mechanism(x)).all()
    routing = mechanism.last_routing
    assert routing.capacity == 7  # ⌈1.25 · 40 / 8⌉
    assert routing.load.max() <= 7
    assert (routing.assigned.sum(axis=-1) + routing.dropped == 1).all()
