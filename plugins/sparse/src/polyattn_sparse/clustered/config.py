"""Options of `lsh`, `routing` and `clustered`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from polyattn_core.config import AttentionConfig


class BucketConfig(AttentionConfig):
    """What `lsh` and `routing` have."""

    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head size) by default."""
    seed: int = Field(default=0, ge=0, lt=1 << 64)
    """Seed of the random directions."""


class LshConfig(BucketConfig):
    """Options of `lsh`."""

    buckets: int | None = Field(default=None, ge=1, le=1 << 16)
    """Buckets of a round, 1 or an even number; by default so many that 128 keys share one."""
    rounds: int = Field(default=4, ge=1, le=32)
    """Times that tokens are hashed. A query sees the keys that it meets in any."""

    @model_validator(mode="after")
    def _check_buckets(self) -> Self:
        if self.buckets is not None and self.buckets > 1 and self.buckets % 2:
            raise ValueError("buckets: 1, or an even number: each direction has two ends")
        return self


class RoutingConfig(BucketConfig):
    """Options of `routing`."""

    clusters: int = Field(default=16, ge=1, le=1 << 16)
    """Number of centroids; about √tokens is best."""


class ClusteredConfig(AttentionConfig):
    """Options of `clustered`."""

    clusters: int = Field(default=64, ge=1, le=1 << 16)
    """Clusters of the queries of each head; one for each where there are fewer queries."""
    iterations: int = Field(default=5, ge=0, le=100)
    """Rounds of Lloyd's algorithm, from queries at equal distances."""
    top: int = Field(default=32, ge=0, le=1 << 16)
    """Keys of a cluster for which each query has weights of its own; 0 for none."""
    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head size) by default."""
