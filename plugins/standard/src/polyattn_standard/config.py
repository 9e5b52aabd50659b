"""Options of the standard mechanisms."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from polyattn_core.config import AttentionConfig
from polyattn_core.positions import Alibi, Position, Rope, T5Bias
from polyattn_core.streaming import ScaledConfig, StreamingConfig

DistanceBias = Annotated[Alibi | T5Bias, Field(discriminator="kind")]
"""Position axes that add to scores."""


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


class DifferentialConfig(ScaledConfig):
    """Options of `differential`."""

    lambda_init: float = Field(default=0.8, ge=0, lt=1)
    """Where λ starts; the paper has 0.8 − 0.6·exp(−0.3·layer), layers counted from 0."""
    norm: bool = False
    """Divide the output of each head by its root mean square, and multiply by 1 − lambda_init."""

    @model_validator(mode="after")
    def _check_halves(self) -> Self:
        if self.head_dim % 2:
            raise ValueError(f"dim: the head size {self.head_dim} is odd and has no halves")
        return self


def _by_name(value: object) -> object:
    """The name of a position axis stands for it with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


class HopfieldConfig(AttentionConfig):
    """Options of `hopfield`."""

    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability to drop a weight while training; of the last step, by which queries attend."""
    position: Annotated[Position | None, BeforeValidator(_by_name)] = None
    """Position axis of all steps: "rope", "alibi", "t5", or one of these with options as a
    mapping."""
    beta: float | None = Field(default=None, gt=0)
    """Inverse temperature β; 1/√(head size) by default."""
    iterations: int = Field(default=3, ge=0, le=1000)
    """Steps that a query takes at most before it attends."""
    tolerance: float = Field(default=1e-6, ge=0)
    """A query stops once no coordinate moves further than this."""


class PanelConfig(AttentionConfig):
    """Options of mechanisms that see all keys of a few queries at once."""

    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    softcap: float | None = Field(default=None, gt=0)
    """Cap scores softly: softcap · tanh(score / softcap)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability to drop a weight while training."""


class AdditiveConfig(PanelConfig):
    """Options of `additive`."""

    position: Annotated[DistanceBias | None, BeforeValidator(_by_name)] = None
    """Position axis: "alibi", "t5", or one of these with options as a mapping."""
    hidden: int | None = Field(default=None, ge=1, le=1 << 16)
    """Units that compare a query and a key; the head size by default."""


class TalkingHeadsConfig(PanelConfig):
    """Options of `talking-heads`."""

    position: Annotated[Position | None, BeforeValidator(_by_name)] = None
    """Position axis: "rope", "alibi", "t5", or one of these with options as a mapping."""
    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head size) by default."""


class StickBreakingConfig(PanelConfig):
    """Options of `stick-breaking`."""

    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head size) by default."""
    diagonal: bool = True
    """Let a token attend to the key at its own position; the paper's causal rule does not."""


class LatentConfig(AttentionConfig):
    """Options of `latent`."""

    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head_size + rope_size) by default."""
    latent: int = Field(default=64, ge=1, le=1 << 16)
    """Numbers that a token leaves in the cache for all heads."""
    query_latent: int | None = Field(default=None, ge=1, le=1 << 16)
    """Compress queries too, to so many numbers; not by default."""
    head_size: int | None = Field(default=None, ge=1, le=1 << 16)
    """Width of a head's queries and keys without the rotary part; dim / heads by default."""
    value_size: int | None = Field(default=None, ge=1, le=1 << 16)
    """Width of a head's values; that of its keys without the rotary part by default."""
    tied: bool = False
    """Compress a token by one matrix: keys and values have to be the same tokens. Otherwise each
    have a matrix of their own."""
    norm: bool = False
    """Divide latent vectors, of queries too, by their root mean square and multiply them by learned
    weights."""
    norm_epsilon: float = Field(default=1e-6, gt=0, lt=1)
    """Added to the mean square of `norm`."""
    rope_size: int = Field(default=16, ge=0, le=1 << 16, multiple_of=2)
    """Coordinates of the decoupled rotary key, which all heads share; 0 for no positions."""
    position: Annotated[Rope, BeforeValidator(_by_name)] = Rope()
    """How the rotary key turns: "rope", or a mapping with options of it, but for `size`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability to drop a weight while training."""
    absorbed: bool | None = None
    """Attend in the latent space, up-projections absorbed into queries and outputs; by default
    where queries are few."""

    @model_validator(mode="after")
    def _check_position(self) -> Self:
        if self.position.size is not None:
            raise ValueError("position: its size is the option rope_size")
        return self

    @property
    def key_size(self) -> int:
        """Width of a head's keys without the rotary part."""
        return self.head_dim if self.head_size is None else self.head_size

    @property
    def value_width(self) -> int:
        """Width of a head's values."""
        return self.key_size if self.value_size is None else self.value_size

    @property
    def read_width(self) -> int:
        """Width of what queries are projected from."""
        return self.dim if self.query_latent is None else self.query_latent
