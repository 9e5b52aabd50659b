"""The manifest: what this family offers."""

from __future__ import annotations

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

FAMILY = "moe"
_MODULE = "polyattn_moe"

MECHANISMS = (
    MechanismSpec(
        name="moe",
        family=FAMILY,
        summary="A router sends each token to the best few of several mechanisms",
        formula="Σ_{e ∈ top(x)} g_e expert_e(q, K, V), g = softmax over the chosen of x W_rᵀ",
        factory=f"{_MODULE}.moe:MoE",
        config=f"{_MODULE}.config:MoEConfig",
        reference=f"{_MODULE}.reference:moe",
        papers=("1701.06538", "2101.03961", "2210.05144"),
        capabilities=Capabilities(
            parametric=True, grouped=False, value_size=False, time="O(top_k n² d)"
        ),
        leading=("experts", "top_k"),
        tags=("mixture", "needs-training"),
    ),
    MechanismSpec(
        name="expert-choice",
        family=FAMILY,
        summary="Experts take the tokens that want them most: equal loads by construction",
        formula="Σ_{e: x ∈ top_C(S_·e)} S_xe expert_e(q, K, V), S = softmax(x W_rᵀ)",
        factory=f"{_MODULE}.expert_choice:ExpertChoice",
        config=f"{_MODULE}.config:ExpertChoiceConfig",
        reference=f"{_MODULE}.reference:expert_choice",
        papers=("2202.09368",),
        capabilities=Capabilities(
            causal=False,
            parametric=True,
            grouped=False,
            value_size=False,
            time="O(expert_capacity n² d)",
        ),
        leading=("experts", "expert_capacity"),
        tags=("mixture", "needs-training"),
    ),
    MechanismSpec(
        name="mixture-of-heads",
        family=FAMILY,
        summary="Each token uses the heads that it needs",
        formula="concatₕ g_h attention(q_h, K_h, V_h), g = 0 for heads that are not chosen",
        factory=f"{_MODULE}.heads:MixtureOfHeads",
        config=f"{_MODULE}.config:MixtureOfHeadsConfig",
        reference=f"{_MODULE}.reference:mixture_of_heads",
        papers=("2410.11842",),
        capabilities=Capabilities(
            parametric=True, grouped=False, time="O((shared + top_k) n² d / heads)"
        ),
        leading=("heads", "top_k"),
        aliases=("moh",),
        tags=("mixture", "needs-training"),
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Mixtures of experts: any mechanisms, each working for its own tokens",
        distribution="polyattn-moe",
        version=__version__,
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_mechanisms() -> tuple[MechanismSpec, ...]:
    return MECHANISMS


@hookimpl
def polyattn_presets() -> list[PresetSpec]:
    return presets_from_toml(_MODULE, FAMILY)


@hookimpl
def polyattn_conformance_cases() -> tuple[ConformanceCase, ...]:
    few = {"experts": 3}
    named = ("standard/scaled-dot-product", {"name": "standard/gaussian", "bandwidth": 1.5})
    return (
        ConformanceCase(mechanism="moe", options={"experts": 4}),
        ConformanceCase(
            mechanism="moe", name="capacity", options={**few, "expert_capacity": 0.75, "top_k": 1}
        ),
        ConformanceCase(
            mechanism="moe",
            name="named",
            options={
                "experts": (*named, "standard/cosine"),
                "expert_capacity": 0.8,
                "overflow": "reroute",
                "normalise": False,
            },
        ),
        ConformanceCase(
            mechanism="moe",
            name="positions",
            options={
                "experts": ({"name": "standard/stick-breaking"}, {**named[1], "position": "rope"}),
                "causal": True,
                "dim": 24,
            },
        ),
        ConformanceCase(mechanism="expert-choice", options=few),
        ConformanceCase(mechanism="mixture-of-heads"),
        ConformanceCase(
            mechanism="mixture-of-heads",
            name="routed",
            options={"shared_heads": 0, "attention": "standard/cosine"},
        ),
    )
