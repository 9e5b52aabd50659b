"""The manifest: what the SDK itself offers."""

from __future__ import annotations

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import EntrySpec, PluginInfo

from . import __version__

FAMILY = "sdk"

LIVE = EntrySpec(
    kind="sink",
    name="live",
    family=FAMILY,
    summary="Diagnostics events as a table in the terminal that follows them",
    factory="polyattn.sinks:LiveSink",
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    """The SDK as a plugin."""
    return PluginInfo(
        family=FAMILY,
        summary="A live view of diagnostics",
        distribution="polyattn",
        version=__version__,
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_entries() -> tuple[EntrySpec, ...]:
    """Sinks."""
    return (LIVE,)
