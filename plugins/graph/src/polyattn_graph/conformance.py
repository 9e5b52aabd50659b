"""Graphs for the conformance kit."""

from __future__ import annotations

from typing import Any

import numpy as np


def some_edges(
    rng: np.random.Generator, lead: tuple[int, ...], heads: int, queries: int, keys: int, dim: int
) -> dict[str, Any]:
    """A sparse graph in which some queries have no edge."""
    count = 2 * max(queries, keys)
    edges = np.stack([rng.integers(0, keys, count), rng.integers(0, queries, count)])
    return {"edges": np.unique(edges, axis=1)}


def edges_with_features(
    rng: np.random.Generator, lead: tuple[int, ...], heads: int, queries: int, keys: int, dim: int
) -> dict[str, Any]:
    """The same with three features each."""
    found = some_edges(rng, lead, heads, queries, keys, dim)
    return {**found, "edge_features": rng.standard_normal((found["edges"].shape[1], 3))}


def ring(
    rng: np.random.Generator, lead: tuple[int, ...], heads: int, queries: int, keys: int, dim: int
) -> dict[str, Any]:
    """A ring of all keys but the last few, with chords."""
    node = np.arange(max(1, keys - 2))
    edges = np.stack([node, np.roll(node, 1)])
    chords = rng.integers(0, len(node), (2, len(node) // 8))
    return {"edges": np.concatenate([edges, chords], axis=1)}
