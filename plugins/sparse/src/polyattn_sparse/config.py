"""Options of the mechanisms that compute the soft-max over some pairs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from polyattn_core.streaming import ScaledConfig


def _some(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        # Its own text is about each form of the option by itself.
        raise ValueError("how many, at least 0, or whole numbers that say which") from None


Some = Annotated[Annotated[int, Field(ge=0)] | tuple[int, ...], WrapValidator(_some)]
"""The first so many, or those at the given places."""


class FlashConfig(ScaledConfig):
    """Options of `flash`."""

    block_size: int = Field(default=64, ge=16, le=1024, multiple_of=16)
    """Keys of a tile. 64 suits most processors; scratch memory grows with it."""


class SlidingWindowConfig(ScaledConfig):
    """Options of `sliding-window`."""

    window: int = Field(default=256, ge=1)
    """Causal: the last so many keys, its own included. Otherwise half of it (rounded down) before
    and half after its own."""
    causal: bool = True
    """Hide later keys."""


class LocalGlobalConfig(ScaledConfig):
    """Options of `local-global`."""

    window: int = Field(default=512, ge=1)
    """Causal: the last so many keys, its own included. Otherwise half of it (rounded down) before
    and half after its own."""
    global_tokens: Some = 1
    """How many leading positions see and are seen by all, or which; negative from the end."""


class DilatedConfig(ScaledConfig):
    """Options of `dilated`."""

    window: int = Field(default=256, ge=1)
    """Causal: so many keys, its own and every `step`-th before it. Otherwise half of it (rounded
    down) before and half after its own."""
    step: int = Field(default=2, ge=1)
    """Distance between keys in sight."""


class StridedConfig(ScaledConfig):
    """Options of `strided`."""

    stride: int = Field(default=128, ge=1)
    """Length of the near window and distance of the far keys; near √tokens is best."""
    pattern: Literal["strided", "fixed"] = "strided"
    """Every stride-th key counted from the query, or the ends of fixed blocks."""
    summary: int = Field(default=8, ge=1)
    """For `fixed`: keys at the end of each block that all see; at most the stride."""
    causal: bool = True
    """Hide later keys."""

    @model_validator(mode="after")
    def _check_summary(self) -> Self:
        # A default must not make `stride=4` an error.
        chosen = "summary" in self.model_fields_set
        if chosen and self.pattern == "fixed" and self.summary > self.stride:
            raise ValueError(f"summary: at most the stride {self.stride}")
        return self


class BlockSparseConfig(ScaledConfig):
    """Options of `block-sparse`."""

    block: int = Field(default=64, ge=1)
    """Tokens of a block."""
    neighbours: int = Field(default=1, ge=0)
    """Blocks in sight on each side of a query's own, where no layout is given."""
    layout: tuple[tuple[bool, ...], ...] | None = None
    """Which key blocks each query block sees: as many rows and columns as the call has of them,
    query blocks counted from its first query. A boolean array will do."""

    @field_validator("layout", mode="before")
    @classmethod
    def _from_array(cls, value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else value

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
    global_blocks: Some = 1
    """How many leading blocks see and are seen by all, or which; negative from the end."""
    random_blocks: int = Field(default=3, ge=0)
    """Further key blocks drawn for each query block and head."""
    seed: int = Field(default=0, ge=0, lt=1 << 64)
    """Seed of the draw."""


class StreamingWindowConfig(ScaledConfig):
    """Options of `streaming`."""

    window: int = Field(default=1024, ge=1)
    """The last so many keys, its own included. Not causal: half of it (rounded down) before and
    half after its own."""
    sinks: int = Field(default=4, ge=0)
    """First keys that stay in sight."""
    causal: bool = True
    """Hide later keys."""


class TopKConfig(ScaledConfig):
    """Options of `top-k`."""

    k: int = Field(default=32, ge=1)
    """Keys that each query attends to; all where there are fewer. Equal scores stay together."""
