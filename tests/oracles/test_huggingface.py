"""Presets against the models that they are named after, small and at random, with their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

import polyattn as pa
from polyattn import weights

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: make oracles"
)

TOKENS = 11
WINDOW = 4


class Case(NamedTuple):
    """A model, and where its attention is."""

    model: str
    config: dict[str, Any]
    attention: str
    """The module whose input is that of our layer."""
    output: str
    """The module inside whose output is ours."""
    dim: int = 256
    changes: Mapping[str, Any] = MappingProxyType({})
    """Options that only shrink what would not be seen in so few tokens."""
    prefix: str = ""
    """Of names in the file, where they differ from those of modules."""


def bert_like(name: str) -> dict[str, Any]:
    return {
        "config": name, "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2,
        "intermediate_size": 32,
    }  # fmt: skip


def llama_like(
    name: str, dim: int, heads: int, kv_heads: int, rope: dict[str, Any], **more: Any
) -> dict[str, Any]:
    return {
        "config": name, "vocab_size": 99, "hidden_size": dim, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "pad_token_id": 0, "rope_parameters": rope, **more,
    }  # fmt: skip


def rope(base: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": base, **more}


LAYER = "layers.1.self_attn"
LOCAL = ["sliding_attention", "sliding_attention"]
GLOBAL = ["full_attention", "full_attention"]
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": rope(1e4),
}
T5 = {
    "config": "T5Config", "d_model": 256, "d_kv": 64, "num_heads": 4, "d_ff": 32, "num_layers": 1,
    "vocab_size": 99,
}  # fmt: skip


def deepseek(
    name: str, dim: int, query_latent: int | None, temperature: float, **more: Any
) -> dict[str, Any]:
    yarn = rope(
        1e4, rope_type="yarn", factor=40, mscale=temperature, mscale_all_dim=temperature,
        beta_fast=32, beta_slow=1, original_max_position_embeddings=4096,
    )  # fmt: skip
    return llama_like(
        name, dim, 2, 2, yarn, q_lora_rank=query_latent, kv_lora_rank=512, qk_rope_head_dim=64,
        qk_nope_head_dim=128, v_head_dim=128, max_position_embeddings=163840,
        first_k_dense_replace=2, moe_intermediate_size=16, n_routed_experts=8, **more,
    )  # fmt: skip


CASES = {
    "bert-base": Case(
        "BertModel", bert_like("BertConfig"), "encoder.layer.1.attention.self",
        "encoder.layer.1.attention.output.dense", prefix="encoder.layer.1.attention.",
    ),
    "gpt2": Case(
        "GPT2Model", {"config": "GPT2Config", "n_embd": 256, "n_head": 4, "n_layer": 2},
        "h.1.attn", "h.1.attn.c_proj",
    ),
    "vit-base": Case(
        "ViTModel", bert_like("ViTConfig") | {"image_size": 32, "patch_size": 8},
        "layers.1.attention", "layers.1.attention.o_proj", prefix="encoder.layer.1.attention.",
    ),
    "t5-base": Case(
        "T5EncoderModel", T5, "encoder.block.0.layer.0.SelfAttention",
        "encoder.block.0.layer.0.SelfAttention.o",
    ),
    "t5-base-decoder": Case(
        "T5Model", T5, "decoder.block.0.layer.0.SelfAttention",
        "decoder.block.0.layer.0.SelfAttention.o",
    ),
    "switch-base": Case(
        "SwitchTransformersEncoderModel",
        T5 | {"config": "SwitchTransformersConfig", "num_sparse_encoder_layers": 1},
        "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.0.SelfAttention.o",
    ),
    "llama-2-7b": Case(
        "LlamaModel", llama_like("LlamaConfig", 256, 2, 2, rope(1e4)), LAYER, f"{LAYER}.o_proj"
    ),
    "llama-3-8b": Case(
        "LlamaModel", llama_like("LlamaConfig", 512, 4, 1, rope(5e5)), LAYER, f"{LAYER}.o_proj",
        512,
    ),
    "llama-3-1-8b": Case(
        "LlamaModel",
        llama_like(
            "LlamaConfig", 512, 4, 1,
            rope(
                5e5, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
        ),
        LAYER, f"{LAYER}.o_proj", 512,
    ),
    "mistral": Case(
        "MistralModel", llama_like("MistralConfig", 512, 4, 1, rope(1e4), sliding_window=WINDOW),
        LAYER, f"{LAYER}.o_proj", 512, {"window": WINDOW},
    ),
    "mistral-v2": Case(
        "MistralModel", llama_like("MistralConfig", 512, 4, 1, rope(1e6), sliding_window=None),
        LAYER, f"{LAYER}.o_proj", 512,
    ),
    "gemma-2b": Case(
        "GemmaModel", llama_like("GemmaConfig", 512, 2, 1, rope(1e4), head_dim=256), LAYER,
        f"{LAYER}.o_proj", 512,
    ),
    "gemma-7b": Case(
        "GemmaModel", llama_like("GemmaConfig", 384, 2, 2, rope(1e4), head_dim=256), LAYER,
        f"{LAYER}.o_proj", 384,
    ),
    "gemma-2-9b": Case(
        "Gemma2Model",
        llama_like("Gemma2Config", 448, 2, 1, rope(1e4), head_dim=256, layer_types=GLOBAL),
        LAYER, f"{LAYER}.o_proj", 448,
    ),
    "gemma-2-9b-local": Case(
        "Gemma2Model",
        llama_like(
            "Gemma2Config", 448, 2, 1, rope(1e4), head_dim=256, layer_types=LOCAL,
            sliding_window=WINDOW,
        ),
        LAYER, f"{LAYER}.o_proj", 448, {"window": WINDOW},
    ),
    "gemma-3-4b": Case(
        "Gemma3TextModel",
        llama_like("Gemma3TextConfig", 640, 2, 1, GEMMA3_ROPE, head_dim=256, layer_types=GLOBAL),
        LAYER, f"{LAYER}.o_proj", 640,
    ),
    "gemma-3-4b-local": Case(
        "Gemma3TextModel",
        llama_like(
            "Gemma3TextConfig", 640, 2, 1, GEMMA3_ROPE, head_dim=256, layer_types=LOCAL,
            sliding_window=WINDOW,
        ),
        LAYER, f"{LAYER}.o_proj", 640, {"window": WINDOW},
    ),
    "qwen2-7b": Case(
        "Qwen2Model", llama_like("Qwen2Config", 896, 7, 1, rope(1e6)), LAYER, f"{LAYER}.o_proj",
        896,
    ),
    "qwen2-5-7b-1m": Case(
        "Qwen2Model", llama_like("Qwen2Config", 896, 7, 1, rope(1e7)), LAYER, f"{LAYER}.o_proj",
        896,
    ),
    "qwen3-8b": Case(
        "Qwen3Model", llama_like("Qwen3Config", 512, 4, 1, rope(1e6), head_dim=128), LAYER,
        f"{LAYER}.o_proj", 512,
    ),
    "deepseek-v2": Case(
        "DeepseekV2Model", deepseek("DeepseekV2Config", 80, 1536, 0.707), LAYER, f"{LAYER}.o_proj",
        80,
    ),
    "deepseek-v2-lite": Case(
        "DeepseekV2Model", deepseek("DeepseekV2Config", 256, None, 0.707), LAYER,
        f"{LAYER}.o_proj", 256,
    ),
    "deepseek-v3": Case(
        "DeepseekV3Model", deepseek("DeepseekV3Config", 112, 1536, 1.0), LAYER, f"{LAYER}.o_proj",
        112,
    ),
}  # fmt: skip


def randomised(case: Case) -> Any:
    options = dict(case.config)
    config = getattr(transformers, options.pop("config"))(**options)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, case.model)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.08 if parameter.ndim > 1 else 0.5)
    return model


def run(model: Any, case: Case) -> tuple[Any, Any]:
    """What went into the attention of a run of the model, and what came out."""
    seen: dict[str, Any] = {}

    def before(module: Any, args: Any, kwargs: Any) -> None:
        seen["input"] = args[0] if args else kwargs["hidden_states"]

    def after(module: Any, args: Any, output: Any) -> None:
        seen["output"] = output

    model.get_submodule(case.attention).register_forward_pre_hook(before, with_kwargs=True)
    model.get_submodule(case.output).register_forward_hook(after)
    tokens = torch.randint(1, 90, (2, TOKENS))
    with torch.no_grad():
        if case.model == "ViTModel":
            model(torch.randn(2, 3, 32, 32))
        elif case.model == "T5Model":
            model(input_ids=tokens, decoder_input_ids=tokens)
        else:
            model(tokens)
    return seen["input"].numpy(), seen["output"].numpy()


@pytest.mark.parametrize("name", CASES)
def test_output(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = randomised(case)
    model.save_pretrained(tmp_path)
    layer = pa.preset_builder(name, case.dim).replace(**case.changes).build()
    prefix = case.prefix or f"{case.attention}."
    weights.load(layer, tmp_path, layout=name, prefix=prefix)
    given, expected = run(model, case)
    found = layer(given)
    assert found.dtype == np.float32
    size = np.abs(expected).max()
    assert size > 0.1
    np.testing.assert_allclose(found / size, expected / size, rtol=1e-5, atol=1e-5)


def test_every_preset_with_weights_is_compared() -> None:
    assert set(CASES) == {preset.name for preset in pa.presets() if preset.weights}


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("deepseek")])
def test_expanded_and_from_a_cache(name: str) -> None:
    """So few queries attend in the latent space; here all heads get their keys and values."""
    case = CASES[name]
    model = randomised(case)
    expanded = pa.preset_builder(name, case.dim).replace(absorbed=False).build()
    decoder: Any = pa.preset_builder(name, case.dim).build()
    for layer in (expanded, decoder):
        weights.load(layer, model.state_dict(), layout=name, prefix=f"{case.attention}.")
    given, expected = run(model, case)
    size = np.abs(expected).max()
    np.testing.assert_allclose(expanded(given) / size, expected / size, rtol=1e-5, atol=1e-5)
    cache = decoder.compress(given[:, :-1]).extended(decoder.compress(given[:, -1:], start=10))
    last = decoder.decode(given[:, -1:], cache)
    np.testing.assert_allclose(last / size, expected[:, -1:] / size, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "qwen3-8b", "gemma-3-4b", "deepseek-v3"])
def test_back_into_the_model(name: str) -> None:
    """Our parameters under the model's names, loaded by the model."""
    case = CASES[name]
    layer = pa.preset_builder(name, case.dim).build()
    layer.initialise(7)
    model = randomised(case)
    state = weights.state(layer, layout=name)
    tensors = {key: torch.from_numpy(array).float() for key, array in state.items()}
    model.get_submodule(case.attention).load_state_dict(tensors, strict=True)
    given, expected = run(model, case)
    size = np.abs(expected).max()
    np.testing.assert_allclose(layer(given) / size, expected / size, rtol=1e-5, atol=1e-5)


def test_padding() -> None:
    case = CASES["bert-base"]
    model = randomised(case)
    layer = pa.preset_builder("bert-base", 256).build()
    weights.load(layer, model.state_dict(), layout="bert-base", prefix=case.prefix)
    seen: dict[str, Any] = {}
    module = model.get_submodule(case.attention)
    module.register_forward_pre_hook(
        lambda m, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    model.get_submodule(case.output).register_forward_hook(lambda m, a, out: seen.update(y=out))
    lengths = np.array([TOKENS, 5])
    visible = torch.from_numpy((np.arange(TOKENS) < lengths[:, None]).astype(np.int64))
    with torch.no_grad():
        model(torch.randint(1, 90, (2, TOKENS)), attention_mask=visible)
    found = layer(seen["x"].numpy(), mask=pa.masks.Padding(lengths))
    np.testing.assert_allclose(found, seen["y"].numpy(), rtol=1e-5, atol=1e-4)


def test_longformer() -> None:
    """Its second projections are the first, as they are when it starts from another model."""
    config = transformers.LongformerConfig(
        hidden_size=256, num_attention_heads=4, num_hidden_layers=1, intermediate_size=32,
        attention_window=8, vocab_size=99,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LongformerModel(config).eval()
    module = model.get_submodule("encoder.layer.0.attention.self")
    with torch.no_grad():
        for name in ("query", "key", "value"):
            own = module.get_submodule(name)
            own.weight.normal_(std=0.1)
            module.get_submodule(f"{name}_global").load_state_dict(own.state_dict())
    seen: dict[str, Any] = {}
    module.register_forward_pre_hook(
        lambda m, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    module.register_forward_hook(lambda m, args, out: seen.update(y=out[0]))
    whole = torch.zeros(2, 32, dtype=torch.long)
    whole[:, 0] = 1
    with torch.no_grad():
        model(torch.randint(2, 90, (2, 32)), global_attention_mask=whole)
        q, k, v = (getattr(module, n)(seen["x"]).numpy() for n in ("query", "key", "value"))
    layer = pa.preset_builder("longformer-base", 256).replace(window=8).build()
    np.testing.assert_allclose(layer(q, k, v), seen["y"].numpy(), rtol=1e-5, atol=1e-5)
