"""Options of the mechanisms on graphs."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from polyattn_core.config import AttentionConfig
from polyattn_core.streaming import ScaledConfig


class EdgeConfig(AttentionConfig):
    """What every mechanism along edges has."""

    self_loops: bool = False
    """Give each node one edge to itself, in place of any that it has; needs as many keys as
    queries. Features of these edges are the mean of those that enter the node."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability to drop a weight while training."""


class GATConfig(EdgeConfig):
    """Options of `gat`."""

    negative_slope: float = Field(default=0.2, ge=0, lt=1)
    """Slope of the leaky rectifier below 0."""


class GATv2Config(GATConfig):
    """Options of `gatv2`."""

    edge_dim: int | None = Field(default=None, ge=1)
    """Width of edge features that enter the score; none by default."""


class EdgeFeaturedConfig(GATConfig):
    """Options of `edge-featured`."""

    edge_dim: int = Field(default=1, ge=1)
    """Width of the edge features."""


class GraphTransformerConfig(EdgeConfig):
    """Options of `graph-transformer`."""

    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head size) by default."""
    edge_dim: int | None = Field(default=None, ge=1)
    """Width of edge features that are added to keys and values; none by default."""


class PlacedConfig(AttentionConfig):
    """What mechanisms over all pairs have; the graph is their position axis."""

    position: ClassVar[None] = None
    reproducible: ClassVar[bool] = False
    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability to drop a weight while training."""
    softcap: float | None = Field(default=None, gt=0)
    """Cap scores softly, before biases: softcap · tanh(score / softcap)."""
    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head size) by default."""


class GraphRopeConfig(PlacedConfig):
    """Options of `graph-rope`."""

    coordinates: Literal["distance", "spectral"] = "distance"
    """Hops from anchors, or angles of the eigenvectors of the Laplacian."""
    axes: int = Field(default=1, ge=1, le=64)
    """Number of coordinates; pairs of channels take turns."""
    base: float = Field(default=10_000.0, gt=1)
    """Wavelengths reach 2π·base."""

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.head_dim % (2 * self.axes):
            raise ValueError(
                f"axes: twice as many must divide the head size, dim/heads = {self.head_dim}"
            )
        return self


class GraphormerConfig(PlacedConfig):
    """Options of `graphormer-bias`."""

    max_distance: int = Field(default=8, ge=1, le=1024)
    """Hops beyond which all distances share a bias, and no hop at all another."""
    edge_dim: int | None = Field(default=None, ge=1)
    """Width of edge features, whose scores are averaged along shortest paths; none by default."""


class DualSpaceConfig(ScaledConfig):
    """Options of `dual-space`."""

    mixing: float = Field(default=0.5, ge=0, le=1)
    """λ, the share of the flat score."""
    curvature: float = Field(default=1.0, gt=0)
    """Minus the curvature of the hyperbolic space."""
