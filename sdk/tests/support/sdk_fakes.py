"""Mechanisms of nobody, for tests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from polyattn_core.config import AttentionConfig, Schema
from polyattn_core.mechanism import Call, Mechanism
from polyattn_core.simd.rules import score_rule
from polyattn_core.streaming import ScaledConfig, StreamingMechanism


class Config(ScaledConfig):
    """Options of the streaming fakes."""


class Round(Schema):
    """A round shape."""

    kind: Literal["round"] = "round"
    radius: float = Field(default=1.0, gt=0)
    """Half its width."""


class Square(Schema):
    """A square shape."""

    kind: Literal["square"] = "square"


class OddConfig(AttentionConfig):
    """Options of every form that is shown."""

    shape: Annotated[Round | Square, Field(discriminator="kind")] = Round()
    """What it looks like."""
    sides: tuple[int, ...] = (1, 2)
    """Lengths."""
    word: str = Field(default="a|b [c]", max_length=9)
    """A [bracketed] word."""
    share: float = Field(default=0.5, ge=0, lt=1)
    """Of the whole."""


class Streamed(StreamingMechanism):
    """Soft-max attention."""


class Counting(Mechanism):
    """Returns the number of calls it has had since it was reset: a state."""

    def __init__(self, config: Any, *, spec: Any) -> None:
        super().__init__(config, spec=spec)
        self.calls = 0

    def reset(self) -> None:
        self.calls = 0

    def _forward(self, call: Call) -> Any:
        self.calls += 1
        shape = (*call.query.shape[:3], call.value.shape[3])
        return np.full(shape, float(self.calls), call.dtype)


class Gated(Mechanism):
    """Multiplies the first value by a gate for each query: a side input."""

    def _forward(self, call: Call) -> Any:
        gate = np.asarray(call.side["gate"], call.dtype)
        return call.value[:, :, :1] * gate[:, None]


class Centred(Mechanism):
    """Subtracts the mean of the queries: rows depend on one another."""

    def _forward(self, call: Call) -> Any:
        return call.query - call.query.mean(axis=2, keepdims=True)


class Broken(Mechanism):
    """Cannot be run."""

    def _forward(self, call: Call) -> Any:
        raise RuntimeError("out of [order]")


@score_rule
def doubled(dot: Any) -> Any:
    return dot + dot


class Doubled(StreamingMechanism):
    """With a score rule that nothing else has compiled."""

    def _rules(self, call: Call) -> Any:
        return [(doubled, ())]


@score_rule
def tripled(dot: Any) -> Any:
    return dot + dot + dot


class Tripled(StreamingMechanism):
    """Likewise."""

    def _rules(self, call: Call) -> Any:
        return [(tripled, ())]


def reference(*_: Any) -> None:
    """Nothing refers to it."""
