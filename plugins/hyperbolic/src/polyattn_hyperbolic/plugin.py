"""The manifest: what this family offers."""

from __future__ import annotations

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import Capabilities, ConformanceCase, MechanismSpec, PluginInfo

from . import __version__

FAMILY = "hyperbolic"
_MODULE = "polyattn_hyperbolic"
_STATISTICS = ("weights", "log_sum_exp", "entropy", "column_mass", "top_weights")
_CAPABILITIES = Capabilities(dropout=True, statistics=_STATISTICS, parametric=True)
_AVERAGING = Capabilities(dropout=True, statistics=_STATISTICS, parametric=True, partial=True)

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
        leading=("curvature",),
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
    MechanismSpec(
        name="lorentz-cascade",
        family=FAMILY,
        summary="Hyperbolic spaces of several curvatures, a slice of the head in each",
        formula="softmax(−β Σₗ wₗ dₗ²(qₗ, kₗ)) v, dₗ² = −2/κₗ (q₀k₀ − q·k − 1)",
        factory=f"{_MODULE}.products:LorentzCascade",
        config=f"{_MODULE}.config:LorentzCascadeConfig",
        reference=f"{_MODULE}.reference:lorentz_cascade",
        papers=("2105.14686",),
        capabilities=_AVERAGING,
        sharpness="beta",
        tags=("softmax", "geometry", "hierarchy"),
    ),
    MechanismSpec(
        name="mixed-curvature",
        family=FAMILY,
        summary="Flat, hyperbolic and spherical distances, mixed by learned weights",
        formula="softmax(−β (w_E d_E² + w_H d_H² + w_S d_S²)) v",
        factory=f"{_MODULE}.products:MixedCurvature",
        config=f"{_MODULE}.config:MixedCurvatureConfig",
        reference=f"{_MODULE}.reference:mixed_curvature",
        papers=("1911.08411",),
        capabilities=_AVERAGING,
        sharpness="beta",
        tags=("softmax", "geometry"),
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


_MIDPOINT = {
    "check_weights_sum_values_to_the_output": "outputs are midpoints, not weighted sums",
    "check_weights_are_those_of_the_reference": "values that are unit vectors show no weights",
}


@hookimpl
def polyattn_conformance_cases() -> tuple[ConformanceCase, ...]:
    cases = []
    average = {"aggregation": "average"}
    for name in ("hyperbolic", "lorentz"):
        cases.append(ConformanceCase(mechanism=name, expected_failures=_MIDPOINT))
        cases.append(ConformanceCase(mechanism=name, name="average", options=average))
    ball = {"coordinates": "ball", "max_radius": 1.0}
    cases.append(ConformanceCase(mechanism="hyperbolic", name="ball", options={**ball, **average}))
    cases.append(ConformanceCase(mechanism="lorentz-cascade"))
    cases.append(ConformanceCase(mechanism="lorentz-cascade", name="ball", options=ball))
    cases.append(ConformanceCase(mechanism="mixed-curvature"))
    sizes = {"dim": 16, "heads": 2, "euclidean_dim": 4, "hyperbolic_dim": 4, "spherical_dim": 8}
    cases.append(ConformanceCase(mechanism="mixed-curvature", name="sizes", options=sizes))
    return tuple(cases)
