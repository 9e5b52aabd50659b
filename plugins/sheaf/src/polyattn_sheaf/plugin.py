"""The manifest: what this family offers."""

from __future__ import annotations

from collections.abc import Iterator

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import Capabilities, ConformanceCase, MechanismSpec, PluginInfo

from . import __version__

FAMILY = "sheaf"
_MODULE = "polyattn_sheaf"
_SOFTMAX = ("weights", "log_sum_exp", "entropy", "column_mass", "top_weights")

MECHANISMS = (
    MechanismSpec(
        name="sheaf",
        family=FAMILY,
        summary="Agreement in a space that restriction maps of either role lead to",
        formula="softmax(−β ‖ρ_q q − ρ_k k‖²) v",
        factory=f"{_MODULE}.mechanisms:Sheaf",
        config=f"{_MODULE}.config:SheafConfig",
        reference=f"{_MODULE}.reference:sheaf_attention",
        papers=("2202.04579", "2012.06333"),
        capabilities=Capabilities(dropout=True, partial=True, statistics=_SOFTMAX, parametric=True),
        sharpness="beta",
        tags=("energy",),
    ),
    MechanismSpec(
        name="residual-sparse",
        family=FAMILY,
        summary="Only pairs that disagree exchange anything, the nearest of them most",
        formula="softmax(−β E where E > threshold) v, E = ‖ρ_q q − ρ_k k‖²",
        factory=f"{_MODULE}.mechanisms:ResidualSparse",
        config=f"{_MODULE}.config:ResidualSparseConfig",
        reference=f"{_MODULE}.reference:sheaf_attention",
        papers=("2202.04579",),
        capabilities=Capabilities(dropout=True, partial=True, statistics=_SOFTMAX, parametric=True),
        sharpness="beta",
        tags=("energy", "sparse-weights"),
    ),
    MechanismSpec(
        name="early-exit",
        family=FAMILY,
        summary="States relax towards what they agree with; each stops once it has settled",
        formula="x ← (1 − η) x + η softmax(−β ‖ρ_q x − ρ_k k‖²) v until |Δx| ≤ ε |x|",
        factory=f"{_MODULE}.early_exit:EarlyExit",
        config=f"{_MODULE}.config:EarlyExitConfig",
        reference=f"{_MODULE}.reference:early_exit",
        papers=("2012.06333", "1603.08983"),
        capabilities=Capabilities(
            causal=False,
            masks=("padding",),
            bias=False,
            parametric=True,
            value_size=False,
            time="O(steps n² d)",
            memory="O(n d)",
        ),
        sharpness="beta",
        tags=("energy", "iterative"),
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Attention by how far tokens disagree on a sheaf",
        distribution="polyattn-sheaf",
        version=__version__,
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_mechanisms() -> tuple[MechanismSpec, ...]:
    return MECHANISMS


@hookimpl
def polyattn_conformance_cases() -> Iterator[ConformanceCase]:
    """As they are by default, and with a stalk of another width."""
    yield ConformanceCase(mechanism="sheaf")
    yield ConformanceCase(mechanism="sheaf", name="narrow", options={"stalk": 3, "beta": 0.2})
    yield ConformanceCase(
        mechanism="residual-sparse",
        options={"threshold": 2.0},
        expected_failures={
            "check_empty_rows": "a query that agrees with all it sees attends to nothing either"
        },
    )
    # Without exits within reach, which make outputs jump.
    yield ConformanceCase(mechanism="early-exit", options={"max_steps": 4, "tolerance": 0.0})
