"""The manifest says what is there, and presets are what their sources say."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyattn_registry
from polyattn_core.masks import MaskShape
from polyattn_core.spec import resolve
from polyattn_sparse.plugin import MECHANISMS, polyattn_presets

Create = Callable[..., Any]

README = Path(__file__).parents[1] / "README.md"
PRESETS = {preset.name: preset for preset in polyattn_presets()}


@pytest.mark.parametrize("spec", MECHANISMS, ids=lambda spec: spec.name)
def test_spec(spec: Any) -> None:
    factory = resolve(spec.factory)
    assert spec.papers
    for paper in spec.papers:
        assert f"arXiv:{paper}" in factory.__doc__
    for heading in ("References", "Examples"):
        assert f"{heading}\n    ---" in factory.__doc__
    assert "O(" in factory.__doc__
    if spec.sharpness:
        assert spec.sharpness in resolve(spec.config).model_fields


@pytest.mark.parametrize("name", PRESETS)
def test_preset(create: Create, name: str) -> None:
    preset = PRESETS[name]
    assert preset.source
    assert preset.summary
    mechanism = create(preset.mechanism, **preset.options)
    x = np.random.default_rng(0).standard_normal((6, mechanism.config.dim), np.float32)
    key = x[:, : mechanism.config.head_dim * mechanism.config.key_heads]
    assert np.isfinite(mechanism(x, key)).all()


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


# ---- the README ----


def test_readme_lists_every_mechanism_and_preset() -> None:
    text = README.read_text("utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)`", text, re.MULTILINE)
    assert {*(spec.name for spec in MECHANISMS), *PRESETS} <= set(rows)
    for spec in MECHANISMS:
        for paper in spec.papers:
            assert paper in text


def test_examples_of_the_readme() -> None:
    if not polyattn_registry.available(family="sparse"):
        pytest.skip("polyattn-sparse is on the path, but not installed, so not found by name")
    # Everything else becomes empty lines, so that a failure names the line.
    parts = re.split(r"^```(?:pycon)?$", README.read_text("utf-8"), flags=re.MULTILINE)
    source = "".join(part if ">>> " in part else "\n" * part.count("\n") for part in parts)
    examples = doctest.DocTestParser().get_doctest(source, {}, README.name, str(README), 0)
    assert examples.examples
    report: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(optionflags=flags).run(examples, out=report.append)
    assert not report, "".join(report)
