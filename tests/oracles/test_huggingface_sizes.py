"""Numbers of the presets against those that transformers gives the same models by default.

Only of models that are the default of their class; those of the others are compared by their
outputs, in test_huggingface.
"""

from __future__ import annotations

from typing import Any

import pytest

import polyattn as pa

pytestmark = pytest.mark.oracle
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: make oracles"
)

DROPOUT = {"dropout": "attention_probs_dropout_prob"}
GROUPED = {"kv_heads": "num_key_value_heads", "head_size": "head_dim"}
LATENT = {
    "latent": "kv_lora_rank",
    "query_latent": "q_lora_rank",
    "head_size": "qk_nope_head_dim",
    "rope_size": "qk_rope_head_dim",
    "value_size": "v_head_dim",
}
SIZES = {"dim": "hidden_size", "heads": "num_attention_heads"}
BUCKETS = {
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
}


def numbers(name: str) -> dict[str, Any]:
    """Those of a preset, with what its mechanism adds."""
    (preset,) = (one for one in pa.presets() if one.full_name == name)
    found = pa.preset_builder(name, preset.options["dim"]).build().config.model_dump()
    found["kv_heads"] = found.get("kv_heads") or found["heads"]
    found["head_size"] = found.get("head_size") or found["dim"] // found["heads"]
    return found


@pytest.mark.parametrize(
    ("name", "model", "same"),
    [
        ("standard/bert-base", "Bert", SIZES | DROPOUT),
        ("standard/gpt2", "GPT2", SIZES | {"dropout": "attn_pdrop"}),
        ("standard/vit-base", "ViT", SIZES | DROPOUT),
        ("standard/t5-base", "T5", {"dropout": "dropout_rate", "head_size": "d_kv"}),
        ("standard/t5-base-decoder", "T5", {"dropout": "dropout_rate", "head_size": "d_kv"}),
        ("standard/switch-base", "SwitchTransformers", SIZES | {"dropout": "dropout_rate"}),
        ("standard/llama-2-7b", "Llama", SIZES | GROUPED),
        ("standard/mistral", "Mistral", SIZES | GROUPED | {"window": "sliding_window"}),
        ("standard/gemma-7b", "Gemma", SIZES | GROUPED),
        ("standard/deepseek-v3", "DeepseekV3", SIZES | LATENT),
        ("sparse/longformer-base", "Longformer", SIZES | DROPOUT | {"window": "attention_window"}),
        (
            "sparse/bigbird-base",
            "BigBird",
            SIZES | DROPOUT | {"block": "block_size", "random_blocks": "num_random_blocks"},
        ),
    ],
)
def test_sizes(name: str, model: str, same: dict[str, str]) -> None:
    config = getattr(transformers, f"{model}Config")()
    found = numbers(name)
    assert {ours: found[ours] for ours in same} == {
        ours: getattr(config, theirs) for ours, theirs in same.items()
    }


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("standard/llama-2-7b", "Llama"),
        ("standard/mistral", "Mistral"),
        ("sparse/mistral-7b", "Mistral"),
        ("standard/gemma-7b", "Gemma"),
    ],
)
def test_rotations(name: str, model: str) -> None:
    config = getattr(transformers, f"{model}Config")()
    assert numbers(name)["position"]["base"] == config.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("standard/t5-base", "T5"),
        ("standard/t5-base-decoder", "T5"),
        ("standard/switch-base", "SwitchTransformers"),
    ],
)
def test_buckets(name: str, model: str) -> None:
    config = getattr(transformers, f"{model}Config")()
    position = numbers(name)["position"]
    assert {ours: position[ours] for ours in BUCKETS} == {
        ours: getattr(config, theirs) for ours, theirs in BUCKETS.items()
    }
