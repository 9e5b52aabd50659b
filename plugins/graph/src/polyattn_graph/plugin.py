"""The manifest: what this family offers."""

from __future__ import annotations

from collections.abc import Iterator

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import (
    Capabilities,
    ConformanceCase,
    MechanismSpec,
    PluginInfo,
    PresetSpec,
    SideInput,
    presets_from_toml,
)

from . import __version__

FAMILY = "graph"
_MODULE = "polyattn_graph"
_SOFTMAX = ("weights", "log_sum_exp", "entropy", "column_mass", "top_weights")

_EDGES = SideInput(
    name="edges",
    shape="(2, edges), keys over queries; a SciPy sparse matrix; a networkx graph; a list of these",
    description="the graph",
)


def _features(required: bool) -> SideInput:
    return SideInput(
        name="edge_features",
        shape="(edges, edge_dim)",
        description="numbers for each edge, in the order of the edges",
        required=required,
    )


def _along_edges(features: bool | None = None, *, value_size: bool = True) -> Capabilities:
    """`features`: whether edge features are required; None where there are none."""
    sides = (_EDGES,) if features is None else (_EDGES, _features(features))
    return Capabilities(
        causal=False,
        masks=(),
        bias=False,
        statistics=("weights", "log_sum_exp", "column_mass", "top_weights"),
        dropout=True,
        parametric=True,
        value_size=value_size,
        positional=True,
        side_inputs=sides,
        time="O(edges d)",
        memory="O(edges + n d)",
    )


def _everywhere(
    *sides: SideInput, parametric: bool = False, memory: str = "O(n d)"
) -> Capabilities:
    return Capabilities(
        statistics=_SOFTMAX,
        dropout=True,
        parametric=parametric,
        positional=bool(sides),
        cross=not sides,
        side_inputs=sides,
        memory=memory,
    )


def _spec(
    name: str, summary: str, formula: str, factory: str, config: str, reference: str, paper: str,
    capabilities: Capabilities, *, sharpness: str = "", tags: tuple[str, ...] = ("edges",),
) -> MechanismSpec:  # fmt: skip
    return MechanismSpec(
        name=name,
        family=FAMILY,
        summary=summary,
        formula=formula,
        factory=f"{_MODULE}.{factory}",
        config=f"{_MODULE}.config:{config}",
        reference=f"{_MODULE}.reference:{reference}",
        papers=(paper,),
        capabilities=capabilities,
        sharpness=sharpness,
        tags=tags,
    )


MECHANISMS = (
    _spec(
        "gat",
        "Graph attention: soft-max over edges of a sum of two numbers",
        "softmax over edges (leaky(a·q + b·k)) v",
        "layers:GAT",
        "GATConfig",
        "gat",
        "1710.10903",
        _along_edges(),
    ),
    _spec(
        "gatv2",
        "Graph attention in which each query ranks the keys in its own way",
        "softmax over edges (a·leaky(q + k + W e)) v",
        "layers:GATv2",
        "GATv2Config",
        "gatv2",
        "2105.14491",
        _along_edges(False),
    ),
    _spec(
        "edge-featured",
        "Graph attention whose scores depend on features of the edges",
        "softmax over edges (leaky(a·q + b·k + c·e)) v",
        "layers:EdgeFeatured",
        "EdgeFeaturedConfig",
        "gat",
        "1710.10903",
        _along_edges(True),
    ),
    _spec(
        "graph-transformer",
        "Dot products along edges, with edge features in keys and values",
        "softmax over edges (q·(k + W e)/√d) (v + W e)",
        "layers:GraphTransformer",
        "GraphTransformerConfig",
        "graph_transformer",
        "2009.03509",
        _along_edges(False, value_size=False),
        sharpness="scale",
    ),
    _spec(
        "graph-rope",
        "Rotary embedding by the place in a graph; on a path ordinary RoPE",
        "softmax(R(xᵢ)q·R(xⱼ)k/√d) v, x from hops or eigenvectors",
        "positions:GraphRope",
        "GraphRopeConfig",
        "graph_rope",
        "2104.09864",
        _everywhere(_EDGES),
        sharpness="scale",
        tags=("position",),
    ),
    _spec(
        "graphormer-bias",
        "A learned bias for the distance in a graph and the edges on the way",
        "softmax(q·kᵀ/√d + b[hops] + mean w·e) v",
        "positions:GraphormerBias",
        "GraphormerConfig",
        "graphormer_bias",
        "2106.05234",
        _everywhere(_EDGES, _features(False), parametric=True, memory="O(n² heads)"),
        sharpness="scale",
        tags=("position",),
    ),
    _spec(
        "dual-space",
        "A flat product less a hyperbolic distance",
        "softmax(λ q·kᵀ/√d − (1 − λ) d_H(q, k)) v",
        "positions:DualSpace",
        "DualSpaceConfig",
        "dual_space",
        "1806.03417",
        _everywhere(),
        sharpness="scale",
        tags=("hyperbolic",),
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Attention along the edges of graphs, and with positions in them",
        distribution="polyattn-graph",
        version=__version__,
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_mechanisms() -> tuple[MechanismSpec, ...]:
    return MECHANISMS


@hookimpl
def polyattn_presets() -> list[PresetSpec]:
    return presets_from_toml(_MODULE, FAMILY)


_CASES = f"{_MODULE}.conformance"


@hookimpl
def polyattn_conformance_cases() -> Iterator[ConformanceCase]:
    """Without and with edge features, and by each kind of position."""
    plain, featured, ring = (
        f"{_CASES}:{name}" for name in ("some_edges", "edges_with_features", "ring")
    )
    with_features: dict[str, object] = {"edge_dim": 3}
    yield ConformanceCase(mechanism="gat", inputs=plain)
    yield ConformanceCase(
        mechanism="gat", name="other-slope", inputs=plain, options={"negative_slope": 0.5}
    )
    yield ConformanceCase(mechanism="gatv2", inputs=plain)
    for name in ("gatv2", "edge-featured"):
        yield ConformanceCase(
            mechanism=name, name="features", inputs=featured, options=with_features
        )
    yield ConformanceCase(
        mechanism="graph-transformer",
        name="features",
        inputs=featured,
        options=with_features,
        expected_failures={
            "check_weights_sum_values_to_the_output": "edge features are added to the values"
        },
    )
    for coordinates in ("distance", "spectral"):
        for axes in (1, 2):
            yield ConformanceCase(
                mechanism="graph-rope",
                name=f"{coordinates}-{axes}",
                inputs=ring,
                options={"coordinates": coordinates, "axes": axes, "dim": 32},
            )
    yield ConformanceCase(mechanism="graphormer-bias", inputs=ring, options={"max_distance": 3})
    yield ConformanceCase(mechanism="dual-space")
    yield ConformanceCase(
        mechanism="dual-space", name="curved", options={"mixing": 0.2, "curvature": 2.0}
    )
