"""Options of the sheaf mechanisms."""

from __future__ import annotations

from pydantic import Field

from polyattn_core.config import AttentionConfig
from polyattn_core.streaming import StreamingConfig


class SheafConfig(StreamingConfig):
    """Options of `sheaf`."""

    stalk: int | None = Field(default=None, ge=1, le=1 << 16)
    """Width of the space that queries and keys are compared in; the head size by default."""
    beta: float | None = Field(default=None, gt=0)
    """Inverse temperature; 1/√stalk by default."""


class ResidualSparseConfig(SheafConfig):
    """Options of `residual-sparse`."""

    threshold: float = Field(default=0.1, ge=0)
    """Pairs whose energy is at most this agree, and exchange nothing."""


class EarlyExitConfig(AttentionConfig):
    """Options of `early-exit`."""

    stalk: int | None = Field(default=None, ge=1, le=1 << 16)
    """Width of the space that queries and keys are compared in; the head size by default."""
    beta: float | None = Field(default=None, gt=0)
    """Inverse temperature; 1/√stalk by default."""
    step: float = Field(default=0.5, gt=0, le=1)
    """How far a state moves towards what it attends to."""
    tolerance: float = Field(default=1e-3, ge=0)
    """A query exits once a step moves it by at most this share of its length."""
    max_steps: int = Field(default=16, ge=1, le=1024)
    """Steps after which all queries exit."""
