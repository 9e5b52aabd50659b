"""The manifest: what this family offers."""

from __future__ import annotations

from collections.abc import Iterator

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
from .clustered import manifest as clustered
from .linear import manifest as linear
from .low_rank import manifest as low_rank
from .scans import manifest as scans

FAMILY = "sparse"
_MODULE = "polyattn_sparse"
_SOFTMAX = ("weights", "log_sum_exp", "entropy", "column_mass", "top_weights")


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
    *linear.MECHANISMS,
    *low_rank.MECHANISMS,
    *clustered.MECHANISMS,
    *scans.MECHANISMS,
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Flash, patterns of positions, linear attention, recurrences, low rank, clusters",
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
    ("cosformer", {"horizon": 200, "epsilon": 0.1}),
    ("efficient", {"scale": 0.5}),
    ("linformer", {"tokens": 200, "rank": 5, "scale": 0.5}),
    ("nystrom", {"landmarks": 3, "iterations": 2, "scale": 0.5}),
    ("lsh", {"buckets": 4, "rounds": 2}),
    ("routing", {"clusters": 3, "seed": 1}),
    ("clustered", {"clusters": 3, "iterations": 2, "top": 2}),
    ("retention", {"chunk": 16, "scale": 0.7}),
    ("gated-linear", {"chunk": 16, "scale": 2.0}),
    ("delta-rule", {"chunk": 16, "scale": 2.0}),
    ("gated-delta", {"chunk": 16, "scale": 2.0}),
    ("mamba2", {"chunk": 16, "skip": False}),
)
"""Options at which a pattern shows at the sizes of the checks."""


_REPLACED = {"check_parameters_matter": "gates that are passed take the place of the learned ones"}
_INPUTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("gated-linear", "gates", _REPLACED),
    ("delta-rule", "strengths", _REPLACED),
    ("gated-delta", "gates_and_strengths", _REPLACED),
    ("mamba2", "steps", {}),
)
"""Functions that make side inputs of recurrences."""


@hookimpl
def polyattn_conformance_cases() -> Iterator[ConformanceCase]:
    """As they are by default, and with options that make a difference at small sizes."""
    for name, options in _NARROW:
        yield ConformanceCase(mechanism=name)
        yield ConformanceCase(mechanism=name, name="narrow", options=options)
    for name, inputs, failures in _INPUTS:
        yield ConformanceCase(
            mechanism=name,
            name="gates",
            inputs=f"{_MODULE}.scans.conformance:{inputs}",
            expected_failures=failures,
        )
