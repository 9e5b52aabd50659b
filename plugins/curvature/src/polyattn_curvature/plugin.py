"""The manifest: what this family offers."""

from __future__ import annotations

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import Capabilities, ConformanceCase, MechanismSpec, PluginInfo

from . import __version__

FAMILY = "curvature"
_MODULE = "polyattn_curvature"
_CAPABILITIES = Capabilities(
    dropout=True,
    statistics=("weights", "log_sum_exp", "entropy", "column_mass", "top_weights"),
    parametric=True,
    partial=True,
)

MECHANISMS = (
    MechanismSpec(
        name="fused-mixed-curvature",
        family=FAMILY,
        summary="Flat, hyperbolic and spherical similarity in one weighted dot product",
        formula="softmax(scale · Σ_c w_c log₀q_c · log₀k_c) v over E × H × S",
        factory=f"{_MODULE}.fused:MixedCurvatureFusedAttention",
        config=f"{_MODULE}.config:FusedCurvatureConfig",
        reference=f"{_MODULE}.reference:fused_mixed_curvature",
        papers=("1911.05076", "1911.08411"),
        capabilities=_CAPABILITIES,
        sharpness="scale",
        tags=("softmax", "geometry"),
    ),
    MechanismSpec(
        name="quantised-mixed-curvature",
        family=FAMILY,
        summary="Fused mixed curvature over keys packed to 8 and 5 bits a coordinate",
        formula="softmax(scale · Σ_c w_c log₀q_c · s round(log₀k_c / s)) v",
        factory=f"{_MODULE}.fused:QuantisedMixedCurvature",
        config=f"{_MODULE}.config:QuantisedCurvatureConfig",
        reference=f"{_MODULE}.reference:quantised_mixed_curvature",
        papers=("1712.05877", "1911.05076"),
        capabilities=Capabilities(
            bias=False, gradient=False, statistics=("log_sum_exp",), parametric=True, partial=True
        ),
        sharpness="scale",
        aliases=("quantized-mixed-curvature",),
        tags=("softmax", "geometry", "quantised"),
    ),
    MechanismSpec(
        name="spherical",
        family=FAMILY,
        summary="The angle itself: geodesic distance on the sphere",
        formula="softmax(−β arccos(q̂·k̂)) v",
        factory=f"{_MODULE}.spaces:Spherical",
        config=f"{_MODULE}.config:SphericalConfig",
        reference=f"{_MODULE}.reference:spherical",
        papers=("1911.05076",),
        capabilities=_CAPABILITIES,
        sharpness="beta",
        tags=("softmax", "geometry"),
    ),
    MechanismSpec(
        name="kappa-stereographic",
        family=FAMILY,
        summary="One distance for spheres, the plane and hyperbolic spaces; κ is learned through 0",
        formula="softmax(−β d_κ(q, k)) v",
        factory=f"{_MODULE}.spaces:KappaStereographic",
        config=f"{_MODULE}.config:KappaStereographicConfig",
        reference=f"{_MODULE}.reference:kappa_stereographic",
        papers=("1911.05076", "1911.08411"),
        capabilities=_CAPABILITIES,
        sharpness="beta",
        tags=("softmax", "geometry"),
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Products of spaces of constant curvature, fused; tangent spaces; quantisation",
        distribution="polyattn-curvature",
        version=__version__,
        api_version=API_VERSION,
        theory="Mixed curvature",
    )


@hookimpl
def polyattn_mechanisms() -> tuple[MechanismSpec, ...]:
    return MECHANISMS


@hookimpl
def polyattn_conformance_cases() -> tuple[ConformanceCase, ...]:
    near = {"max_radius": 2.0}
    return (
        ConformanceCase(mechanism="fused-mixed-curvature", options=near),
        ConformanceCase(mechanism="quantised-mixed-curvature", options={**near, "chunk": 16}),
        ConformanceCase(mechanism="kappa-stereographic"),
        ConformanceCase(
            mechanism="kappa-stereographic", name="hyperbolic", options={"curvature": -1.0}
        ),
        ConformanceCase(
            mechanism="kappa-stereographic",
            name="sphere",
            options={"curvature": 0.5, "coordinates": "stereographic"},
        ),
    )
