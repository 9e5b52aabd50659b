"""The manifest of a plugin: a good mechanism, one that is off, and one known to be."""

from __future__ import annotations

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import (
    Capabilities,
    ConformanceCase,
    MechanismSpec,
    PluginInfo,
    PresetSpec,
)


def _spec(name: str, factory: str) -> MechanismSpec:
    return MechanismSpec(
        name=name,
        family="acme",
        summary="For tests",
        formula="softmax(g q·kᵀ) v",
        factory=factory,
        config="acme_plain:PlainConfig",
        reference="acme_plain:reference",
        capabilities=Capabilities(dropout=True, parametric=True),
    )


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family="acme",
        summary="For tests",
        distribution="acme-attention",
        version="1.0",
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_mechanisms() -> list[MechanismSpec]:
    return [
        _spec("plain", "acme_plain:Plain"),
        _spec("off", "acme_wrong:SlightlyOff"),
        _spec("known", "acme_wrong:SlightlyOff"),
    ]


@hookimpl
def polyattn_presets() -> list[PresetSpec]:
    return [
        PresetSpec(
            name="small",
            family="acme",
            summary="For tests",
            mechanism="plain",
            options={"dim": 8, "heads": 2},
            source="invented",
        )
    ]


@hookimpl
def polyattn_conformance_cases() -> list[ConformanceCase]:
    known = {
        "check_bias": "it is slightly off",
        "check_repr": "an expectation that is wrong",
    }
    return [
        ConformanceCase(mechanism="plain"),
        ConformanceCase(mechanism="plain", name="sharp", options={"scale": 3.0, "heads": 2}),
        ConformanceCase(mechanism="known", expected_failures=known),
    ]
