"""Presets are what their sources say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyattn_core.masks import MaskShape
from polyattn_sparse.plugin import polyattn_presets

Create = Callable[..., Any]

PRESETS = {preset.name: preset for preset in polyattn_presets()}


def seen(create: Create, name: str, tokens: int, *, query: int) -> Any:
    """How many keys a query sees in each head, at the preset's sizes."""
    preset = PRESETS[name]
    options = {**preset.options, "dim": 8, "heads": 4}
    options.pop("kv_heads", None)
    shape = MaskShape((1,), 4, tokens, tokens)
    mask = create(preset.mechanism, **options).combined_mask(None, shape)
    return mask.dense(shape)[0, :, query].sum(axis=-1)


def test_sizes_of_presets(create: Create) -> None:
    sizes = {name: preset.options for name, preset in PRESETS.items()}
    assert (sizes["longformer-base"]["dim"], sizes["longformer-base"]["heads"]) == (768, 12)
    # 256 on each side, itself, and the global token.
    assert set(seen(create, "longformer-base", 2048, query=1024)) == {514}
    assert set(seen(create, "longformer-base", 2048, query=0)) == {2048}
    assert (sizes["bigbird-base"]["dim"], sizes["bigbird-base"]["heads"]) == (768, 12)
    # Of blocks of 64: 3 near, 2 global, 3 random.
    assert set(seen(create, "bigbird-base", 2048, query=1024)) == {8 * 64}
    assert set(seen(create, "bigbird-base", 2048, query=2047)) == {2048}
    mistral = create("sliding-window", **sizes["mistral-7b"]).config
    assert (mistral.head_dim, mistral.heads, mistral.key_heads) == (128, 32, 8)
    assert (mistral.window, mistral.causal, mistral.position.base) == (4096, True, 10_000)
    streaming = create("streaming", **sizes["streaming-llm"]).config
    assert (streaming.head_dim, streaming.heads, streaming.causal) == (128, 40, True)
    assert set(seen(create, "streaming-llm", 2048, query=2000)) == {1024}
    flash = create("flash", **sizes["flash-optimized"]).config
    assert (flash.head_dim, flash.block_size, flash.causal) == (128, 128, True)
    performer = create("favor", **sizes["performer"]).config
    assert (performer.head_dim, performer.features, performer.causal) == (64, 256, False)
