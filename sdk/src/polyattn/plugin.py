"""The manifest: what the SDK itself offers."""

from __future__ import annotations

from polyattn_core.hooks import API_VERSION, hookimpl
from polyattn_core.spec import EntrySpec, PluginInfo

from . import __version__

FAMILY = "sdk"

LIVE = EntrySpec(
    kind="sink",
    name="live",
    family=FAMILY,
    summary="Diagnostics events as a table in the terminal that follows them",
    factory="polyattn.sinks:LiveSink",
)

NORMS = tuple(
    EntrySpec(
        kind="norm",
        name=name,
        family=FAMILY,
        summary=summary,
        factory=f"polyattn.pipeline.stages:{factory}",
        papers=(paper,),
    )
    for name, summary, factory, paper in (
        ("layer-norm", "Mean 0 and variance 1 over a token's width", "LayerNorm", "1607.06450"),
        ("rms-norm", "Mean square 1 over a token's width", "RMSNorm", "1910.07467"),
    )
)

TRAINING = tuple(
    EntrySpec(
        kind=kind,
        name=name,
        family=FAMILY,
        summary=summary,
        factory=f"polyattn.training:{factory}",
        papers=papers,
    )
    for kind, name, factory, summary, papers in (
        ("loss", "info-nce", "InfoNCE", "Each query finds its positive", ("1807.03748",)),
        ("loss", "local-contrastive", "LocalContrastive", "Neighbours attract, others repel", ()),
        ("loss", "spectral", "Spectral", "Against collapse into few directions", ("2303.00633",)),
        ("loss", "triplet", "Triplet", "Positives nearer than negatives", ("1503.03832",)),
        ("optimiser", "sgd", "SGD", "Gradient descent with momentum", ()),
        ("optimiser", "adam", "Adam", "Steps scaled by running moments", ("1412.6980",)),
        ("optimiser", "adamw", "AdamW", "Adam, weight decay apart", ("1711.05101",)),
        (
            "optimiser",
            "natural-gradient",
            "NaturalGradient",
            "Steepest descent in the Fisher metric",
            ("1412.1193",),
        ),
        (
            "optimiser",
            "riemannian-adam",
            "RiemannianAdam",
            "Adam on points of hyperbolic space",
            ("1810.00760",),
        ),
        ("schedule", "constant", "Constant", "The same value at every step", ()),
        ("schedule", "linear-warm-up", "LinearWarmUp", "Grows to a value and stays", ()),
        ("schedule", "cosine", "Cosine", "Warm-up, then half a cosine", ("1608.03983",)),
        ("schedule", "step", "Step", "A factor every so many steps", ()),
        ("annealing", "linear", "LinearAnnealing", "The same difference at every step", ()),
        ("annealing", "exponential", "ExponentialAnnealing", "The same factor at every step", ()),
        ("annealing", "cosine", "CosineAnnealing", "Slow at both ends", ()),
        ("annealing", "step", "StepAnnealing", "A few equal jumps", ()),
        ("curriculum", "stages", "Stages", "Stages one after the other", ()),
        ("curriculum", "competence", "Competence", "A growing share of examples", ("1903.09848",)),
        ("miner", "random", "RandomMiner", "All candidates equally likely", ()),
        ("miner", "hard", "HardMiner", "The nearest candidates", ()),
        ("miner", "semi-hard", "SemiHardMiner", "Just beyond the positives", ("1503.03832",)),
        (
            "miner",
            "distance-weighted",
            "DistanceWeightedMiner",
            "All distances equally likely",
            ("1706.07567",),
        ),
        ("miner", "in-batch", "InBatchMiner", "All others of a batch", ()),
    )
)


@hookimpl
def polyattn_plugin_info() -> PluginInfo:
    """The SDK as a plugin."""
    return PluginInfo(
        family=FAMILY,
        summary="A live view of diagnostics, norms for pipelines, training",
        distribution="polyattn",
        version=__version__,
        api_version=API_VERSION,
    )


@hookimpl
def polyattn_entries() -> tuple[EntrySpec, ...]:
    """Sinks, norms for pipelines, what trains."""
    return (LIVE, *NORMS, *TRAINING)
