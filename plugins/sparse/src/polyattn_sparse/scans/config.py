"""Options of the recurrences."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from polyattn_core.config import AttentionConfig
from polyattn_core.positions import Rope


class RecurrenceConfig(AttentionConfig):
    """What every recurrence has."""

    chunk: Literal[16, 32, 64, 128, 256] = 64
    """Tokens that are computed at once. Changes speed and the order of rounding, nothing else."""


class RetentionConfig(RecurrenceConfig):
    """Options of `retention`."""

    scale: float | None = Field(default=None, gt=0)
    """Factor of the products; 1/√(head size) by default."""
    decays: tuple[float, ...] | None = None
    """The decay of each key head, above 0, at most 1; 1 − 2^(−5 − head) by default."""
    position: Rope | None = None
    """"rope" turns queries and keys with their positions, as RetNet does."""

    @field_validator("position", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("decays", mode="before")
    @classmethod
    def _from_array(cls, value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else value

    @model_validator(mode="after")
    def _check_decays(self) -> Self:
        if self.decays is not None:
            if len(self.decays) != self.key_heads:
                raise ValueError(f"decays: one for each of the {self.key_heads} key heads")
            if not all(0 < decay <= 1 for decay in self.decays):
                raise ValueError("decays: numbers above 0 and at most 1")
        return self


class GatedLinearConfig(RecurrenceConfig):
    """Options of `gated-linear`."""

    scale: float = Field(default=1.0, gt=0)
    """Factor of the outputs."""


class DeltaConfig(RecurrenceConfig):
    """Options of `delta-rule` and `gated-delta`."""

    scale: float = Field(default=1.0, gt=0)
    """Factor of the outputs."""
    normalise: bool = True
    """Divide queries and keys by their length. A key longer than √(2/β) makes the state grow."""


class MambaConfig(RecurrenceConfig):
    """Options of `mamba2`."""

    scale: float = Field(default=1.0, gt=0)
    """Factor of the outputs, apart from the skip."""
    skip: bool = True
    """Add D · value, with a learned D for each head."""
