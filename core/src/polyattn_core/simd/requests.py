"""What a call of the streaming engine takes, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from .masking import NO_MASK, EncodedMask
from .rule_encoding import EncodedRules
from .rules import ScoreRule
from .scores import ELEMENTWISE, ENTMAX15, SOFTMAX, SOFTPICK, SPARSEMAX, TOP_K

Array = npt.NDArray[Any]

NORMALISERS = {
    "softmax": SOFTMAX,
    "softpick": SOFTPICK,
    "elementwise": ELEMENTWISE,
    "sparsemax": SPARSEMAX,
    "entmax15": ENTMAX15,
    "top-k": TOP_K,
}


@dataclass(frozen=True, slots=True)
class Component:
    """Consecutive coordinates of queries and keys that are scored by themselves."""

    size: int
    scale: float
    """Factor of their products."""
    rules: Sequence[tuple[ScoreRule, Sequence[Any]]] = ()
    """Rules applied to them; row and column statistics are those of these coordinates."""


@dataclass(slots=True)
class Request:
    """One call of the engine. Arrays are (batch, heads, tokens, size), last axis contiguous."""

    query: Array
    key: Array
    value: Array
    scale: float
    normaliser: int = SOFTMAX
    rules: Sequence[tuple[ScoreRule, Sequence[Any]]] = ()
    """Applied in order to the scaled product, or to the sum of the components."""
    components: Sequence[Component] = ()
    """Instead of one scale: the score is a sum over slices that make up the last axis."""
    mask: EncodedMask = NO_MASK
    mask_queries: int = 0
    mask_keys: int = 0
    key_start: int = 0
    bias: Array | None = None
    """(bias batches, heads, queries, keys), with strides 0 where it is broadcast."""
    bias_batch: Array | None = None
    """Which of the bias batches belongs to each batch element."""
    relative: Array | None = None
    """(heads, queries + keys − 1): a bias by key − query + queries − 1. Not with `bias`."""
    sink: Array | None = None
    keep: float = 1.0
    seed: int = -1
    top: int = 0
    epsilon: float = 0.0
    block: int = 64
    """Keys of a tile."""
    threads: int | None = None
    reproducible: bool = False
    """The same bits for any threads, batch and division into calls: nothing is split by keys."""
    recomputes: bool = False
    """Weights are going to be recomputed from the state: leave it with all its digits."""
    entropy: bool = False
    """Leave the entropy of the rows of a soft-max too."""
    encoded: EncodedRules | None = field(default=None)

    def all_rules(self) -> list[tuple[ScoreRule, Sequence[Any]]]:
        """The rules of each component, then those of their sum."""
        return [*(rule for part in self.components for rule in part.rules), *self.rules]


@dataclass(slots=True)
class State:
    """What a forward call leaves for recomputing its weights."""

    out: Array
    first: Array
    second: Array
    entropy: Array | None = None


@dataclass(slots=True)
class EngineGradients:
    """Gradients by everything that entered a call."""

    query: Array
    key: Array
    value: Array
    bias: Array | None
    parameters: Array
    """(heads, parameters of all rules), those of components first."""
    sink: Array | None
    arrays: dict[int, Array] = field(default_factory=dict)
    """By arrays that rules index; by the column of `parameters` that stands for them."""
