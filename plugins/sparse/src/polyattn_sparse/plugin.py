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
    SideInput,
    presets_from_toml,
)

from . import __version__

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


_FEATURES = Capabilities(
    masks=("causal", "padding", "prefix"),
    bias=False,
    partial=True,
    statistics=("weights", "log_sum_exp", "column_mass"),
    time="O(n d²)",
)

_SETS = Capabilities(causal=False, masks=("padding", "prefix"), bias=False)
_BUCKETS = Capabilities(
    masks=("causal", "padding", "prefix"),
    bias=False,
    exact=False,
    time="O(n b d) for b keys a bucket",
)
_STATE = SideInput(
    name="state",
    shape="(…, key heads, head size, value size)",
    description="the state to start from: a RecurrentState, or its array",
    required=False,
)
_LOG_DECAY = SideInput(
    name="log_decay",
    shape="(…, heads, tokens, 1 or head size)",
    description="logarithms of the decays, at most 0; learned, the same for all tokens, without it",
    required=False,
)
_BETA = SideInput(
    name="beta",
    shape="(…, heads, tokens)",
    description="how strongly each token writes, 0 to 1; learned, the same for all, without it",
    required=False,
)
_STEP = SideInput(
    name="step",
    shape="(…, heads, tokens)",
    description="step sizes before bias and softplus; 0 without it",
    required=False,
)


def _recurrence(
    name: str, summary: str, formula: str, factory: str, config: str, reference: str, paper: str,
    side: tuple[SideInput, ...], *, parametric: bool = True, memory: str = "O(n d)",
    aliases: tuple[str, ...] = (),
) -> MechanismSpec:  # fmt: skip
    return MechanismSpec(
        name=name,
        family=FAMILY,
        summary=summary,
        formula=formula,
        factory=f"{_MODULE}.scans.{factory}",
        config=f"{_MODULE}.scans.config:{config}",
        reference=f"{_MODULE}.scans.reference:{reference}",
        papers=(paper,),
        capabilities=Capabilities(
            causal=False, masks=("padding",), bias=False, cross=False, positional=True,
            parametric=parametric, side_inputs=(*side, _STATE), time="O(n d²)", memory=memory,
        ),
        aliases=aliases,
        tags=("recurrent", "long"),
    )  # fmt: skip


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
    MechanismSpec(
        name="cosformer",
        family=FAMILY,
        summary="Rectified features, and weights that fall like a cosine with the distance",
        formula="relu(q)·relu(k) cos(π(i − j)/2M) v, normalised",
        factory=f"{_MODULE}.linear.cosformer:Cosformer",
        config=f"{_MODULE}.linear.config:CosformerConfig",
        reference=f"{_MODULE}.linear.reference:cosformer",
        papers=("2202.08791",),
        capabilities=replace(_FEATURES, positional=True),
        tags=("kernel-features", "long"),
    ),
    MechanismSpec(
        name="efficient",
        family=FAMILY,
        summary="Soft-max of queries over channels, of keys over tokens, then products",
        formula="softmax_d(q) (softmax_n(k)ᵀ v)",
        factory=f"{_MODULE}.low_rank.mechanisms:Efficient",
        config=f"{_MODULE}.low_rank.config:EfficientConfig",
        reference=f"{_MODULE}.low_rank.reference:efficient",
        papers=("1812.01243",),
        capabilities=replace(_SETS, time="O(n d²)"),
        sharpness="scale",
        tags=("low-rank", "long"),
    ),
    MechanismSpec(
        name="linformer",
        family=FAMILY,
        summary="Keys and values projected to few rows along the sequence",
        formula="softmax(q (E k)ᵀ/√d) F v",
        factory=f"{_MODULE}.low_rank.mechanisms:Linformer",
        config=f"{_MODULE}.low_rank.config:LinformerConfig",
        reference=f"{_MODULE}.low_rank.reference:linformer",
        papers=("2006.04768",),
        capabilities=replace(_SETS, positional=True, parametric=True, time="O(n r d)"),
        sharpness="scale",
        tags=("low-rank", "long"),
    ),
    MechanismSpec(
        name="nystrom",
        family=FAMILY,
        summary="The soft-max matrix from its rows and columns at landmarks",
        formula="softmax(q K̃ᵀ) softmax(Q̃ K̃ᵀ)⁺ softmax(Q̃ kᵀ) v",
        factory=f"{_MODULE}.low_rank.mechanisms:Nystrom",
        config=f"{_MODULE}.low_rank.config:NystromConfig",
        reference=f"{_MODULE}.low_rank.reference:nystrom",
        papers=("2102.03902",),
        capabilities=replace(
            _SETS, positional=True, exact=False, time="O(n m d + m³)", memory="O(n d + m²)"
        ),
        sharpness="scale",
        aliases=("nystromformer",),
        tags=("low-rank", "long"),
    ),
    MechanismSpec(
        name="lsh",
        family=FAMILY,
        summary="Soft-max over the keys that hash like the query, in any of several rounds",
        formula="softmax(s) v over h(q) = h(k)",
        factory=f"{_MODULE}.clustered.mechanisms:Lsh",
        config=f"{_MODULE}.clustered.config:LshConfig",
        reference=f"{_MODULE}.clustered.reference:lsh",
        papers=("2001.04451",),
        capabilities=_BUCKETS,
        sharpness="scale",
        aliases=("reformer",),
        tags=("softmax", "content", "long"),
    ),
    MechanismSpec(
        name="routing",
        family=FAMILY,
        summary="Soft-max over the keys that are nearest to the query's centroid",
        formula="softmax(s) v over μ(q) = μ(k)",
        factory=f"{_MODULE}.clustered.mechanisms:Routing",
        config=f"{_MODULE}.clustered.config:RoutingConfig",
        reference=f"{_MODULE}.clustered.reference:routing",
        papers=("2003.05997",),
        capabilities=replace(
            _BUCKETS,
            side_inputs=(
                SideInput(
                    name="centroids",
                    shape="(heads, clusters, head size)",
                    description="directions of the clusters, from `learn`; random ones without it",
                    required=False,
                ),
            ),
        ),
        sharpness="scale",
        tags=("softmax", "content", "long"),
    ),
    MechanismSpec(
        name="clustered",
        family=FAMILY,
        summary="Queries that are alike share the weights of their mean, apart from the top keys",
        formula="m_c softmax_T(s) v_T + Σ_{j∉T} softmax(q̄ kᵀ/√d)ⱼ vⱼ",
        factory=f"{_MODULE}.clustered.queries:Clustered",
        config=f"{_MODULE}.clustered.config:ClusteredConfig",
        reference=f"{_MODULE}.clustered.reference:clustered",
        papers=("2007.04825",),
        capabilities=replace(_SETS, exact=False, time="O(n d (c + top))", memory="O(n (d + c))"),
        sharpness="scale",
        tags=("softmax", "content", "long"),
    ),
    _recurrence(
        "retention",
        "A sum over the past that decays by a fixed factor a token",
        "S ← γ S + k vᵀ, o = Sᵀ q",
        "retention:Retention",
        "RetentionConfig",
        "retention",
        "2307.08621",
        (),
        parametric=False,
        aliases=("retnet",),
    ),
    _recurrence(
        "gated-linear",
        "A sum over the past whose channels decay as gates say, token by token",
        "S ← diag(α) S + k vᵀ, o = Sᵀ q",
        "gated:GatedLinear",
        "GatedLinearConfig",
        "gated_linear",
        "2312.06635",
        (_LOG_DECAY,),
        aliases=("gla",),
    ),
    _recurrence(
        "delta-rule",
        "A memory that replaces what it stored under a key",
        "S ← S + β k (v − Sᵀ k)ᵀ, o = Sᵀ q",
        "delta:DeltaRule",
        "DeltaConfig",
        "delta_rule",
        "2406.06484",
        (_BETA,),
        memory="O(n (d + chunk))",
        aliases=("deltanet",),
    ),
    _recurrence(
        "gated-delta",
        "The delta rule on a memory that also forgets as gates say",
        "S ← α S + β k (v − α Sᵀ k)ᵀ, o = Sᵀ q",
        "delta:GatedDelta",
        "DeltaConfig",
        "delta_rule",
        "2412.06464",
        (_LOG_DECAY, _BETA),
        memory="O(n (d + chunk))",
        aliases=("gated-deltanet",),
    ),
    _recurrence(
        "mamba2",
        "State-space duality: one step size a token says how much is kept and added",
        "S ← e^(−Δ eᵃ) S + Δ k vᵀ, o = Sᵀ q + D v",
        "mamba:Mamba2",
        "MambaConfig",
        "mamba2",
        "2405.21060",
        (_STEP,),
        aliases=("ssd",),
    ),
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
