"""The manifest: what this family offers."""

from __future__ import annotations

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import Capabilities, ConformanceCase, MechanismSpec, PluginInfo

from . import __version__

FAMILY = "hyperbolic"
_MODULE = "polyattn_hyperbolic"
_CAPABILITIES = Capabilities(
    dropout=True, statistics=("weights", "log_sum_exp", "entropy", "column_mass"), parametric=True
)

MECHANISMS = (
    MechanismSpec(
        name="hyperbolic",
        family=FAMILY,
        summary="Distance in the Poincaré ball as score, Einstein midpoints as outputs",
        formula="midpoint(softmax(−β d(q, k)), v)",
        factory=f"{_MODULE}.mechanisms:Hyperbolic",
        config=f"{_MODULE}.config:HyperbolicConfig",
        reference=f"{_MODULE}.reference:hyperbolic",
        papers=("1805.09786",),
        capabilities=_CAPABILITIES,
        sharpness="beta",
        aliases=("poincare",),
        tags=("softmax", "geometry", "hierarchy"),
    ),
    MechanismSpec(
        name="lorentz",
        family=FAMILY,
        summary="Lorentz inner product as score, Lorentzian centroids as outputs",
        formula="centroid(softmax(2β⟨q, k⟩), v), ⟨q, k⟩ = q·k − q₀k₀",
        factory=f"{_MODULE}.mechanisms:Lorentz",
        config=f"{_MODULE}.config:LorentzConfig",
        reference=f"{_MODULE}.reference:lorentz",
        papers=("2105.14686",),
        capabilities=_CAPABILITIES,
        sharpness="beta",
        tags=("softmax", "geometry", "hierarchy"),
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Attention in hyperbolic space: distances as scores, midpoints as outputs",
        distribution="polyattn-hyperbolic",
        version=__version__,
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_mechanisms() -> tuple[MechanismSpec, ...]:
    return MECHANISMS


_MIDPOINT = {"check_weights_sum_values_to_the_output": "outputs are midpoints, not weighted sums"}


@hookimpl
def polyattn_conformance_cases() -> tuple[ConformanceCase, ...]:
    cases = []
    for spec in MECHANISMS:
        cases.append(ConformanceCase(mechanism=spec.name, expected_failures=_MIDPOINT))
        average = {"aggregation": "average"}
        cases.append(ConformanceCase(mechanism=spec.name, name="average", options=average))
    ball = {"coordinates": "ball", "max_radius": 4.0}
    cases.append(
        ConformanceCase(
            mechanism="hyperbolic", name="ball", options=ball, expected_failures=_MIDPOINT
        )
    )
    return tuple(cases)
