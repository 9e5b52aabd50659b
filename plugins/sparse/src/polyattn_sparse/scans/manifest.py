"""What recurrences offer."""

from __future__ import annotations

from polyattn_core.spec import Capabilities, MechanismSpec, SideInput

FAMILY = "sparse"
_MODULE = "polyattn_sparse.scans"

_STATE = SideInput(
    name="state",
    shape="(…, key heads, head size, value size)",
    description="the state to start from: a RecurrentState, or its array",
    required=False,
)
_LOG_DECAY = SideInput(
    name="log_decay",
    shape="(…, heads, tokens, 1 or head size)",
    description="logarithms of the decays, at most 0; learned, the same for all tokens, without it",
    required=False,
)
_BETA = SideInput(
    name="beta",
    shape="(…, heads, tokens)",
    description="how strongly each token writes, 0 to 1; learned, the same for all, without it",
    required=False,
)
_STEP = SideInput(
    name="step",
    shape="(…, heads, tokens)",
    description="step sizes before bias and softplus; 0 without it",
    required=False,
)


def _recurrence(
    name: str, summary: str, formula: str, factory: str, config: str, reference: str, paper: str,
    side: tuple[SideInput, ...], *, parametric: bool = True, memory: str = "O(n d)",
    aliases: tuple[str, ...] = (),
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
        capabilities=Capabilities(
            causal=False, masks=("padding",), bias=False, cross=False, positional=True,
            parametric=parametric, side_inputs=(*side, _STATE), time="O(n d²)", memory=memory,
        ),
        aliases=aliases,
        tags=("recurrent", "long"),
    )  # fmt: skip


MECHANISMS = (
    _recurrence(
        "retention",
        "A sum over the past that decays by a fixed factor a token",
        "S ← γ S + k vᵀ, o = Sᵀ q",
        "retention:Retention",
        "RetentionConfig",
        "retention",
        "2307.08621",
        (),
        parametric=False,
        aliases=("retnet",),
    ),
    _recurrence(
        "gated-linear",
        "A sum over the past whose channels decay as gates say, token by token",
        "S ← diag(α) S + k vᵀ, o = Sᵀ q",
        "gated:GatedLinear",
        "GatedLinearConfig",
        "gated_linear",
        "2312.06635",
        (_LOG_DECAY,),
        aliases=("gla",),
    ),
    _recurrence(
        "delta-rule",
        "A memory that replaces what it stored under a key",
        "S ← S + β k (v − Sᵀ k)ᵀ, o = Sᵀ q",
        "delta:DeltaRule",
        "DeltaConfig",
        "delta_rule",
        "2406.06484",
        (_BETA,),
        memory="O(n (d + chunk))",
        aliases=("deltanet",),
    ),
    _recurrence(
        "gated-delta",
        "The delta rule on a memory that also forgets as gates say",
        "S ← α S + β k (v − α Sᵀ k)ᵀ, o = Sᵀ q",
        "delta:GatedDelta",
        "DeltaConfig",
        "delta_rule",
        "2412.06464",
        (_LOG_DECAY, _BETA),
        memory="O(n (d + chunk))",
        aliases=("gated-deltanet",),
    ),
    _recurrence(
        "mamba2",
        "State-space duality: one step size a token says how much is kept and added",
        "S ← e^(−Δ eᵃ) S + Δ k vᵀ, o = Sᵀ q + D v",
        "mamba:Mamba2",
        "MambaConfig",
        "mamba2",
        "2405.21060",
        (_STEP,),
        aliases=("ssd",),
    ),
)
