"""A manifest that imports what it should not, and offers what there is not."""

from __future__ import annotations

import numpy as np

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import MechanismSpec, MetricSpec, PluginInfo, PresetSpec


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family="heavy",
        summary="For tests",
        distribution="heavy-attention",
        version=f"{np.float64(1.0)}",
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_mechanisms() -> list[MechanismSpec]:
    return [
        MechanismSpec(
            name="plain",
            family="heavy",
            summary="For tests",
            factory="acme_plain:Plain",
            config="acme_plain:PlainConfig",
            reference="acme_plain:reference",
        )
    ]


@hookimpl
def polyattn_presets() -> list[PresetSpec]:
    options = {"dim": 8}
    return [
        PresetSpec(
            name="from-nowhere", family="heavy", summary="No source", mechanism="plain",
            options=options,
        )
    ]  # fmt: skip


@hookimpl
def polyattn_metrics() -> list[MetricSpec]:
    return [
        MetricSpec(
            name="nothing", family="heavy", summary="Not there", factory="acme_plain:nothing",
            direction="lower",
        )
    ]  # fmt: skip
