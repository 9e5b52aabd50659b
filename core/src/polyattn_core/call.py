"""What passes between a mechanism's methods: a call in canonical form, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .arrays import Array
from .masks import Mask, MaskShape


@dataclass(slots=True)
class Call:
    """One call in canonical form: arrays (batch, heads, tokens, size) in the compute dtype."""

    query: Array
    key: Array
    value: Array
    shape: MaskShape
    mask: Mask | None = None
    bias: Array | None = None
    """As passed, in the compute dtype: (…, heads, queries, keys), not broadcast."""
    seed: int | None = None
    """Seed of dropout, where it acts."""
    side: Mapping[str, Any] = field(default_factory=dict)
    key_start: int = 0
    """Position of the first key passed, where only some of `shape.keys` are."""
    query_rotation: Array | None = None
    """Positions (…, queries) to rotate queries to, where keys come rotated from a cache."""
    top: int = 8
    """For the statistic `top_weights`: how many a row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype that is computed in."""
        return self.query.dtype

    def widened(self) -> Call:
        """The same call in float32."""
        query, key, value = (x.astype(np.float32) for x in (self.query, self.key, self.value))
        return replace(self, query=query, key=key, value=value)


@dataclass(slots=True)
class Gradients:
    """What a pullback returns; each array has the shape and dtype of its input."""

    query: Array
    key: Array
    value: Array
    bias: Array | None = None
    parameters: dict[str, Array] = field(default_factory=dict)
    side: dict[str, Array] = field(default_factory=dict)


@dataclass(slots=True)
class Observation:
    """An output with the statistics that were asked for; the others are None."""

    output: Array
    weights: Array | None = None
    log_sum_exp: Array | None = None
    entropy: Array | None = None
    column_mass: Array | None = None
    top_weights: Array | None = None
    """(…, heads, queries, top): the largest weights of each row, the largest first."""
    top_keys: Array | None = None
    """Of which keys they are: whole numbers, −1 (and weight 0) behind the last above 0."""


Pullback = Callable[[Array], Gradients]
