"""States of attention over some of the keys, which merge."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class PartialState:
    """Attention over part of the keys: its normalised output and the log-sum-exp of its scores.

    Merging is associative and commutative up to rounding; a state over no visible key
    (log-sum-exp −inf) is neutral.
    """

    output: Array
    """(…, heads, queries, value size), in the compute dtype."""
    log_sum_exp: Array
    """(…, heads, queries), over the keys alone."""
    sink: Array | None = None
    """Score of the sink of each head, which enters once, when the state is finished."""
    dtype: Any = None
    """The dtype of the finished output."""

    def merge(self, *others: PartialState) -> PartialState:
        """The state over the keys of this one and all others."""
        for other in others:
            if self.output.shape != other.output.shape:
                raise ArgumentError(
                    "other", f"a state of shape {other.output.shape}", f"shape {self.output.shape}"
                )
        if not others:
            return self
        states = (self, *others)
        with np.errstate(invalid="ignore"):  # NaN stays NaN
            total = functools.reduce(np.logaddexp, (state.log_sum_exp for state in states))
        base = np.where(np.isneginf(total), 0, total)
        weights = [np.exp(state.log_sum_exp - base)[..., None] for state in states]
        output = _weighted(self.output, weights[0])
        for other, weight in zip(others, weights[1:], strict=True):
            output += _weighted(other.output, weight)
        return PartialState(output, total, self.sink, self.dtype)

    def finish(self) -> Array:
        """The output over all keys merged so far."""
        output = self.output
        if self.sink is not None:
            sink = self.sink[:, None]
            with np.errstate(invalid="ignore"):
                kept = np.exp(self.log_sum_exp - np.logaddexp(self.log_sum_exp, sink))
            output = output * kept[..., None]
        return output if self.dtype is None else output.astype(self.dtype)


def _weighted(output: Array, weight: Array) -> Array:
    if weight.all():
        found: Array = output * weight
        return found
    # A part that has no weight does not count, even where its values are not finite.
    return np.multiply(output, weight, out=np.zeros_like(output), where=weight != 0)
