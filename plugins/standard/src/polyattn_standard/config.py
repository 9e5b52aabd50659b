"""Options of the standard mechanisms."""

from __future__ import annotations

from typing import Self

from polyattn_core.streaming import ScaledConfig, StreamingConfig
from pydantic import Field, model_validator


class ScaledDotProductConfig(ScaledConfig):
    """Options of `scaled-dot-product`."""


class MultiHeadConfig(ScaledConfig):
    """Options of `multi-head`."""

    bias: bool = True
    """Add a learned vector after each projection."""


class CosineConfig(StreamingConfig):
    """Options of `cosine`."""

    scale: float = Field(default=10.0, gt=0)
    """Initial value of the learned gain of each head."""
    epsilon: float = Field(default=1e-6, gt=0, lt=1)
    """Vectors shorter than this are not stretched to unit length."""


class L2Config(ScaledConfig):
    """Options of `l2`."""


class GaussianConfig(StreamingConfig):
    """Options of `gaussian`."""

    bandwidth: float | tuple[float, ...] | None = None
    """Width σ, or one for each head; by default √(head size), the spread of standardised data."""

    @model_validator(mode="after")
    def _check_bandwidth(self) -> Self:
        widths = self.bandwidth if isinstance(self.bandwidth, tuple) else (self.bandwidth,)
        for width in widths:
            if width is not None and not width > 0:
                raise ValueError("bandwidth: every width must be greater than 0")
        if isinstance(self.bandwidth, tuple) and len(self.bandwidth) != self.heads:
            raise ValueError(f"bandwidth: one number, or {self.heads}, one for each head")
        return self


class SoftmaxOneConfig(ScaledConfig):
    """Options of `softmax-one`."""

    sink: float = 0.0
    """Initial score of the learned sink of each head; 0 adds 1 to the denominator."""


class SigmoidConfig(ScaledConfig):
    """Options of `sigmoid`."""

    offset: float | None = None
    """Added to the scores; −ln(number of keys) by default, which starts near the soft-max."""


class ReluSquaredConfig(ScaledConfig):
    """Options of `relu-squared`."""

    mean: bool = True
    """Divide by the number of keys."""


class SoftpickConfig(ScaledConfig):
    """Options of `softpick`."""

    epsilon: float = Field(default=1e-6, ge=0, lt=1)
    """Added to the denominator."""


class SparsemaxConfig(ScaledConfig):
    """Options of `sparsemax`."""


class Entmax15Config(ScaledConfig):
    """Options of `entmax15`."""
