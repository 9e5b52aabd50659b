"""The manifest: what this family offers."""

from __future__ import annotations

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import (
    Capabilities,
    ConformanceCase,
    MechanismSpec,
    MetricSpec,
    PluginInfo,
    PresetSpec,
    presets_from_toml,
)

from . import __version__

FAMILY = "topology"
_MODULE = "polyattn_topology"
_STATISTICS = ("weights", "log_sum_exp", "entropy", "column_mass", "top_weights")

MECHANISMS = (
    MechanismSpec(
        name="topology-gated",
        family=FAMILY,
        summary="Any mechanism, in a stable, cautious or frozen mode by the coherence of its keys",
        formula="inner(q, k, v), cautious(q, k, v) or inner(q, k[:retained], v[:retained])",
        factory=f"{_MODULE}.gated:TopologyGatedAttention",
        config=f"{_MODULE}.config:TopologyGatedConfig",
        reference=f"{_MODULE}.reference:topology_gated",
        papers=("0711.0189",),
        capabilities=Capabilities(statistics=("weights", "entropy", "column_mass", "top_weights")),
        tags=("gated", "stateful"),
    ),
    MechanismSpec(
        name="mincut-gated",
        family=FAMILY,
        summary="Pairs across a cheap cut of the key graph lose score",
        formula="softmax(scale · q·kᵀ − strength · [side(q) ≠ side(k)] · [φ < threshold]) v",
        factory=f"{_MODULE}.mincut:MincutGated",
        config=f"{_MODULE}.config:MincutGatedConfig",
        reference=f"{_MODULE}.reference:mincut_gated",
        papers=("0711.0189",),
        capabilities=Capabilities(
            causal=False, masks=(), dropout=True, statistics=_STATISTICS, time="O(n² d + n d²)"
        ),
        sharpness="scale",
        tags=("softmax", "gated"),
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Attention gated by the coherence of its keys; persistence",
        distribution="polyattn-topology",
        version=__version__,
        api_version=API_VERSION,
        theory="topology",
    )


@hookimpl
def polyattn_mechanisms() -> tuple[MechanismSpec, ...]:
    return MECHANISMS


@hookimpl
def polyattn_presets() -> list[PresetSpec]:
    return presets_from_toml(_MODULE, FAMILY)


@hookimpl
def polyattn_metrics() -> tuple[MetricSpec, ...]:
    return (
        MetricSpec(
            name="topology-coherence",
            family=FAMILY,
            summary="How much nearer neighbouring keys are to each other than any keys",
            factory=f"{_MODULE}.neighbours:coherence_metric",
            direction="higher",
        ),
    )


@hookimpl
def polyattn_conformance_cases() -> tuple[ConformanceCase, ...]:
    def policy(stable: float, freeze: float) -> dict[str, object]:
        return {
            "policy": {
                "stable_threshold": stable,
                "cautious_threshold": stable if freeze else freeze,
                "freeze_threshold": freeze,
                "hysteresis": 0.0,
            }
        }

    return (
        ConformanceCase(mechanism="topology-gated", options=policy(0.0, 0.0)),
        ConformanceCase(
            mechanism="topology-gated",
            name="cautious",
            options={**policy(1.0, 0.0), "cautious_options": {"k": 3}},
        ),
        ConformanceCase(mechanism="topology-gated", name="frozen", options=policy(1.0, 1.0)),
        ConformanceCase(mechanism="mincut-gated", options={"threshold": 0.98}),
    )
