"""A manifest that imports what it should not."""

from __future__ import annotations

import numpy as np

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import MechanismSpec, PluginInfo


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
