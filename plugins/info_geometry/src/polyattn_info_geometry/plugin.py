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

FAMILY = "info-geometry"
_MODULE = "polyattn_info_geometry"
_STREAMED = Capabilities(
    dropout=True,
    partial=True,
    statistics=("weights", "log_sum_exp", "entropy", "column_mass", "top_weights"),
)

MECHANISMS = (
    MechanismSpec(
        name="fisher-rao",
        family=FAMILY,
        summary="Geodesic distance between the distributions that queries and keys stand for",
        formula="softmax(−β · 2 arccos Σ √(p r)) v, p = softmax(q/τ), r = softmax(k/τ)",
        factory=f"{_MODULE}.attention:FisherRao",
        config=f"{_MODULE}.config:FisherRaoConfig",
        reference=f"{_MODULE}.reference:fisher_rao",
        papers=("2304.14885",),
        capabilities=_STREAMED,
        sharpness="sharpness",
        tags=("softmax", "geometry"),
    ),
    MechanismSpec(
        name="kl-bregman",
        family=FAMILY,
        summary="Divergence of a key's distribution from the query's",
        formula="softmax(−β KL(p‖r)) v, p = softmax(q/τ), r = softmax(k/τ)",
        factory=f"{_MODULE}.attention:KLBregman",
        config=f"{_MODULE}.config:KLBregmanConfig",
        reference=f"{_MODULE}.reference:kl_bregman",
        papers=("1808.08271",),
        capabilities=_STREAMED,
        sharpness="sharpness",
        tags=("softmax", "geometry"),
    ),
    MechanismSpec(
        name="natural-gradient",
        family=FAMILY,
        summary="Queries descend a Hopfield energy by the natural gradient, then attend",
        formula="q ← q − lr (q − m)/(β² s² + λ); softmax(β q·kᵀ) v",
        factory=f"{_MODULE}.refined:NaturalGradientAttention",
        config=f"{_MODULE}.config:NaturalGradientAttentionConfig",
        reference=f"{_MODULE}.reference:natural_gradient",
        papers=("2008.02217", "1412.1193"),
        # A query moves by all keys that it sees, so parts of them do not merge.
        capabilities=Capabilities(
            dropout=True,
            statistics=("weights", "entropy", "column_mass", "top_weights"),
            time="O((steps + 1) n² d)",
        ),
        sharpness="scale",
        tags=("softmax", "geometry", "iterative"),
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Fisher metric, natural gradient, attention among distributions",
        distribution="polyattn-info-geometry",
        version=__version__,
        api_version=API_VERSION,
        theory="information geometry",
    )


@hookimpl
def polyattn_mechanisms() -> tuple[MechanismSpec, ...]:
    return MECHANISMS


@hookimpl
def polyattn_presets() -> list[PresetSpec]:
    return presets_from_toml(_MODULE, FAMILY)


@hookimpl
def polyattn_conformance_cases() -> tuple[ConformanceCase, ...]:
    kink = "each token is at distance 0 from itself, where the distance has no derivative"
    return (
        ConformanceCase(
            mechanism="fisher-rao",
            expected_failures={"check_gradients_of_defaulted_inputs": kink},
        ),
        ConformanceCase(mechanism="natural-gradient"),
        ConformanceCase(
            mechanism="natural-gradient", name="three-steps", options={"steps": 3, "lr": 0.9}
        ),
    )
