"""Attention mechanisms by name: discovery of plugins, names, presets.

The functions of this module are the methods of one registry, :data:`default`, which discovers
plugins when it is first asked for something. Importing this module makes that registry the one
that mechanisms reach through :mod:`polyattn_core.resolver`.

>>> import polyattn_registry as registry
>>> registry.create("flash", dim=64)  # doctest: +SKIP
>>> registry.available("*-wasserstein", family="transport")  # doctest: +SKIP
['sliced-wasserstein']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyattn_core import resolver as _resolver

from .registry import Registry

if TYPE_CHECKING:
    from .discovery import PluginStatus

__version__ = "0.1.0"

__all__ = [
    "PluginStatus",
    "Registry",
    "available",
    "config_schema",
    "conformance_cases",
    "create",
    "default",
    "having",
    "plugins",
    "prefer",
    "preset",
    "presets",
    "refresh",
    "register",
    "resolve",
    "spec",
]

default = Registry()
"""The registry of this process."""

available = default.available
config_schema = default.config_schema
conformance_cases = default.conformance_cases
create = default.create
having = default.having
plugins = default.plugins
prefer = default.prefer
preset = default.preset
presets = default.presets
refresh = default.refresh
register = default.register
resolve = default.resolve
spec = default.spec

_resolver.install(default)


def __getattr__(name: str) -> Any:
    # Its module imports pluggy and importlib-metadata, which are for the first use.
    if name == "PluginStatus":
        from .discovery import PluginStatus

        return PluginStatus
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
