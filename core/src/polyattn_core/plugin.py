"""The manifest: what core itself offers."""

from __future__ import annotations

from . import __version__
from .hooks import API_VERSION, hookimpl
from .spec import EntrySpec, PluginInfo

FAMILY = "core"

SINKS = (
    EntrySpec(
        kind="sink",
        name="log",
        family=FAMILY,
        summary="Diagnostics events as records of Python's logging",
        factory="polyattn_core.sinks:LogSink",
    ),
    EntrySpec(
        kind="sink",
        name="json-lines",
        family=FAMILY,
        summary="Diagnostics events as JSON, one a line, in a file or a stream",
        factory="polyattn_core.sinks:JsonLinesSink",
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    """Core as a plugin."""
    return PluginInfo(
        family=FAMILY,
        summary="Diagnostics sinks that need nothing else",
        distribution="polyattn-core",
        version=__version__,
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_entries() -> tuple[EntrySpec, ...]:
    """Sinks."""
    return SINKS
