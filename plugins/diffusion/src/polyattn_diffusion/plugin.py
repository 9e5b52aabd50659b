"""The manifest: what this family offers."""

from __future__ import annotations

from collections.abc import Iterator

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import (
    Capabilities,
    ConformanceCase,
    MechanismSpec,
    MetricSpec,
    PluginInfo,
    PresetSpec,
    presets_from_toml,
)

from . import __version__

FAMILY = "diffusion"
_MODULE = "polyattn_diffusion"


def _mechanism(
    name: str, summary: str, formula: str, factory: str, config: str, reference: str, paper: str,
    *, parametric: bool = False, time: str = "O(n² d) a term, O(n k d) over neighbours",
    aliases: tuple[str, ...] = (),
) -> MechanismSpec:  # fmt: skip
    return MechanismSpec(
        name=name,
        family=FAMILY,
        summary=summary,
        formula=formula,
        factory=f"{_MODULE}.mechanisms:{factory}",
        config=f"{_MODULE}.config:{config}",
        reference=f"{_MODULE}.reference:{reference}",
        papers=(paper,),
        capabilities=Capabilities(
            causal=False,
            masks=("padding",),
            dropout=True,
            statistics=("weights", "column_mass", "top_weights"),
            parametric=parametric,
            time=time,
        ),
        sharpness="scale",
        aliases=aliases,
        tags=("graph-of-keys", "smoothing"),
    )


MECHANISMS = (
    _mechanism(
        "diffusion",
        "Weights spread like heat over the similarity graph of the keys",
        "softmax(q·kᵀ/√d) e^{−tL} v",
        "Diffusion",
        "DiffusionConfig",
        "diffusion",
        "1911.05485",
        aliases=("heat-kernel",),
    ),
    _mechanism(
        "multiscale-diffusion",
        "A learned mixture of diffusion times, from local to t",
        "Σₛ mₛ softmax(q·kᵀ/√d) e^{−tₛL} v",
        "MultiscaleDiffusion",
        "MultiscaleConfig",
        "multiscale_diffusion",
        "1911.05485",
        parametric=True,
    ),
    _mechanism(
        "ppr",
        "Walks over the keys that keep returning to where attention put them",
        "softmax(q·kᵀ/√d) α (α + (1 − α) L)⁻¹ v",
        "PersonalisedPageRank",
        "PageRankConfig",
        "page_rank",
        "1810.05997",
    ),
    _mechanism(
        "chebyshev",
        "A learned polynomial of the Laplacian for each head",
        "softmax(q·kᵀ/√d) Σₘ cₘ Tₘ(2L/λ − 1) v",
        "ChebyshevFilter",
        "ChebyshevConfig",
        "chebyshev",
        "1606.09375",
        parametric=True,
    ),
    _mechanism(
        "wave",
        "Weights oscillate over the graph of the keys instead of levelling out",
        "softmax(q·kᵀ/√d) cos(t√L) v",
        "Wave",
        "WaveConfig",
        "wave",
        "2108.01938",
    ),
    _mechanism(
        "advection-diffusion",
        "Weights diffuse and drift in a learned direction of key space",
        "softmax(q·kᵀ/√d) e^{tQ} v, qᵢⱼ = (1 + max(drift·(kⱼ − kᵢ), 0)) wᵢⱼ/dᵢ",
        "AdvectionDiffusion",
        "AdvectionConfig",
        "advection_diffusion",
        "2307.16092",
        parametric=True,
        time="O(n² d) for the search, O(n k d) a term",
    ),
)

METRICS = (
    MetricSpec(
        name="diffusion-energy",
        family=FAMILY,
        summary="How much values differ along the graph of the keys, relative to any two",
        factory=f"{_MODULE}.metrics:diffusion_energy",
        direction="lower",
        tags=("report",),
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Attention that diffuses over the similarity graph of the keys",
        distribution="polyattn-diffusion",
        version=__version__,
        api_version=API_VERSION,
        theory="PDE and diffusion attention",
    )


@hookimpl
def polyattn_mechanisms() -> tuple[MechanismSpec, ...]:
    return MECHANISMS


@hookimpl
def polyattn_metrics() -> tuple[MetricSpec, ...]:
    return METRICS


@hookimpl
def polyattn_presets() -> list[PresetSpec]:
    return presets_from_toml(_MODULE, FAMILY)


_NARROW: tuple[tuple[str, dict[str, object]], ...] = (
    ("diffusion", {"num_steps": 7, "t": 3.0, "use_knn": True, "k": 3, "sigma": 2.0}),
    ("multiscale-diffusion", {"scales": 3, "t": 4.0, "laplacian_type": "unnormalized"}),
    ("ppr", {"use_knn": True, "k": 3}),
    ("chebyshev", {"order": 3, "use_knn": True, "k": 4}),
    ("wave", {"t": 3.0, "laplacian_type": "random-walk"}),
    ("advection-diffusion", {"k": 3, "t": 2.0, "sigma": 2.0}),
)


@hookimpl
def polyattn_conformance_cases() -> Iterator[ConformanceCase]:
    """As they are by default, and with another graph."""
    for name, options in _NARROW:
        yield ConformanceCase(mechanism=name)
        yield ConformanceCase(mechanism=name, name="other-graph", options=options)
