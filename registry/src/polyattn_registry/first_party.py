"""The families that polyattn itself ships, and the names that are reserved for them.

The table is here, not in the families, because it has to be known when a family is *not* installed:
it turns an unknown name into an install hint, and keeps any other package from giving `flash` a
new meaning. A short name in this table always means ``<family>/<name>`` of the distribution
``polyattn-<family>``; only that of ``sdk`` is called ``polyattn``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "standard": (
            "scaled-dot-product",
            "multi-head",
            "additive",
            "cosine",
            "l2",
            "gaussian",
            "sigmoid",
            "softmax-one",
            "sparsemax",
            "entmax15",
            "relu-squared",
            "softpick",
            "differential",
            "talking-heads",
            "hopfield",
            "stick-breaking",
            "latent",
        ),
        "sparse": (
            "flash",
            "linear",
            "favor",
            "local-global",
            "sliding-window",
            "dilated",
            "strided",
            "block-sparse",
            "bigbird",
            "streaming",
            "top-k",
            "lsh",
            "routing",
            "clustered",
            "nystrom",
            "linformer",
            "cosformer",
            "efficient",
            "retention",
            "gated-linear",
            "delta-rule",
            "gated-delta",
            "mamba2",
        ),
        "graph": (
            "gat",
            "gatv2",
            "edge-featured",
            "graph-transformer",
            "graph-rope",
            "dual-space",
            "graphormer-bias",
        ),
        "hyperbolic": (
            "hyperbolic",
            "lorentz",
            "lorentz-cascade",
            "mixed-curvature",
        ),
        "moe": ("moe", "expert-choice", "mixture-of-heads"),
        "transport": (
            "sliced-wasserstein",
            "centroid-ot",
            "sinkhorn",
            "unbalanced-ot",
            "low-rank-ot",
        ),
        "curvature": (
            "fused-mixed-curvature",
            "quantised-mixed-curvature",
            "spherical",
            "kappa-stereographic",
        ),
        "topology": ("topology-gated", "mincut-gated"),
        "info-geometry": ("fisher-rao", "kl-bregman", "natural-gradient"),
        "info-bottleneck": ("vib", "ib-compressed"),
        "diffusion": (
            "diffusion",
            "multiscale-diffusion",
            "ppr",
            "chebyshev",
            "wave",
            "advection-diffusion",
        ),
        "sheaf": ("sheaf", "residual-sparse", "early-exit"),
        "report": ("auto",),
        # These offer diagnostics sinks.
        "core": (),
        "sdk": (),
    }
)
"""Family → the short names of its mechanisms."""

_DISTRIBUTIONS: Mapping[str, str] = MappingProxyType({"sdk": "polyattn"})
"""Family → its distribution, where that is not ``polyattn-<family>``."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "sdpa": "scaled-dot-product",
        "mha": "multi-head",
        "softmax1": "softmax-one",
        "sink": "softmax-one",
        "entmax": "entmax15",
        "mla": "latent",
        "longformer": "local-global",
        "streaming-llm": "streaming",
        "performer": "favor",
        "ssd": "mamba2",
        "poincare": "hyperbolic",
        "quantized-mixed-curvature": "quantised-mixed-curvature",
    }
)
"""Reserved second names → the short name that each stands for."""

_OWNERS: Mapping[str, str] = MappingProxyType(
    {name: family for family, names in FAMILIES.items() for name in names}
)

RESERVED_NAMES: tuple[str, ...] = (*_OWNERS, *ALIASES)
"""Every short name that only a first-party mechanism can have."""


def full_name_of(short: str) -> str | None:
    """What a reserved short name of a mechanism means; None where it is not reserved.

    >>> full_name_of("sdpa"), full_name_of("mine")
    ('standard/scaled-dot-product', None)
    """
    name = ALIASES.get(short, short)
    family = _OWNERS.get(name)
    return None if family is None else f"{family}/{name}"


def distribution_of(family: str) -> str | None:
    """The only distribution that may provide a reserved family; None for a family of others.

    >>> distribution_of("transport"), distribution_of("sdk"), distribution_of("acme")
    ('polyattn-transport', 'polyattn', None)
    """
    if family not in FAMILIES:
        return None
    return _DISTRIBUTIONS.get(family, f"polyattn-{family}")
