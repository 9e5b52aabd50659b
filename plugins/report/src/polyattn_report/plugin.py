"""The manifest: what this family offers."""

from __future__ import annotations

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import (
    Capabilities,
    ConformanceCase,
    EntrySpec,
    MechanismSpec,
    MetricSpec,
    PluginInfo,
)

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

AUTO = MechanismSpec(
    name="auto",
    family=FAMILY,
    summary="Becomes the mechanism that suits the data of its first call",
    formula="what the geometry report of the first call recommends",
    factory="polyattn_report.auto:Auto",
    config="polyattn_report.config:AutoConfig",
    reference="polyattn_report.reference:softmax_attention",
    capabilities=Capabilities(
        masks=("causal", "padding"),
        bias=False,
        grouped=True,
        value_size=True,
        dtypes=("float32", "float64", "float16", "bfloat16"),
        exact=False,
        time="that of what is chosen",
        memory="that of what is chosen",
    ),
    tags=("adaptive",),
)

RECOMMEND = EntrySpec(
    kind="report",
    name="recommend",
    family=FAMILY,
    summary="One mechanism for some data, and why",
    factory="polyattn_report.choice:recommend",
)

MONITOR = EntrySpec(
    kind="report",
    name="monitor",
    family=FAMILY,
    summary="The report on attention while it runs, from the diagnostics bus",
    factory="polyattn_report.monitor:Monitor",
)


@hookimpl
def polyattn_mechanisms() -> tuple[MechanismSpec, ...]:
    """The mechanism that is chosen by data."""
    return (AUTO,)


@hookimpl
def polyattn_conformance_cases() -> tuple[ConformanceCase, ...]:
    """What is chosen is checked by itself: here one choice stands for all."""
    return (ConformanceCase(mechanism="auto", options={"candidates": ("flash",)}),)


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
    return (REPORT, RECOMMEND, MONITOR)
