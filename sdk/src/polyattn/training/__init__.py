"""Training: losses, optimisers, schedules, curricula, miners, checkpoints.

Each is a class here, and an entry of the registry that `make` finds by kind and name, so that
plugins add theirs.

>>> import numpy as np
>>> from polyattn import training
>>> loss = training.make("loss", "info-nce", temperature=0.1)
>>> optimiser = training.make("optimiser", "adamw", learning_rate=1e-2)
>>> weights = {"weight": np.eye(4)}
>>> x = np.random.default_rng(0).standard_normal((8, 4))
>>> before, gradients = loss(x @ weights["weight"], x)
>>> optimiser.step(weights, {"weight": x.T @ gradients["query"]})
>>> loss(x @ weights["weight"], x)[0] < before
True
"""

from __future__ import annotations

import inspect
from typing import Any

import polyattn_registry as registry
from polyattn_core.errors import ArgumentError

from .checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from .curriculum import Competence, Curriculum, Stage, Stages
from .geometry import NaturalGradient, RiemannianAdam
from .losses import InfoNCE, LocalContrastive, Spectral, Triplet
from .miners import (
    DistanceWeightedMiner,
    HardMiner,
    InBatchMiner,
    Miner,
    RandomMiner,
    SemiHardMiner,
)
from .optimiser import Optimiser
from .optimisers import SGD, Adam, AdamW
from .schedules import (
    Annealing,
    Constant,
    Cosine,
    CosineAnnealing,
    ExponentialAnnealing,
    LinearAnnealing,
    LinearWarmUp,
    Schedule,
    Step,
    StepAnnealing,
)

KINDS = ("annealing", "curriculum", "loss", "miner", "optimiser", "schedule")
"""Kinds of entries that :func:`make` makes."""


def make(kind: str, name: str, /, *arguments: Any, **options: Any) -> Any:
    """An entry of the registry, made with its options.

    Parameters
    ----------
    kind
        ``"loss"``, ``"optimiser"``, ``"schedule"``, ``"annealing"``, ``"curriculum"``, ``"miner"``.
    name
        As `polyattn.available(kind=kind)` lists them.
    *arguments, **options
        What its class takes.

    Raises
    ------
    UnknownNameError
        With the name that was probably meant.
    ArgumentError
        Where it does not have an option, or not this value of one.
    """
    if kind not in KINDS:
        raise ArgumentError("kind", kind, f"one of {', '.join(KINDS)}")
    factory = registry.resolve(name, kind)
    try:
        inspect.signature(factory).bind(*arguments, **options)
    except TypeError as error:
        raise ArgumentError(f"options of {name}", str(error), _accepted(factory)) from None
    return factory(*arguments, **options)


def _accepted(factory: Any) -> str:
    return f"its own: {', '.join(inspect.signature(factory).parameters) or 'none'}"


__all__ = [
    "KINDS",
    "SGD",
    "Adam",
    "AdamW",
    "Annealing",
    "Checkpoint",
    "Competence",
    "Constant",
    "Cosine",
    "CosineAnnealing",
    "Curriculum",
    "DistanceWeightedMiner",
    "ExponentialAnnealing",
    "HardMiner",
    "InBatchMiner",
    "InfoNCE",
    "LinearAnnealing",
    "LinearWarmUp",
    "LocalContrastive",
    "Miner",
    "NaturalGradient",
    "Optimiser",
    "RandomMiner",
    "RiemannianAdam",
    "Schedule",
    "SemiHardMiner",
    "Spectral",
    "Stage",
    "Stages",
    "Step",
    "StepAnnealing",
    "Triplet",
    "load_checkpoint",
    "make",
    "save_checkpoint",
]
