"""The hooks that a plugin implements, and the version of this interface.

A plugin is a module, named by an entry point of the group ``polyattn.plugins``, that implements
some of these hooks with the marker :data:`hookimpl`:

>>> from polyattn_core.hooks import API_VERSION, hookimpl
>>> from polyattn_core.spec import PluginInfo
>>> @hookimpl
... def polyattn_plugin_info() -> PluginInfo:
...     return PluginInfo(family="acme", summary="…", distribution="acme-attention",
...                       version="1.0", api_version=API_VERSION)

Only ``polyattn_plugin_info`` is required. The registry calls each plugin's hooks by themselves,
so a hook that raises harms no other plugin.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from .spec import ConformanceCase, EntrySpec, MechanismSpec, MetricSpec, PluginInfo, PresetSpec

PROJECT = "polyattn"
ENTRY_POINT_GROUP = "polyattn.plugins"

API_VERSION = 1
"""Raised when a plugin written for the version before would no longer work."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def polyattn_plugin_info() -> PluginInfo:  # type: ignore[empty-body]
    """Say who the plugin is. Required."""


@hookspec
def polyattn_mechanisms() -> Iterable[MechanismSpec]:  # type: ignore[empty-body]
    """Offer attention mechanisms."""


@hookspec
def polyattn_presets() -> Iterable[PresetSpec]:  # type: ignore[empty-body]
    """Offer presets. Called on the first look-up of a preset, so it may read a file."""


@hookspec
def polyattn_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """Offer metrics for the geometry report."""


@hookspec
def polyattn_entries() -> Iterable[EntrySpec]:  # type: ignore[empty-body]
    """Offer entries of any other kind: losses, optimisers, schedules, diagnostics sinks …"""


@hookspec
def polyattn_conformance_cases() -> Iterable[ConformanceCase]:  # type: ignore[empty-body]
    """Say how the conformance kit sets up mechanisms that need more than a width and heads."""
