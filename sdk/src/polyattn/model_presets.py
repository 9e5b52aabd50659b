"""Builders of attention as known models have it, and as data of some kind wants it.

>>> import polyattn as pa
>>> pa.AttentionPreset.Bert.builder(768)
multi_head(768, 12).preset('standard/bert-base')
>>> pa.from_model_name("mistralai/Mistral-7B-v0.1", 1024).build().config.kv_heads
2

The presets themselves are entries of the registry (`polyattn.presets()`), those of plugins too.
Their width is that of their model; a builder has any, with more or fewer heads of the same size.
"""

from __future__ import annotations

import difflib
import enum
import math
from typing import TYPE_CHECKING, Any

import polyattn_registry as registry
from polyattn_core.errors import ArgumentError, UnknownNameError

from .builders import Builder, builder, linear

if TYPE_CHECKING:
    from polyattn_core.spec import PresetSpec

_SIZE = 64  # of a head, in most models


class AttentionPreset(enum.Enum):
    """Attention of known models: presets of polyattn's own families.

    Examples
    --------
    >>> from polyattn import AttentionPreset
    >>> AttentionPreset.Gpt.builder(512).dropout(0.0).build()
    standard/multi-head(dim=512, heads=8, causal=True)
    """

    Bert = "standard/bert-base"
    Gpt = "standard/gpt2"
    Longformer = "sparse/longformer-base"
    BigBird = "sparse/bigbird-base"
    FlashOptimized = "sparse/flash-optimized"
    T5 = "standard/t5-base"
    ViT = "standard/vit-base"
    Performer = "sparse/performer"
    SwitchTransformer = "moe/switch-transformer"
    Llama = "standard/llama-3-8b"
    Mistral = "standard/mistral"
    Gemma = "standard/gemma-7b"
    Qwen = "standard/qwen3-8b"
    DeepSeek = "standard/deepseek-v3"

    @property
    def spec(self) -> PresetSpec:
        """The entry of the registry, with options, source and names of weights."""
        return registry.preset(self.value)

    def builder(self, dim: int) -> Builder:
        """A builder of this width; its heads have the size of the model's, and its groups."""
        return preset_builder(self.value, dim)


def preset_builder(name: str, dim: int) -> Builder:
    """A builder that starts from a preset and has another width.

    Heads keep their size, so there are more or fewer. A group of query heads that share keys is
    as large as in the preset or, where that does not divide them, the next smaller that does.

    Parameters
    ----------
    name
        A preset, such as ``"bert-base"``.
    dim
        Width, a multiple of the preset's `dim` / `heads`.
    """
    preset = registry.preset(name)
    given = preset.options
    width = given["dim"] // given.get("heads", 1)
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1 or dim % width:
        raise ArgumentError("dim", dim, f"a multiple of {width}, the width of a head of {name}")
    changed: dict[str, Any] = {"dim": dim, "heads": dim // width}
    if given.get("kv_heads"):
        group = given["heads"] // given["kv_heads"]
        if given["kv_heads"] == 1:
            group = changed["heads"]
        group = max(n for n in range(1, group + 1) if changed["heads"] % n == 0)
        changed["kv_heads"] = changed["heads"] // group
    return builder(preset.mechanism).replace(**changed).preset(preset.full_name)


def from_model_name(name: str, dim: int) -> Builder:
    """The builder of a preset, found by the name of a model.

    Parameters
    ----------
    name
        A preset (``"bert"``), or a model as it is called on the Hugging Face hub:
        ``"gpt2-medium"``, ``"google/gemma-2-9b-it"``. The organisation and case do not matter.
    dim
        Width, as for :func:`preset_builder`.

    Raises
    ------
    UnknownNameError
        Where no preset is known to be that model's attention, with names that are near.

    Examples
    --------
    >>> from polyattn import from_model_name
    >>> from_model_name("gpt2", 768)
    multi_head(768, 12).preset('standard/gpt2')
    """
    if not isinstance(name, str):
        raise ArgumentError("name", name, "the name of a model or preset")
    presets = registry.presets()
    asked = name.lower().replace("_", "-")
    short = asked.rpartition("/")[2]
    names = {n: p.full_name for p in presets for n in (p.name, *p.aliases, p.full_name)}
    models = {model.lower(): p.full_name for p in presets for model in p.models}
    found = names.get(asked) or names.get(short)
    if found is None:
        fitting = [model for model in models if f"{short}-".startswith(f"{model}-")]
        if not fitting:
            near = difflib.get_close_matches(short, {**names, **models}, n=3, cutoff=0.5)
            raise UnknownNameError("model or preset", name, near)
        found = models[max(fitting, key=len)]
    return preset_builder(found, dim)


def for_sequences(dim: int, max_len: int) -> Builder:
    """Attention for sequences of at most `max_len` tokens.

    Up to 2,048 tokens all pairs (`multi-head`); up to 16,384 a window of 512 and one global token
    (`local-global`); beyond that time linear in the length (`favor` with dim / 4 features).
    """
    if isinstance(max_len, bool) or not isinstance(max_len, int) or max_len < 1:
        raise ArgumentError("max_len", max_len, "a number of tokens, at least 1")
    heads = _heads(dim)
    if max_len <= 2048:
        return builder("standard/multi-head", dim, heads)
    if max_len <= 16_384:
        return builder("sparse/local-global", dim, 512, heads=heads)
    return linear(dim, max(dim // 4, 1), heads=heads)


def for_graphs(dim: int, hierarchical: bool = False) -> Builder:
    """Attention for nodes of a graph.

    Of a hierarchy: distances in the Poincaré ball (`hyperbolic`), where trees fit; nodes see all
    others. Otherwise along edges, which calls pass as `edges` (`graph-transformer`).
    """
    name = "hyperbolic/hyperbolic" if hierarchical else "graph/graph-transformer"
    return builder(name, dim, heads=_heads(dim))


def for_large_scale(dim: int) -> Builder:
    """Exact attention to very many keys in linear memory: `flash`."""
    return builder("sparse/flash", dim, heads=_heads(dim))


def for_generation(dim: int) -> Builder:
    """Causal attention of a decoder, one token after another.

    `flash` with rotary positions, and up to four query heads to one of the keys, for small caches:
    it attends to a `KVCache`.
    """
    heads = _heads(dim)
    group = math.gcd(heads, 4)
    return builder(
        "sparse/flash", dim, heads=heads, kv_heads=heads // group, causal=True, position="rope"
    )


def for_vision(dim: int) -> Builder:
    """Attention of all patches of an image to all others, as in ViT."""
    return AttentionPreset.ViT.builder(dim)


def for_moe(dim: int, experts: int = 8, top_k: int = 2) -> Builder:
    """A mixture of so many layers, of which each token goes through `top_k`: `moe`."""
    return builder("moe/moe", dim, experts, top_k, heads=_heads(dim))


def _heads(dim: int) -> int:
    """As many heads as there are with the size that most models have, or the next larger one."""
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ArgumentError("dim", dim, "a width, at least 1")
    return max(n for n in range(1, max(dim // _SIZE, 1) + 1) if dim % n == 0)
