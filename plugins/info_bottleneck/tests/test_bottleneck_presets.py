"""Presets are what their sources say."""

from __future__ import annotations

import numpy as np
import pytest

from polyattn_info_bottleneck.plugin import polyattn_presets

PRESETS = {preset.name: preset for preset in polyattn_presets()}


@pytest.mark.parametrize(
    ("name", "size", "price"), [("vib-64", 64, (0.0, 0.05, 0.1)), ("vib-deep", 256, (0.001,) * 3)]
)
def test_preset(create, rng, name, size, price):
    preset = PRESETS[name]
    vib = create(preset.mechanism, **preset.options)
    x = rng.standard_normal((40, vib.config.dim)).astype(np.float32)
    assert np.isfinite(vib(x)).all()
    key = x[None, None]
    assert vib.draw_noise(key, rng).shape == (1, 1, 40, size)
    nats, grown = vib.kl_vjp(key, 10**6)[0], [vib.kl_vjp(key, step)[0] for step in (0, 500, 1000)]
    np.testing.assert_allclose(grown, nats / price[2] * np.array(price), rtol=1e-6)
