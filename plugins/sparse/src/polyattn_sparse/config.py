"""Options of the mechanisms that compute the soft-max over some pairs."""

from __future__ import annotations

from typing import Literal, Self

from polyattn_core.streaming import ScaledConfig
from pydantic import Field, model_validator


class FlashConfig(ScaledConfig):
    """Options of `flash`."""

    block_size: int = Field(default=64, ge=16, le=1024, multiple_of=16)
    """Keys of a tile. 64 suits most processors; scratch memory grows with it."""


class SlidingWindowConfig(ScaledConfig):
    """Options of `sliding-window`."""

    window: int = Field(default=256, ge=1)
    """Keys in sight: causal, the last so many; otherwise half of them before and half after."""
    causal: bool = True
    """Hide later keys."""


class LocalGlobalConfig(ScaledConfig):
    """Options of `local-global`."""

    window: int = Field(default=512, ge=1)
    """Keys in sight: causal, the last so many; otherwise half of them before and half after."""
    global_tokens: int | tuple[int, ...] = 1
    """How many leading positions see and are seen by all, or which; negative from the end."""

    @model_validator(mode="after")
    def _check_global(self) -> Self:
        if isinstance(self.global_tokens, int) and self.global_tokens < 0:
            raise ValueError("global_tokens: a number of tokens cannot be negative")
        return self


class DilatedConfig(ScaledConfig):
    """Options of `dilated`."""

    window: int = Field(default=256, ge=1)
    """Keys in sight: causal, the last so many steps; otherwise half before and half after."""
    step: int = Field(default=2, ge=1)
    """Distance between keys in sight."""


class StridedConfig(ScaledConfig):
    """Options of `strided`."""

    stride: int = Field(default=128, ge=1)
    """Length of the near window and distance of the far keys; near √tokens is best."""
    pattern: Literal["strided", "fixed"] = "strided"
    """Every stride-th key counted from the query, or the ends of fixed blocks."""
    summary: int = Field(default=8, ge=1)
    """For `fixed`: keys at the end of each block that all see."""
    causal: bool = True
    """Hide later keys."""

    @model_validator(mode="after")
    def _check_summary(self) -> Self:
        if self.pattern == "fixed" and self.summary > self.stride:
            raise ValueError(f"summary: at most the stride {self.stride}")
        return self


class BlockSparseConfig(ScaledConfig):
    """Options of `block-sparse`."""

    block: int = Field(default=64, ge=1)
    """Tokens of a block."""
    neighbours: int = Field(default=1, ge=0)
    """Blocks in sight on each side of a query's own, where no layout is given."""
    layout: tuple[tuple[bool, ...], ...] | None = None
    """Which key blocks each query block sees; must fit the call's number of blocks."""

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        if self.layout is not None and (
            not self.layout or not self.layout[0] or len({len(row) for row in self.layout}) != 1
        ):
            raise ValueError("layout: rows of one length, at least one")
        return self


class BigBirdConfig(ScaledConfig):
    """Options of `bigbird`."""

    block: int = Field(default=64, ge=1)
    """Tokens of a block."""
    neighbours: int = Field(default=1, ge=0)
    """Blocks in sight on each side of a query's own."""
    global_blocks: int = Field(default=1, ge=0)
    """Leading blocks that see and are seen by all."""
    random_blocks: int = Field(default=3, ge=0)
    """Further key blocks drawn for each query block and head."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw."""


class StreamingWindowConfig(ScaledConfig):
    """Options of `streaming`."""

    window: int = Field(default=1024, ge=1)
    """The last so many keys are in sight."""
    sinks: int = Field(default=4, ge=0)
    """So do the first keys stay in sight."""


class TopKConfig(ScaledConfig):
    """Options of `top-k`."""

    k: int = Field(default=32, ge=1)
    """Keys that each query attends to; all where there are fewer. Equal scores are kept together."""
