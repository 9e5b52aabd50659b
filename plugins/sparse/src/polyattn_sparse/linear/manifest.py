"""What kernel features offer."""

from __future__ import annotations

from dataclasses import replace

from polyattn_core.spec import Capabilities, MechanismSpec

FAMILY = "sparse"
_MODULE = "polyattn_sparse.linear"

_FEATURES = Capabilities(
    masks=("causal", "padding", "prefix"),
    bias=False,
    partial=True,
    statistics=("weights", "log_sum_exp", "column_mass"),
    time="O(n d²)",
)

MECHANISMS = (
    MechanismSpec(
        name="linear",
        family=FAMILY,
        summary="Feature maps in place of the exponential: linear time, a running sum when causal",
        formula="φ(q) Σ φ(k) vᵀ / φ(q) Σ φ(k), φ = elu + 1",
        factory=f"{_MODULE}.mechanism:Linear",
        config=f"{_MODULE}.config:LinearConfig",
        reference=f"{_MODULE}.reference:linear_attention",
        papers=("2006.16236",),
        capabilities=_FEATURES,
        sharpness="scale",
        tags=("kernel-features", "long"),
    ),
    MechanismSpec(
        name="favor",
        family=FAMILY,
        summary="FAVOR+: positive orthogonal random features approximate the soft-max",
        formula="φ(q) Σ φ(k) vᵀ / φ(q) Σ φ(k), φᵣ(x) = exp(ωᵣ·x − ‖x‖²/2)/√m",
        factory=f"{_MODULE}.mechanism:Favor",
        config=f"{_MODULE}.config:FavorConfig",
        reference=f"{_MODULE}.reference:favor_attention",
        papers=("2009.14794",),
        capabilities=replace(_FEATURES, exact=False, time="O(n m d)", memory="O(n d + m d)"),
        leading=("features",),
        sharpness="scale",
        aliases=("performer",),
        tags=("kernel-features", "long", "random"),
    ),
    MechanismSpec(
        name="cosformer",
        family=FAMILY,
        summary="Rectified features, and weights that fall like a cosine with the distance",
        formula="relu(q)·relu(k) cos(π(i − j)/2M) v, normalised",
        factory=f"{_MODULE}.cosformer:Cosformer",
        config=f"{_MODULE}.config:CosformerConfig",
        reference=f"{_MODULE}.reference:cosformer",
        papers=("2202.08791",),
        capabilities=replace(_FEATURES, positional=True),
        tags=("kernel-features", "long"),
    ),
)
