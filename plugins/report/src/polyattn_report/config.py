"""Options of the report."""

from __future__ import annotations

from pydantic import Field

from polyattn_core.config import Schema


class ReportConfig(Schema):
    """How data are analysed."""

    sample: int = Field(default=256, ge=2, le=1 << 16)
    """Queries, keys or pairs that metrics look at, where looking at all would cost n²."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seed of what is drawn."""
