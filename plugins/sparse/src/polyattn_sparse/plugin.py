"""The manifest: what this family offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import (
    Capabilities,
    ConformanceCase,
    MechanismSpec,
    PluginInfo,
    PresetSpec,
    presets_from_toml,
)

from . import __version__

FAMILY = "sparse"
_MODULE = "polyattn_sparse"
_SOFTMAX = ("weights", "log_sum_exp", "entropy", "column_mass")


def _softmax(time: str = "O(n² d)", memory: str = "O(n d)", *, positional: bool) -> Capabilities:
    return Capabilities(
        dropout=True, partial=True, statistics=_SOFTMAX, positional=positional, time=time,
        memory=memory,
    )  # fmt: skip


def _pattern(
    name: str, summary: str, formula: str, factory: str, config: str, papers: tuple[str, ...],
    time: str, leading: str, aliases: tuple[str, ...] = (),
) -> MechanismSpec:  # fmt: skip
    return MechanismSpec(
        name=name,
        family=FAMILY,
        summary=summary,
        formula=formula,
        factory=f"{_MODULE}.{factory}",
        config=f"{_MODULE}.config:{config}",
        reference=f"{_MODULE}.reference:softmax_attention",
        papers=papers,
        capabilities=_softmax(time, positional=True),
        leading=(leading,),
        sharpness="scale",
        aliases=aliases,
        tags=("softmax", "pattern"),
    )


_FEATURES = Capabilities(
    masks=("causal", "padding", "prefix"),
    bias=False,
    partial=True,
    statistics=("weights", "log_sum_exp", "column_mass"),
    time="O(n d²)",
)

MECHANISMS = (
    MechanismSpec(
        name="flash",
        family=FAMILY,
        summary="Exact attention in linear memory, tiled, forward and backward",
        formula="softmax(q·kᵀ/√d) v",
        factory=f"{_MODULE}.flash:Flash",
        config=f"{_MODULE}.config:FlashConfig",
        reference=f"{_MODULE}.reference:softmax_attention",
        papers=("2205.14135",),
        capabilities=_softmax(positional=False),
        leading=("block_size",),
        sharpness="scale",
        tags=("softmax", "long"),
    ),
    _pattern(
        "sliding-window",
        "Each query sees the keys near it",
        "softmax(s) v over 0 ≤ i − j < w",
        "patterns:SlidingWindow",
        "SlidingWindowConfig",
        ("2004.05150", "2310.06825"),
        "O(n w d)",
        "window",
    ),
    _pattern(
        "local-global",
        "A window around each query, and global tokens that see and are seen by all",
        "softmax(s) v over |i − j| ≤ ⌊w/2⌋ or i ∈ G or j ∈ G",
        "patterns:LocalGlobal",
        "LocalGlobalConfig",
        ("2004.05150",),
        "O(n (w + g) d)",
        "window",
        ("longformer",),
    ),
    _pattern(
        "dilated",
        "A window with gaps",
        "softmax(s) v over |i − j| ≤ ⌊w/2⌋·step, step | i − j",
        "patterns:DilatedWindow",
        "DilatedConfig",
        ("2004.05150",),
        "O(n w step d)",
        "window",
    ),
    _pattern(
        "strided",
        "The patterns of the sparse transformer",
        "softmax(s) v over 0 ≤ i − j < l or l | i − j ≥ 0",
        "patterns:StridedPattern",
        "StridedConfig",
        ("1904.10509",),
        "O(n² d)",
        "stride",
    ),
    _pattern(
        "block-sparse",
        "Blocks of queries see blocks of keys, as a layout says",
        "softmax(s) v over L[⌊i/b⌋, ⌊j/b⌋]",
        "blocks:BlockSparse",
        "BlockSparseConfig",
        ("1904.10509",),
        "O(blocks b² d)",
        "block",
    ),
    _pattern(
        "bigbird",
        "Neighbouring, global and random blocks",
        "softmax(s) v over near, global and random blocks",
        "blocks:BigBird",
        "BigBirdConfig",
        ("2007.14062",),
        "O(n b d)",
        "block",
    ),
    _pattern(
        "streaming",
        "A window over the last keys that keeps the first ones: attention sinks",
        "softmax(s) v over 0 ≤ i − j < w or j < sinks",
        "patterns:StreamingWindow",
        "StreamingWindowConfig",
        ("2309.17453",),
        "O(n (w + sinks) d)",
        "window",
        ("streaming-llm",),
    ),
    MechanismSpec(
        name="top-k",
        family=FAMILY,
        summary="Soft-max over the k keys with the highest scores",
        formula="softmax(s where s ≥ s₍ₖ₎) v",
        factory=f"{_MODULE}.top_k:TopK",
        config=f"{_MODULE}.config:TopKConfig",
        reference=f"{_MODULE}.reference:top_k",
        papers=("2106.06899",),
        capabilities=Capabilities(
            dropout=True,
            statistics=_SOFTMAX,
            memory="O(n d) + 64 n a thread",
        ),
        leading=("k",),
        sharpness="scale",
        tags=("softmax", "sparse-weights"),
    ),
    MechanismSpec(
        name="linear",
        family=FAMILY,
        summary="Feature maps in place of the exponential: linear time, a running sum when causal",
        formula="φ(q) Σ φ(k) vᵀ / φ(q) Σ φ(k), φ = elu + 1",
        factory=f"{_MODULE}.linear.mechanism:Linear",
        config=f"{_MODULE}.linear.config:LinearConfig",
        reference=f"{_MODULE}.linear.reference:linear_attention",
        papers=("2006.16236",),
        capabilities=_FEATURES,
        sharpness="scale",
        tags=("kernel-features", "long"),
    ),
    MechanismSpec(
        name="favor",
        family=FAMILY,
        summary="FAVOR+: positive orthogonal random features approximate the soft-max",
        formula="φ(q) Σ φ(k) vᵀ / φ(q) Σ φ(k), φᵣ(x) = exp(ωᵣ·x − ‖x‖²/2)/√m",
        factory=f"{_MODULE}.linear.mechanism:Favor",
        config=f"{_MODULE}.linear.config:FavorConfig",
        reference=f"{_MODULE}.linear.reference:favor_attention",
        papers=("2009.14794",),
        capabilities=replace(_FEATURES, exact=False, time="O(n m d)", memory="O(n d + m d)"),
        leading=("features",),
        sharpness="scale",
        aliases=("performer",),
        tags=("kernel-features", "long", "random"),
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Flash attention, patterns of positions, linear attention",
        distribution="polyattn-sparse",
        version=__version__,
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_mechanisms() -> tuple[MechanismSpec, ...]:
    return MECHANISMS


@hookimpl
def polyattn_presets() -> list[PresetSpec]:
    return presets_from_toml(_MODULE, FAMILY)


_NARROW: tuple[tuple[str, dict[str, object]], ...] = (
    ("flash", {"block_size": 16}),
    ("sliding-window", {"window": 5}),
    ("local-global", {"window": 4, "global_tokens": (0, -1)}),
    ("dilated", {"window": 7, "step": 2}),
    ("streaming", {"window": 5, "sinks": 3}),
    ("strided", {"stride": 4, "pattern": "fixed", "summary": 1}),
    ("block-sparse", {"block": 4, "neighbours": 0}),
    ("bigbird", {"block": 4, "neighbours": 0, "random_blocks": 1}),
    ("top-k", {"k": 3}),
    ("linear", {"features": "relu", "epsilon": 0.1}),
    ("favor", {"features": 24, "kind": "hyperbolic"}),
)
"""Options at which a pattern shows at the sizes of the checks."""


@hookimpl
def polyattn_conformance_cases() -> Iterator[ConformanceCase]:
    """As they are by default, and with options that make a difference at small sizes."""
    for name, options in _NARROW:
        yield ConformanceCase(mechanism=name)
        yield ConformanceCase(mechanism=name, name="narrow", options=options)
