"""The manifest: what this family offers."""

from __future__ import annotations

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import (
    Capabilities,
    ConformanceCase,
    MechanismSpec,
    PluginInfo,
    PresetSpec,
    presets_from_toml,
)

from . import __version__

FAMILY = "standard"
_MODULE = "polyattn_standard"
_SOFTMAX = ("weights", "log_sum_exp", "entropy", "column_mass", "top_weights")
_OTHER = ("weights", "entropy", "column_mass", "top_weights")
_PANELS = ("weights", "entropy", "column_mass")


def _spec(
    name: str, summary: str, formula: str, factory: str, config: str, reference: str,
    papers: tuple[str, ...], capabilities: Capabilities, sharpness: str = "scale",
    aliases: tuple[str, ...] = (), tags: tuple[str, ...] = (),
) -> MechanismSpec:  # fmt: skip
    return MechanismSpec(
        name=name,
        family=FAMILY,
        summary=summary,
        formula=formula,
        factory=f"{_MODULE}.{factory}",
        config=f"{_MODULE}.config:{config}",
        reference=f"{_MODULE}.reference:{reference}",
        papers=papers,
        capabilities=capabilities,
        sharpness=sharpness,
        aliases=aliases,
        tags=tags,
    )


_STREAMED = Capabilities(dropout=True, statistics=_OTHER)
_SOFTMAXED = Capabilities(dropout=True, statistics=_SOFTMAX, partial=True)
_PANEL = Capabilities(
    dropout=True, statistics=_OTHER, memory="O(n d) + 64 n a thread", time="O(n² d)"
)

MECHANISMS = (
    _spec(
        "scaled-dot-product",
        "The attention of the transformer",
        "softmax(q·kᵀ/√d) v",
        "softmax:ScaledDotProduct",
        "ScaledDotProductConfig",
        "scaled_dot_product",
        ("1706.03762",),
        _SOFTMAXED,
        aliases=("sdpa",),
        tags=("softmax",),
    ),
    _spec(
        "multi-head",
        "Heads with learned projections in and out; grouped and multi-query by kv_heads",
        "concatₕ softmax((x_q W_qᵀ)(x_k W_kᵀ)ᵀ/√d) (x_v W_vᵀ) · W_oᵀ",
        "multi_head:MultiHead",
        "MultiHeadConfig",
        "multi_head",
        ("1706.03762", "2305.13245", "2302.05442"),
        Capabilities(dropout=True, statistics=_SOFTMAX, parametric=True, value_size=False),
        aliases=("mha",),
        tags=("softmax", "needs-training"),
    ),
    _spec(
        "cosine",
        "The angle between query and key, with a learned gain",
        "softmax(g · q̂·k̂) v",
        "softmax:Cosine",
        "CosineConfig",
        "cosine",
        ("2010.04245",),
        Capabilities(dropout=True, statistics=_SOFTMAX, partial=True, parametric=True),
        tags=("softmax", "geometry"),
    ),
    _spec(
        "l2",
        "Squared Euclidean distance: Lipschitz where the dot product is not",
        "softmax(−‖q − k‖²/√d) v",
        "softmax:L2",
        "L2Config",
        "l2",
        ("2006.04710",),
        _SOFTMAXED,
        tags=("softmax", "geometry"),
    ),
    _spec(
        "gaussian",
        "A Gaussian kernel of a chosen width for each head",
        "softmax(−‖q − k‖²/(2σ²)) v",
        "softmax:Gaussian",
        "GaussianConfig",
        "gaussian",
        ("1908.11775",),
        _SOFTMAXED,
        sharpness="bandwidth",
        tags=("softmax", "geometry"),
    ),
    _spec(
        "softmax-one",
        "Soft-max with a learned sink: a head may attend to nothing",
        "eˢ / (e^sink + Σ eˢ) v",
        "softmax:SoftmaxOne",
        "SoftmaxOneConfig",
        "softmax_one",
        ("2309.17453", "2508.10925"),
        Capabilities(dropout=True, statistics=_SOFTMAX, partial=True, parametric=True),
        aliases=("softmax1", "sink"),
        tags=("softmax",),
    ),
    _spec(
        "sigmoid",
        "Each weight by itself: no competition between keys",
        "σ(q·kᵀ/√d − ln n) v",
        "elementwise:Sigmoid",
        "SigmoidConfig",
        "sigmoid",
        ("2409.04431",),
        _STREAMED,
        tags=("element-wise",),
    ),
    _spec(
        "relu-squared",
        "Squared rectified scores over the number of keys",
        "relu(q·kᵀ/√d)² / n v",
        "elementwise:ReluSquared",
        "ReluSquaredConfig",
        "relu_squared",
        ("2202.10447", "2309.08586"),
        _STREAMED,
        tags=("element-wise",),
    ),
    _spec(
        "softpick",
        "Rectified soft-max: exact zeros, no sinks, rows need not sum to 1",
        "relu(eˢ − 1) / (Σ |eˢ − 1| + ε) v",
        "sparse_weights:Softpick",
        "SoftpickConfig",
        "softpick",
        ("2504.20966",),
        _STREAMED,
        tags=("sparse-weights",),
    ),
    _spec(
        "sparsemax",
        "Euclidean projection of the scores onto the simplex: exact zeros",
        "max(s − τ, 0) v with Σ max(s − τ, 0) = 1",
        "sparse_weights:Sparsemax",
        "SparsemaxConfig",
        "sparsemax",
        ("1602.02068",),
        _PANEL,
        tags=("sparse-weights",),
    ),
    _spec(
        "entmax15",
        "Half-way between soft-max and sparsemax",
        "max(s/2 − τ, 0)² v with Σ max(s/2 − τ, 0)² = 1",
        "sparse_weights:Entmax15",
        "Entmax15Config",
        "entmax15",
        ("1905.05702",),
        _PANEL,
        aliases=("entmax",),
        tags=("sparse-weights",),
    ),
    _spec(
        "additive",
        "A small network compares each query with each key",
        "softmax(uᵀ tanh(W q + U k)) v",
        "additive:Additive",
        "AdditiveConfig",
        "additive",
        ("1409.0473",),
        Capabilities(
            dropout=True,
            statistics=_PANELS,
            parametric=True,
            time="O(n² hidden)",
            memory="O(n hidden)",
        ),
        sharpness="",
        aliases=("bahdanau",),
        tags=("softmax", "needs-training"),
    ),
    _spec(
        "differential",
        "The difference of two soft-max maps: common noise cancels",
        "(softmax(q₁·k₁ᵀ/√d) − λ softmax(q₂·k₂ᵀ/√d)) v",
        "differential:Differential",
        "DifferentialConfig",
        "differential",
        ("2410.05258",),
        Capabilities(dropout=True, statistics=("weights", "column_mass"), parametric=True),
        tags=("softmax", "needs-training"),
    ),
    _spec(
        "talking-heads",
        "Heads mix their scores before the soft-max and their weights after it",
        "R softmax(P q·kᵀ/√d) v",
        "talking_heads:TalkingHeads",
        "TalkingHeadsConfig",
        "talking_heads",
        ("2003.02436",),
        Capabilities(
            dropout=True,
            statistics=("weights", "column_mass"),
            parametric=True,
            time="O(n² (d + heads))",
        ),
        tags=("softmax", "needs-training"),
    ),
    _spec(
        "hopfield",
        "Queries settle on stored patterns, then attend: an associative memory",
        "ξ ← softmax(β ξ·Kᵀ) K, softmax(β ξ·Kᵀ) v",
        "hopfield:Hopfield",
        "HopfieldConfig",
        "hopfield",
        ("2008.02217",),
        Capabilities(dropout=True, statistics=_SOFTMAX, time="O(iterations n² d)"),
        sharpness="beta",
        tags=("softmax", "memory"),
    ),
    _spec(
        "stick-breaking",
        "Each key takes its part of what nearer keys have left",
        "Σ σ(s_j) Π_{l>j} (1 − σ(s_l)) v_j",
        "stick_breaking:StickBreaking",
        "StickBreakingConfig",
        "stick_breaking",
        ("2410.17980",),
        Capabilities(dropout=True, statistics=_PANELS, positional=True),
        tags=("element-wise",),
    ),
    _spec(
        "latent",
        "Keys and values of all heads from one small latent vector of each token",
        "concatₕ softmax((q, q_r)·(U c, k_r)ᵀ/√(d + r)) V c · Oᵀ",
        "latent:Latent",
        "LatentConfig",
        "latent",
        ("2405.04434",),
        Capabilities(
            dropout=True, parametric=True, positional=True, grouped=False, value_size=False
        ),
        aliases=("mla",),
        tags=("softmax", "needs-training", "decoding"),
    ),
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    return PluginInfo(
        family=FAMILY,
        summary="Scaled dot-product, multi-head, and other normalisers and distances",
        distribution="polyattn-standard",
        version=__version__,
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_mechanisms() -> tuple[MechanismSpec, ...]:
    return MECHANISMS


@hookimpl
def polyattn_presets() -> list[PresetSpec]:
    return presets_from_toml(_MODULE, FAMILY)


@hookimpl
def polyattn_conformance_cases() -> tuple[ConformanceCase, ...]:
    projected = {"check_weights_sum_values_to_the_output": "values and outputs are projected"}
    return (
        ConformanceCase(
            mechanism="multi-head",
            expected_failures={
                **projected,
                "check_empty_rows": "attending to nothing is projected too, to `output.bias`",
            },
        ),
        ConformanceCase(
            mechanism="multi-head",
            name="without-vectors",
            options={"bias": False},
            expected_failures=projected,
        ),
        ConformanceCase(
            mechanism="multi-head",
            name="of-language-models",
            options={
                "output_bias": False,
                "head_size": 6,
                "window": 9,
                "query_key_norm": True,
                "position": "rope",
            },
            expected_failures=projected,
        ),
        ConformanceCase(mechanism="differential", options={"dim": 48}),
        ConformanceCase(
            mechanism="differential",
            name="norm",
            options={"dim": 48, "norm": True},
            expected_failures={
                "check_weights_sum_values_to_the_output": "the output is normed afterwards",
                "check_weights_are_those_of_the_reference": "the output is normed afterwards",
                "check_dropout_is_unbiased": "the norm of a mean is not the mean of norms",
            },
        ),
        ConformanceCase(
            mechanism="hopfield",
            expected_failures={
                "check_log_sum_exp": "a mask changes what queries settle on, so scores too",
            },
        ),
        ConformanceCase(
            mechanism="hopfield",
            name="positions",
            options={"position": "rope", "dim": 48},
            expected_failures={
                "check_log_sum_exp": "a mask changes what queries settle on, so scores too",
            },
        ),
        ConformanceCase(mechanism="additive"),
        ConformanceCase(mechanism="additive", name="positions", options={"position": "alibi"}),
        ConformanceCase(mechanism="talking-heads"),
        ConformanceCase(mechanism="talking-heads", name="positions", options={"position": "t5"}),
        ConformanceCase(mechanism="stick-breaking"),
        ConformanceCase(
            mechanism="stick-breaking",
            name="paper",
            options={"causal": True, "diagonal": False},
            expected_failures={
                "check_dropout_is_unbiased": "the first rows see a key or two, so that all "
                "coordinates of their outputs stray together, which counts as many",
            },
        ),
        ConformanceCase(mechanism="latent", options={"latent": 5, "rope_size": 4}),
        ConformanceCase(
            mechanism="latent",
            name="expanded",
            options={"latent": 5, "rope_size": 0, "query_latent": 3, "absorbed": False},
        ),
        ConformanceCase(
            mechanism="latent",
            name="of-language-models",
            options={
                "latent": 5,
                "query_latent": 7,
                "head_size": 6,
                "value_size": 3,
                "norm": True,
                "rope_size": 4,
                "position": {"kind": "rope", "interleaved": True},
            },
        ),
    )
