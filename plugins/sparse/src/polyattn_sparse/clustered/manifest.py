"""What attends among tokens that are alike."""

from __future__ import annotations

from dataclasses import replace

from polyattn_core.spec import Capabilities, MechanismSpec, SideInput

FAMILY = "sparse"
_MODULE = "polyattn_sparse.clustered"

_BUCKETS = Capabilities(
    masks=("causal", "padding", "prefix"),
    bias=False,
    exact=False,
    time="O(n b d) for b keys a bucket",
)

MECHANISMS = (
    MechanismSpec(
        name="lsh",
        family=FAMILY,
        summary="Soft-max over the keys that hash like the query, in any of several rounds",
        formula="softmax(s) v over h(q) = h(k)",
        factory=f"{_MODULE}.mechanisms:Lsh",
        config=f"{_MODULE}.config:LshConfig",
        reference=f"{_MODULE}.reference:lsh",
        papers=("2001.04451",),
        capabilities=_BUCKETS,
        sharpness="scale",
        aliases=("reformer",),
        tags=("softmax", "content", "long"),
    ),
    MechanismSpec(
        name="routing",
        family=FAMILY,
        summary="Soft-max over the keys that are nearest to the query's centroid",
        formula="softmax(s) v over μ(q) = μ(k)",
        factory=f"{_MODULE}.mechanisms:Routing",
        config=f"{_MODULE}.config:RoutingConfig",
        reference=f"{_MODULE}.reference:routing",
        papers=("2003.05997",),
        capabilities=replace(
            _BUCKETS,
            side_inputs=(
                SideInput(
                    name="centroids",
                    shape="(heads, clusters, head size)",
                    description="directions of the clusters, from `learn`; random ones without it",
                    required=False,
                ),
            ),
        ),
        sharpness="scale",
        tags=("softmax", "content", "long"),
    ),
    MechanismSpec(
        name="clustered",
        family=FAMILY,
        summary="Queries that are alike share the weights of their mean, apart from the top keys",
        formula="m_c softmax_T(s) v_T + Σ_{j∉T} softmax(q̄ kᵀ/√d)ⱼ vⱼ",
        factory=f"{_MODULE}.queries:Clustered",
        config=f"{_MODULE}.config:ClusteredConfig",
        reference=f"{_MODULE}.reference:clustered",
        papers=("2007.04825",),
        capabilities=Capabilities(
            causal=False,
            masks=("padding", "prefix"),
            bias=False,
            exact=False,
            time="O(n d (c + top))",
            memory="O(n (d + c))",
        ),
        sharpness="scale",
        tags=("softmax", "content", "long"),
    ),
)
