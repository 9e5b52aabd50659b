"""Options of the report."""

from __future__ import annotations

from pydantic import Field

from polyattn_core.config import AttentionConfig, Schema


class ReportConfig(Schema):
    """How data are analysed."""

    sample: int = Field(default=256, ge=2, le=1 << 16)
    """Queries, keys or pairs that metrics look at, where looking at all would cost n²."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seed of what is drawn."""


class AutoConfig(AttentionConfig):
    """Options of `auto`."""

    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    candidates: tuple[str, ...] = ()
    """Choose among these mechanisms only; all that are installed by default."""
    sample: int = Field(default=256, ge=2, le=1 << 16)
    """Queries, keys or pairs that the report looks at."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seed of what the report draws."""
