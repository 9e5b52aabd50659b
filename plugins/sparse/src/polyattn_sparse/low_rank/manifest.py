"""What goes through few rows."""

from __future__ import annotations

from dataclasses import replace

from polyattn_core.spec import Capabilities, MechanismSpec

FAMILY = "sparse"
_MODULE = "polyattn_sparse.low_rank"

_SETS = Capabilities(causal=False, masks=("padding", "prefix"), bias=False)

MECHANISMS = (
    MechanismSpec(
        name="efficient",
        family=FAMILY,
        summary="Soft-max of queries over channels, of keys over tokens, then products",
        formula="softmax_d(q) (softmax_n(k)ᵀ v)",
        factory=f"{_MODULE}.mechanisms:Efficient",
        config=f"{_MODULE}.config:EfficientConfig",
        reference=f"{_MODULE}.reference:efficient",
        papers=("1812.01243",),
        capabilities=replace(_SETS, time="O(n d²)"),
        sharpness="scale",
        tags=("low-rank", "long"),
    ),
    MechanismSpec(
        name="linformer",
        family=FAMILY,
        summary="Keys and values projected to few rows along the sequence",
        formula="softmax(q (E k)ᵀ/√d) F v",
        factory=f"{_MODULE}.mechanisms:Linformer",
        config=f"{_MODULE}.config:LinformerConfig",
        reference=f"{_MODULE}.reference:linformer",
        papers=("2006.04768",),
        capabilities=replace(_SETS, positional=True, parametric=True, time="O(n r d)"),
        sharpness="scale",
        tags=("low-rank", "long"),
    ),
    MechanismSpec(
        name="nystrom",
        family=FAMILY,
        summary="The soft-max matrix from its rows and columns at landmarks",
        formula="softmax(q K̃ᵀ) softmax(Q̃ K̃ᵀ)⁺ softmax(Q̃ kᵀ) v",
        factory=f"{_MODULE}.mechanisms:Nystrom",
        config=f"{_MODULE}.config:NystromConfig",
        reference=f"{_MODULE}.reference:nystrom",
        papers=("2102.03902",),
        capabilities=replace(
            _SETS, positional=True, exact=False, time="O(n m d + m³)", memory="O(n d + m²)"
        ),
        sharpness="scale",
        aliases=("nystromformer",),
        tags=("low-rank", "long"),
    ),
)
