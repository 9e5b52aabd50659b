"""Presets are what their sources say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn_standard.plugin import polyattn_presets

Create = Callable[..., Any]

PRESETS = {preset.name: preset for preset in polyattn_presets()}
SIZES = {  # layers are dim, heads, key heads, head size
    "bert-base": (768, 12, 12, 64),
    "gpt2": (768, 12, 12, 64),
    "vit-base": (768, 12, 12, 64),
    "t5-base": (768, 12, 12, 64),
    "t5-base-decoder": (768, 12, 12, 64),
    "switch-base": (768, 12, 12, 64),
    "llama-2-7b": (4096, 32, 32, 128),
    "llama-3-8b": (4096, 32, 8, 128),
    "llama-3-1-8b": (4096, 32, 8, 128),
    "mistral": (4096, 32, 8, 128),
    "mistral-v2": (4096, 32, 8, 128),
    "gemma-2b": (2048, 8, 1, 256),
    "gemma-7b": (3072, 16, 16, 256),
    "gemma-2-9b": (3584, 16, 8, 256),
    "gemma-2-9b-local": (3584, 16, 8, 256),
    "gemma-3-4b": (2560, 8, 4, 256),
    "gemma-3-4b-local": (2560, 8, 4, 256),
    "qwen2-7b": (3584, 28, 4, 128),
    "qwen2-5-7b-1m": (3584, 28, 4, 128),
    "qwen3-8b": (4096, 32, 8, 128),
}


LATENT = {  # dim, heads, of the paper d_c, d'_c, d_h and d_h^R, and what the scale is multiplied by
    "deepseek-v2": (5120, 128, 512, 1536, 128, 64, 0.0707),
    "deepseek-v2-lite": (2048, 16, 512, None, 128, 64, 0.0707),
    "deepseek-v3": (7168, 128, 512, 1536, 128, 64, 0.1),
}


def test_sizes_of_all() -> None:
    assert {*SIZES, *LATENT} == set(PRESETS)


@pytest.mark.parametrize("name", LATENT)
def test_latent_preset(create: Create, name: str) -> None:
    preset = PRESETS[name]
    config = create(preset.mechanism, **preset.options).config
    sizes = (config.dim, config.heads, config.latent, config.query_latent, config.key_size)
    *expected, rope_size, temperature = LATENT[name]
    assert sizes == tuple(expected)
    assert (config.value_width, config.rope_size) == (128, rope_size)
    scale = (temperature * math.log(40) + 1) ** 2 / math.sqrt(128 + 64)
    assert config.scale == pytest.approx(scale, rel=1e-12)
    assert config.causal
    assert config.tied
    assert config.norm


@pytest.mark.parametrize("name", SIZES)
def test_preset(create: Create, name: str) -> None:
    preset = PRESETS[name]
    config = create(preset.mechanism, **preset.options).config
    sizes = (config.dim, config.heads, config.key_heads, config.projected_size)
    assert sizes == SIZES[name]
    assert set(sum(preset.weights.values(), ())) >= {"query", "key", "value", "output"}


def test_what_sets_presets_apart(create: Create) -> None:
    gpt2, t5 = (create("multi-head", **PRESETS[name].options) for name in ("gpt2", "t5-base"))
    x = np.random.default_rng(0).standard_normal((6, 768), np.float32)
    later = np.concatenate((x[:5], 2 * x[5:]))
    np.testing.assert_array_equal(gpt2(x)[:5], gpt2(later)[:5])
    assert not np.allclose(t5(x)[:5], t5(later)[:5])
    assert t5.config.scale == 1.0
    assert set(t5.parameters) == {
        "query.weight", "key.weight", "value.weight", "output.weight", "position.table",
    }  # fmt: skip
