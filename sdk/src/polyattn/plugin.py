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

NORMS = tuple(
    EntrySpec(
        kind="norm",
        name=name,
        family=FAMILY,
        summary=summary,
        factory=f"polyattn.pipeline.stages:{factory}",
        papers=(paper,),
    )
    for name, summary, factory, paper in (
        ("layer-norm", "Mean 0 and variance 1 over a token's width", "LayerNorm", "1607.06450"),
        ("rms-norm", "Mean square 1 over a token's width", "RMSNorm", "1910.07467"),
    )
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    """The SDK as a plugin."""
    return PluginInfo(
        family=FAMILY,
        summary="A live view of diagnostics, norms for pipelines",
        distribution="polyattn",
        version=__version__,
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_entries() -> tuple[EntrySpec, ...]:
    """Sinks, and norms for pipelines."""
    return (LIVE, *NORMS)
