"""Curricula: easy examples first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, ShapeError

from ._checks import real, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a curriculum: how long it lasts, and what holds in it."""

    name: str
    steps: int
    share: float = 1.0
    """Share of the examples, the easiest first, that are drawn from; above 0 and at most 1."""
    temperature: float = 0.07
    negatives: int = 1

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        real("share", self.share, above=0, most=1)
        real("temperature", self.temperature, above=0)
        whole("negatives", self.negatives, 1)


class Curriculum(ABC):
    """Base: which share of the examples, the easiest first, is learned from at a step."""

    @abstractmethod
    def share(self, step: int) -> float:
        """From above 0 to 1."""

    def choose(self, difficulties: Any, step: int, size: int, rng: np.random.Generator) -> Array:
        """Indices of `size` examples, drawn without replacement from the easiest.

        Parameters
        ----------
        difficulties
            A number for each example; of equals, the first ones are easier.
        step
            Steps taken.
        size
            How many; at most as many as there are examples. Where the share has fewer examples,
            it is widened to `size`.
        rng
            What draws.
        """
        numbers = np.asarray(difficulties, np.float64)
        if numbers.ndim != 1 or np.isnan(numbers).any():
            raise ShapeError("difficulties", numbers.shape, "one number for each example, no NaN")
        count = whole("size", size, 1)
        if count > len(numbers):
            raise ArgumentError("size", size, f"at most {len(numbers)}, the number of examples")
        easy = max(count, int(np.ceil(self.share(whole("step", step)) * len(numbers))))
        order = np.argsort(numbers, kind="stable")[:easy]
        return rng.choice(order, count, replace=False)


class Stages(Curriculum):
    """Stages one after the other; the last one stays.

    Examples
    --------
    >>> curriculum = Stages([Stage(name="easy", steps=2, share=0.3), Stage(name="all", steps=5)])
    >>> [curriculum.at(step).name for step in range(4)]
    ['easy', 'easy', 'all', 'all']
    """

    def __init__(self, stages: Iterable[Stage]) -> None:
        self.stages = tuple(stages)
        if not self.stages or not all(isinstance(stage, Stage) for stage in self.stages):
            raise ArgumentError("stages", self.stages, "one Stage or more")

    def at(self, step: int) -> Stage:
        """The stage at a step, from 0."""
        left = whole("step", step)
        for stage in self.stages:
            if left < stage.steps:
                return stage
            left -= stage.steps
        return self.stages[-1]

    def progress(self, step: int) -> float:
        """The share of all stages' steps that is over, at most 1."""
        return min(1.0, whole("step", step) / sum(stage.steps for stage in self.stages))

    def share(self, step: int) -> float:
        return self.at(step).share


class Competence(Curriculum):
    """The share grows from `start` to 1 within `steps` steps: c(t)ᵖ = c₀ᵖ + (1 − c₀ᵖ) t/T.

    Parameters
    ----------
    start
        c₀, above 0 and at most 1.
    steps
        T.
    power
        p > 0; 1 is linear, with 2 new examples come in slower the more there are.

    References
    ----------
    Platanios et al., Competence-based curriculum learning for neural machine translation,
    arXiv:1903.09848.
    """

    def __init__(self, *, start: float = 0.01, steps: int, power: float = 2.0) -> None:
        self.start = real("start", start, above=0, most=1)
        self.steps, self.power = whole("steps", steps, 1), real("power", power, above=0)

    def share(self, step: int) -> float:
        first = self.start**self.power
        done = min(1.0, whole("step", step) / self.steps)
        return float((first + (1 - first) * done) ** (1 / self.power))


__all__ = ["Competence", "Curriculum", "Stage", "Stages"]
