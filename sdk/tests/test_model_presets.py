"""Builders of attention as known models have it, and as data of some kind wants it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polyattn as pa
from polyattn_core.errors import ArgumentError, UnknownNameError


@pytest.mark.parametrize("member", list(pa.AttentionPreset), ids=lambda member: member.name)
def test_every_member_builds(member: Any) -> None:
    family = member.value.partition("/")[0]
    pytest.importorskip(f"polyattn_{family}", reason=f"polyattn-{family} is not installed")
    options = member.spec.options
    width = options["dim"] // options["heads"]
    built = member.builder(3 * width).build()
    assert (built.config.dim, built.config.heads) == (3 * width, 3)
    assert built.config.head_dim == width
    own = member.builder(options["dim"]).build().config
    assert own == pa.create(f"{member.spec.mechanism}@{member.value}").config


def test_what_presets_are() -> None:
    gpt = pa.AttentionPreset.Gpt.builder(768)
    assert isinstance(gpt, pa.Builder)
    assert gpt.build().config.causal
    assert not pa.AttentionPreset.Bert.builder(768).build().config.causal
    assert gpt.dropout(0.3).causal(False).build().config.dropout == 0.3
    assert pa.AttentionPreset.Longformer.builder(512).build().name == "sparse/local-global"
    assert pa.AttentionPreset.FlashOptimized.builder(1024).build().config.heads == 8


@pytest.mark.parametrize(
    ("dim", "heads", "key_heads"), [(4096, 32, 8), (512, 4, 1), (768, 6, 2), (640, 5, 5)]
)
def test_groups_of_heads(dim: int, heads: int, key_heads: int) -> None:
    config = pa.AttentionPreset.Llama.builder(dim).build().config
    assert (config.heads, config.key_heads) == (heads, key_heads)


def test_one_key_head_stays_one() -> None:
    assert pa.preset_builder("gemma-2b", 4096).build().config.key_heads == 1


@pytest.mark.parametrize("dim", [100, 0, -64, 64.0, True, "64"])
def test_widths_that_do_not_fit(dim: Any) -> None:
    with pytest.raises(ArgumentError, match=r"dim: .*a multiple of 64, the width of a head"):
        pa.AttentionPreset.Bert.builder(dim)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("bert", "standard/bert-base"),
        ("bert-large-uncased", "standard/bert-base"),
        ("google-bert/bert-base-cased", "standard/bert-base"),
        ("FacebookAI/roberta-base", "standard/bert-base"),
        ("gpt2", "standard/gpt2"),
        ("standard/gpt2", "standard/gpt2"),
        ("openai-community/gpt2-xl", "standard/gpt2"),
        ("t5", "standard/t5-base"),
        ("google/flan-t5-base", "standard/t5-base"),
        ("google/switch-base-8", "standard/switch-base"),
        ("google/vit-base-patch16-224", "standard/vit-base"),
        ("allenai/longformer-base-4096", "sparse/longformer-base"),
        ("meta-llama/Llama-2-7b-hf", "standard/llama-2-7b"),
        ("meta-llama/Meta-Llama-3-8B", "standard/llama-3-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "standard/llama-3-1-8b"),
        ("mistralai/Mistral-7B-v0.1", "standard/mistral"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "standard/mistral-v2"),
        ("google/gemma-2b", "standard/gemma-2b"),
        ("google/gemma-2-9b-it", "standard/gemma-2-9b"),
        ("google/gemma-3-4b-pt", "standard/gemma-3-4b"),
        ("Qwen/Qwen2.5-7B-Instruct", "standard/qwen2-7b"),
        ("Qwen/Qwen2.5-7B-Instruct-1M", "standard/qwen2-5-7b-1m"),
        ("Qwen/Qwen3-8B", "standard/qwen3-8b"),
        ("deepseek-ai/DeepSeek-V2-Chat", "standard/deepseek-v2"),
        ("deepseek-ai/DeepSeek-Coder-V2-Lite-Base", "standard/deepseek-v2-lite"),
        ("deepseek-ai/DeepSeek-V3-0324", "standard/deepseek-v3"),
    ],
)
def test_names_of_models(name: str, preset: str) -> None:
    options = pa.preset(preset).options
    dim = 2 * options["dim"] // options["heads"]
    assert pa.from_model_name(name, dim) == pa.preset_builder(preset, dim)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("brt", "bert"),
        ("gpt3", "gpt2"),
        # Of the same families, but with other attention.
        ("meta-llama/Llama-2-70b-hf", "llama-2-7b"),
        ("meta-llama/Llama-3.2-1B", "llama-3.1-8b"),
        ("mistralai/Mistral-Nemo-7B", "mistral-7b-v0.3"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseek-r1-zero"),
    ],
)
def test_names_of_no_model(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no model or preset is called {name!r}") as caught:
        pa.from_model_name(name, 768)
    assert near in caught.value.suggestions


def test_models_of_plugins() -> None:
    undo = pa.register(
        pa.PresetSpec(
            name="mine",
            family="acme",
            summary="",
            mechanism="flash",
            options={"dim": 64, "heads": 2, "causal": True},
            models=("Acme-LM",),
        )
    )
    try:
        made = pa.from_model_name("acme/acme-lm-7b", 128).build()
        assert (made.name, made.config.heads, made.config.causal) == ("sparse/flash", 4, True)
    finally:
        undo()


@pytest.mark.parametrize(
    ("length", "name"),
    [
        (1, "standard/multi-head"),
        (2048, "standard/multi-head"),
        (2049, "sparse/local-global"),
        (16_384, "sparse/local-global"),
        (16_385, "sparse/favor"),
    ],
)
def test_sequences(length: int, name: str) -> None:
    made = pa.for_sequences(512, length).build()
    assert (made.name, made.config.heads) == (name, 8)


def test_other_uses() -> None:
    assert pa.for_graphs(256, hierarchical=True).build().name == "hyperbolic/hyperbolic"
    graph = pa.for_graphs(64).build()
    x = np.random.default_rng(0).standard_normal((3, 64))
    assert graph(x, edges=np.array([[0, 1, 2], [1, 2, 0]])).shape == (3, 64)
    assert pa.for_large_scale(1024).build().name == "sparse/flash"
    assert pa.for_vision(768) == pa.AttentionPreset.ViT.builder(768)
    writer = pa.for_generation(768).build()
    assert (writer.config.causal, writer.config.heads, writer.config.kv_heads) == (True, 12, 3)
    query, key = np.ones((1, 12, 1, 64), np.float32), np.ones((1, 3, 1, 64), np.float32)
    cache = pa.KVCache.of(writer, batch=1)
    cache.append(key, key)
    np.testing.assert_allclose(writer.attend_cached(query, cache), 1, rtol=1e-6)


def test_mixtures() -> None:
    pytest.importorskip("polyattn_moe", reason="polyattn-moe is not installed")
    mixture: Any = pa.for_moe(128, 4, 1).build()
    config = mixture.config
    assert (mixture.name, config.heads, config.experts, config.top_k) == ("moe/moe", 2, 4, 1)
    tokens = np.random.default_rng(0).standard_normal((2, 5, 128))
    assert mixture(tokens).shape == (2, 5, 128)


@pytest.mark.parametrize(("dim", "heads"), [(1, 1), (63, 1), (64, 1), (100, 1), (192, 3), (200, 2)])
def test_heads_of_any_width(dim: int, heads: int) -> None:
    assert pa.for_large_scale(dim).build().config.heads == heads


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, None])
def test_bad_sizes(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="dim: "):
        pa.for_large_scale(wrong)
    with pytest.raises(ArgumentError, match="max_len: "):
        pa.for_sequences(64, wrong)
    with pytest.raises(ArgumentError, match="name: "):
        pa.from_model_name(wrong, 64)
