"""Options of the standard mechanisms."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from polyattn_core.streaming import ScaledConfig, StreamingConfig


class ScaledDotProductConfig(ScaledConfig):
    """Options of `scaled-dot-product`."""


class MultiHeadConfig(ScaledConfig):
    """Options of `multi-head`."""

    bias: bool = True
    """Add a learned vector after each projection; not the `bias` on scores of a call."""
    output_bias: bool | None = None
    """The same for the last projection alone; as `bias` says by default."""
    head_size: int | None = Field(default=None, ge=1, le=1 << 16)
    """Width of a head behind the projections; dim / heads by default."""
    window: int | None = Field(default=None, ge=1)
    """Causal: see the last so many keys, its own included. Otherwise half of it (rounded down)
    before and half after its own. All keys by default."""
    query_key_norm: bool = False
    """Divide projected queries and keys by their root mean square, head by head, and multiply them
    by learned weights; before positions."""
    norm_epsilon: float = Field(default=1e-6, gt=0, lt=1)
    """Added to the mean square of `query_key_norm`."""

    @property
    def projected_size(self) -> int:
        """Width of a head behind the projections."""
        return self.head_dim if self.head_size is None else self.head_size

    @property
    def with_bias(self) -> frozenset[str]:
        """The projections that add a vector."""
        inputs = ("query", "key", "value") if self.bias else ()
        last = self.bias if self.output_bias is None else self.output_bias
        return frozenset((*inputs, "output") if last else inputs)


class CosineConfig(StreamingConfig):
    """Options of `cosine`."""

    scale: float = Field(default=10.0, gt=0)
    """Initial value of the learned gain of each head."""
    epsilon: float = Field(default=1e-6, gt=0, lt=1)
    """Vectors shorter than this are divided by it, not by their length."""


class L2Config(ScaledConfig):
    """Options of `l2`."""


Width = Annotated[float, Field(gt=0)]


class GaussianConfig(StreamingConfig):
    """Options of `gaussian`."""

    bandwidth: Width | tuple[Width, ...] | None = None
    """Width σ, or one for each head; by default (head size)^¼, as sharp as dot products."""

    @field_validator("bandwidth", mode="wrap")
    @classmethod
    def _explain(cls, value: Any, validate: Any) -> Any:
        try:
            return validate(value)
        except ValidationError:
            # Its own text is about each form of the option by itself.
            raise ValueError("a number greater than 0, or one for each head") from None

    @model_validator(mode="after")
    def _check_bandwidth(self) -> Self:
        if isinstance(self.bandwidth, tuple) and len(self.bandwidth) != self.heads:
            raise ValueError(f"bandwidth: one number, or {self.heads}, one for each head")
        return self


class SoftmaxOneConfig(ScaledConfig):
    """Options of `softmax-one`."""

    sink: float = Field(default=0.0, ge=-10_000, le=10_000)
    """Initial score of the learned sink of each head; 0 adds 1 to the denominator."""


class SigmoidConfig(ScaledConfig):
    """Options of `sigmoid`."""

    offset: float | None = Field(default=None, ge=-10_000, le=10_000)
    """Added to the scores; −ln(number of keys) by default, which starts near the soft-max."""


class ReluSquaredConfig(ScaledConfig):
    """Options of `relu-squared`."""

    mean: bool = True
    """Divide by the number of keys."""


class SoftpickConfig(ScaledConfig):
    """Options of `softpick`."""

    epsilon: float = Field(default=1e-6, ge=1e-12, lt=1)
    """Added to the denominator, so that a row of zero scores has one."""


class SparsemaxConfig(ScaledConfig):
    """Options of `sparsemax`."""


class Entmax15Config(ScaledConfig):
    """Options of `entmax15`."""
