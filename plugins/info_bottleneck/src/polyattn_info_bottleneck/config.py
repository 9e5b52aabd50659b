"""Options of the information bottleneck."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from polyattn_core.config import Schema
from polyattn_core.errors import ArgumentError
from polyattn_core.positions import T5Bias
from polyattn_core.streaming import ScaledConfig


class IBConfig(Schema):
    """Options of `InformationBottleneck`."""

    beta: float = Field(default=0.1, ge=0, le=1e6)
    """Price of a nat that is kept."""
    z_dim: int = Field(default=64, ge=1, le=1 << 20)
    """Size of a code."""
    anneal_steps: int = Field(default=0, ge=0, le=1 << 40)
    """Steps over which β grows from 0 to its value; 0 for none."""


class TemperatureAnnealing(Schema):
    """A temperature that goes from `start` to `end` in `steps` steps, and stays there.

    >>> TemperatureAnnealing(start=4.0, end=1.0, steps=2, kind="exponential").at(1)
    2.0
    """

    start: float = Field(default=2.0, gt=0, le=1e6)
    """Temperature at step 0."""
    end: float = Field(default=1.0, gt=0, le=1e6)
    """Temperature from step `steps` on."""
    steps: int = Field(default=1000, ge=1, le=1 << 40)
    """Steps on the way."""
    kind: Literal["linear", "exponential", "cosine"] = "linear"
    """Equal differences, equal ratios, or half a wave."""

    def at(self, step: int) -> float:
        """The temperature at a step."""
        done = min(checked_step(step) / self.steps, 1.0)
        if self.kind == "exponential":
            return float(self.start * (self.end / self.start) ** done)
        if self.kind == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


class VIBConfig(ScaledConfig):
    """Options of `vib`."""

    z_dim: int = Field(default=16, ge=1, le=1 << 16)
    """Size of a code. `scale` is 1/√z_dim by default."""
    beta: float = Field(default=0.1, ge=0, le=1e6)
    """Price of a nat that codes keep."""
    anneal_steps: int = Field(default=0, ge=0, le=1 << 40)
    """Steps over which β grows from 0 to its value; 0 for none."""


class IBCompressedConfig(ScaledConfig):
    """Options of `ib-compressed`."""

    beta: float = Field(default=0.5, ge=0, le=1e4)
    """Price of a nat of information between query and key; 0 compresses nothing."""
    iterations: int = Field(default=2, ge=1, le=64)
    """Iterations of the marginal distribution of the keys."""

    @model_validator(mode="after")
    def _check_position(self) -> Self:
        if self.causal:
            raise ValueError("causal: False: each row depends on the queries beside it")
        if isinstance(self.position, T5Bias):
            raise ValueError('position: "rope", "alibi" or none; the prior takes the place of "t5"')
        return self


def checked_step(step: Any) -> int:
    """A step number."""
    if isinstance(step, bool) or not hasattr(step, "__index__") or step < 0:
        raise ArgumentError("step", step, "a whole number of at least 0")
    return int(step)
