"""Numbers that change with the steps of training: schedules of rates, annealing of temperatures.

Each is a function of the number of steps taken, from 0, and holds no state: to resume, ask for the
value at a later step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from polyattn_core.errors import ArgumentError

from ._checks import real, whole


class Schedule(ABC):
    """Base: ``schedule(step)`` is the value for the step after so many."""

    def __call__(self, step: int) -> float:
        """The value at a step, from 0."""
        return self._at(whole("step", step))

    @abstractmethod
    def _at(self, step: int) -> float: ...

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({options})"


class Constant(Schedule):
    """The same value at every step."""

    def __init__(self, value: float) -> None:
        self.value = real("value", value, least=0)

    def _at(self, step: int) -> float:
        return self.value


class LinearWarmUp(Schedule):
    """value · (step + 1)/warm_up during the first `warm_up` steps, then `value`."""

    def __init__(self, value: float, *, warm_up: int) -> None:
        self.value, self.warm_up = real("value", value, least=0), whole("warm_up", warm_up, 1)

    def _at(self, step: int) -> float:
        return self.value * min(1.0, (step + 1) / self.warm_up)


class Cosine(Schedule):
    """Linear warm-up, then half a cosine from `value` to `least` at step `steps`, where it stays.

    References
    ----------
    Loshchilov and Hutter, SGDR, arXiv:1608.03983.

    Examples
    --------
    >>> schedule = Cosine(1.0, steps=10, warm_up=2)
    >>> [round(schedule(step), 3) for step in (0, 1, 2, 6, 10, 11)]
    [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """

    def __init__(self, value: float, *, steps: int, warm_up: int = 0, least: float = 0.0) -> None:
        self.value = real("value", value, least=0)
        self.steps, self.warm_up = whole("steps", steps, 1), whole("warm_up", warm_up)
        self.least = real("least", least, least=0, most=self.value)
        if self.warm_up >= self.steps:
            raise ArgumentError("warm_up", warm_up, f"fewer than the {steps} steps in all")

    def _at(self, step: int) -> float:
        if step < self.warm_up:
            return self.value * (step + 1) / self.warm_up
        share = min(1.0, (step - self.warm_up) / (self.steps - self.warm_up))
        return self.least + (self.value - self.least) * (1 + math.cos(math.pi * share)) / 2


class Step(Schedule):
    """value · factor^⌊step/every⌋."""

    def __init__(self, value: float, *, every: int, factor: float = 0.1) -> None:
        self.value, self.every = real("value", value, least=0), whole("every", every, 1)
        self.factor = real("factor", factor, above=0, most=1)

    def _at(self, step: int) -> float:
        return float(self.value * self.factor ** (step // self.every))


class Annealing(Schedule):
    """Base of what goes from `start` to `end` within `steps` steps, and stays there.

    Both are above 0, as temperatures are, and either may be the larger.
    """

    def __init__(self, start: float, end: float, *, steps: int) -> None:
        self.start, self.end = real("start", start, above=0), real("end", end, above=0)
        self.steps = whole("steps", steps, 1)

    def _at(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self._between(step / self.steps)

    @abstractmethod
    def _between(self, share: float) -> float: ...


class LinearAnnealing(Annealing):
    """start + (end − start) · t, t = step/steps."""

    def _between(self, share: float) -> float:
        return self.start + (self.end - self.start) * share


class ExponentialAnnealing(Annealing):
    """start · (end/start)ᵗ, t = step/steps: the same factor at every step."""

    def _between(self, share: float) -> float:
        return float(self.start * (self.end / self.start) ** share)


class CosineAnnealing(Annealing):
    """end + (start − end) · (1 + cos π t)/2, t = step/steps: slow at both ends."""

    def _between(self, share: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * share)) / 2


class StepAnnealing(Annealing):
    """`levels` equal jumps from `start` to `end`, the last at step `steps`."""

    def __init__(self, start: float, end: float, *, steps: int, levels: int = 4) -> None:
        super().__init__(start, end, steps=steps)
        self.levels = whole("levels", levels, 1)

    def _between(self, share: float) -> float:
        return self.start + (self.end - self.start) * math.floor(share * self.levels) / self.levels


__all__ = [
    "Annealing",
    "Constant",
    "Cosine",
    "CosineAnnealing",
    "ExponentialAnnealing",
    "LinearAnnealing",
    "LinearWarmUp",
    "Schedule",
    "Step",
    "StepAnnealing",
]
