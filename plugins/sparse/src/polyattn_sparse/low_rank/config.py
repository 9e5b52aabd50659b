"""Options of `efficient`, `linformer` and `nystrom`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from polyattn_core.config import AttentionConfig


class EfficientConfig(AttentionConfig):
    """Options of `efficient`."""

    scale: float = Field(default=1.0, gt=0)
    """Factor of queries and keys before their soft-maxes."""


class LinformerConfig(AttentionConfig):
    """Options of `linformer`."""

    tokens: int = Field(default=512, ge=1, le=1 << 20)
    """The most keys that a call may have: columns of the projections."""
    rank: int = Field(default=64, ge=1, le=1 << 16)
    """Rows that keys and values are projected to; by default, at most `tokens`."""
    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head size) by default."""

    @model_validator(mode="after")
    def _check_rank(self) -> Self:
        # A default must not make `tokens=32` an error.
        if "rank" in self.model_fields_set and self.rank > self.tokens:
            raise ValueError(f"rank: at most the {self.tokens} tokens")
        return self


class NystromConfig(AttentionConfig):
    """Options of `nystrom`."""

    landmarks: int = Field(default=64, ge=1, le=1 << 16)
    """Means of so many segments of the queries, and of the keys; of each token where it has
    fewer."""
    iterations: int = Field(default=6, ge=1, le=100)
    """Steps towards the pseudo-inverse. More make it exacter, where it is well conditioned."""
    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head size) by default."""
