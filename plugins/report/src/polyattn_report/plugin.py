"""The manifest: what this family offers."""

from __future__ import annotations

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import EntrySpec, MetricSpec, PluginInfo

from . import __version__

FAMILY = "report"

ENTROPY = MetricSpec(
    name="attention-entropy",
    family=FAMILY,
    summary="Mean entropy of the soft-max weights, of sampled queries",
    factory="polyattn_report.analysis:attention_entropy",
    unit="nats",
)

REPORT = EntrySpec(
    kind="report",
    name="geometry",
    family=FAMILY,
    summary="Health of attention on some data, and which family of mechanisms to take",
    factory="polyattn_report.analysis:analyze",
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    """The report as a plugin."""
    return PluginInfo(
        family=FAMILY,
        summary="The geometry report: metrics of all families, health, recommendation",
        distribution="polyattn-report",
        version=__version__,
        api_version=API_VERSION,
        theory="Unified diagnostics",
    )


@hookimpl
def polyattn_metrics() -> tuple[MetricSpec, ...]:
    """The entropy; other families offer theirs."""
    return (ENTROPY,)


@hookimpl
def polyattn_entries() -> tuple[EntrySpec, ...]:
    """The report itself."""
    return (REPORT,)
