"""The manifest: what this family offers."""

from __future__ import annotations

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import (
    MASK_KINDS,
    Capabilities,
    ConformanceCase,
    MechanismSpec,
    MetricSpec,
    PluginInfo,
    PresetSpec,
    SideInput,
    presets_from_toml,
)

from . import __version__

FAMILY = "info-bottleneck"
_MODULE = "polyattn_info_bottleneck"

MECHANISMS = (
    MechanismSpec(
        name="vib",
        family=FAMILY,
        summary="Queries find keys by short noisy codes with a price on what they tell",
        formula="softmax(z(q) · (z(k) + σ(k) ε)/√z_dim) v",
        factory=f"{_MODULE}.vib:VIB",
        config=f"{_MODULE}.config:VIBConfig",
        reference=f"{_MODULE}.reference:vib",
        papers=("1612.00410",),
        capabilities=Capabilities(
            dropout=True,
            partial=True,
            parametric=True,
            statistics=("weights", "log_sum_exp", "entropy", "column_mass", "top_weights"),
            side_inputs=(
                SideInput(
                    name="noise",
                    shape="(…, key heads, keys, z_dim)",
                    description="standard normal noise of the keys' codes, while training",
                    required=False,
                ),
            ),
            time="O(n² z + n z d)",
        ),
        sharpness="scale",
        tags=("softmax", "compression", "needs-training"),
    ),
    MechanismSpec(
        name="ib-compressed",
        family=FAMILY,
        summary="Weights that give up information between query and key not worth β",
        formula="softmax((s + β log r̄)/(1 + β)) v, r̄ the mean of the rows",
        factory=f"{_MODULE}.compressed:IBCompressed",
        config=f"{_MODULE}.config:IBCompressedConfig",
        reference=f"{_MODULE}.reference:ib_compressed",
        papers=("physics/0004057",),
        capabilities=Capabilities(
            # Rows meet in r̄, so that hiding later keys does not make a row blind for them.
            causal=False,
            masks=tuple(kind for kind in MASK_KINDS if kind != "causal"),
            dropout=True,
            statistics=("weights", "entropy", "column_mass", "top_weights"),
            time="O(iterations · n² d)",
        ),
        sharpness="scale",
        tags=("softmax", "compression"),
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Variational information bottleneck, compressed weights, divergences",
        distribution="polyattn-info-bottleneck",
        version=__version__,
        api_version=API_VERSION,
        theory="information bottleneck",
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
            name="ib-kl",
            family=FAMILY,
            summary="KL of the keys' distribution from a standard normal prior, a coordinate",
            factory=f"{_MODULE}.metrics:ib_kl",
            direction="lower",
            unit="nats",
            papers=("1612.00410",),
        ),
    )


@hookimpl
def polyattn_conformance_cases() -> tuple[ConformanceCase, ...]:
    meet = {
        "check_partly_hidden_keys_do_not_leak": "rows meet in the marginal distribution of the keys"
    }
    return (
        ConformanceCase(
            mechanism="vib",
            options={"z_dim": 4},
            expected_failures={"check_parameters_matter": "without noise its size has no effect"},
        ),
        ConformanceCase(
            mechanism="vib",
            name="noisy",
            options={"z_dim": 4},
            inputs=f"{_MODULE}.conformance:noise",
        ),
        ConformanceCase(mechanism="ib-compressed", expected_failures=meet),
        ConformanceCase(
            mechanism="ib-compressed",
            name="strong",
            options={"beta": 5.0, "iterations": 1},
            expected_failures=meet,
        ),
    )
