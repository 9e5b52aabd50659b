"""Graphs as they are passed, brought to rows of edges.

===============================  ==================================================================
an array (2, edges) of integers  keys (sources) above queries (targets), as PyTorch Geometric has it
a SciPy sparse matrix            query i sees key j where entry (i, j) is stored
a networkx graph                 nodes in their order; v sees u along u → v, or both each other
a list of these                  one for each element of the batch
===============================  ==================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, ShapeError

if TYPE_CHECKING:
    from .kernels import Edges

ACCEPTED = (
    "an array (2, edges) of integers, a SciPy sparse matrix, a networkx graph, or a list of these, "
    "one for each element of the batch"
)


@dataclass(slots=True)
class Topology:
    """The edges of a batch, its graphs side by side."""

    edges: Edges
    feature: Array
    """Which row of the edge features belongs to each edge; −1 for a loop that was added."""
    rows: int
    """How many rows of features there are."""

    def features(self, given: Array) -> Array:
        """Features of each edge; those of added loops are means of what enters the node."""
        found = given[np.maximum(self.feature, 0)]
        added = self.feature < 0
        if added.any():
            found[added] = self._mean(found, added)[self.edges.rows[added]]
        return found

    def _mean(self, features: Array, added: Array) -> Array:
        own = ~added
        total = np.zeros((self.edges.queries, features.shape[1]), features.dtype)
        np.add.at(total, self.edges.rows[own], features[own])
        return total / self._entering(own)

    def _entering(self, own: Array) -> Array:
        count = np.bincount(self.edges.rows[own], minlength=self.edges.queries)
        return np.maximum(count, 1)[:, None]

    def pull_features(self, gradient: Array) -> Array:
        """The pullback of `features`, (rows, width)."""
        added = self.feature < 0
        own = ~added
        if added.any():
            gradient = gradient.copy()
            share = np.zeros((self.edges.queries, gradient.shape[1]), gradient.dtype)
            share[self.edges.rows[added]] = gradient[added]
            gradient[own] += (share / self._entering(own))[self.edges.rows[own]]
        out = np.zeros((self.rows, gradient.shape[1]), gradient.dtype)
        np.add.at(out, self.feature[own], gradient[own])
        return out


def pairs_of(graph: Any, argument: str = "edges") -> tuple[Array, int]:
    """Keys over queries (2, edges), and the number of edges that have features of their own."""
    if hasattr(graph, "tocoo"):
        matrix = graph.tocoo()
        return np.stack([matrix.col, matrix.row]).astype(np.int64), matrix.nnz
    if hasattr(graph, "nodes") and hasattr(graph, "edges"):
        place = {node: i for i, node in enumerate(graph.nodes)}
        ends = [(place[u], place[v]) for u, v, *_ in graph.edges]
        one = np.array(ends, np.int64).reshape(-1, 2).T
        if graph.is_directed():
            return one, one.shape[1]
        # A loop is its own reverse.
        back = one[::-1, one[0] != one[1]]
        return np.concatenate([one, back], axis=1), one.shape[1]
    try:
        array = np.asarray(graph)
    except ValueError:
        array = np.zeros(0)
    if array.ndim != 2 or array.shape[0] != 2 or (array.size and array.dtype.kind not in "iu"):
        raise ArgumentError(argument, graph, ACCEPTED)
    return array.astype(np.int64), array.shape[1]


def is_batch(graph: Any) -> bool:
    """Whether it is one graph for each element of a batch."""
    return isinstance(graph, list | tuple) and any(
        hasattr(g, "tocoo") or hasattr(g, "nodes") or np.ndim(g) == 2 for g in graph
    )


def _feature_rows(graph: Any, pairs: Array, count: int) -> Array:
    """Which features belong to each pair: reversed edges share those of their originals."""
    if pairs.shape[1] == count:
        return np.arange(count)
    twice = np.flatnonzero(pairs[0, :count] != pairs[1, :count])
    return np.concatenate([np.arange(count), twice])


def topology(
    graph: Any, batch: int, queries: int, keys: int, *, self_loops: bool, threads: int | None
) -> Topology:
    """Bring a graph, or one for each element of the batch, to rows."""
    from .kernels import Edges

    if is_batch(graph):
        if len(graph) != batch:
            raise ArgumentError("edges", f"{len(graph)} graphs", f"one, or {batch} for the batch")
        graphs = list(graph)
    else:
        graphs = [graph]
    if self_loops and queries != keys:
        raise ShapeError(
            "key", f"{keys} keys", f"as many as queries ({queries}): self_loops=True joins each"
        )
    parts, numbers, rows = [], [], 0
    for one in graphs:
        pairs, count = pairs_of(one)
        for row, size, what in ((0, keys, "keys"), (1, queries, "queries")):
            if pairs.size and not (pairs[row].min() >= 0 and pairs[row].max() < size):
                wrong = pairs[row].min() if pairs[row].min() < 0 else pairs[row].max()
                accepted = f"numbers of {what} (row {row}) from 0 to {size - 1}"
                raise ArgumentError("edges", f"node {wrong}", accepted)
        number = _feature_rows(one, pairs, count) + rows
        rows += count
        if self_loops:
            loop = pairs[0] == pairs[1]
            every = np.arange(queries)
            pairs = np.concatenate([pairs[:, ~loop], [every, every]], axis=1)
            number = np.concatenate([number[~loop], np.full(queries, -1)])
        parts.append(pairs)
        numbers.append(number)
    if len(graphs) == 1 and batch > 1:
        parts, numbers = parts * batch, numbers * batch
    source = np.concatenate([p[0] + b * keys for b, p in enumerate(parts)])
    target = np.concatenate([p[1] + b * queries for b, p in enumerate(parts)])
    order = np.argsort(target, kind="stable")
    counts = np.bincount(target, minlength=batch * queries)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    edges = Edges(indptr, source[order], batch * keys, threads)
    return Topology(edges, np.concatenate(numbers)[order], rows)


def undirected(graph: Any, nodes: int) -> tuple[Array, Array, Array, int]:
    """Each edge in both directions: `indptr`, `indices`, rows of features, and how many rows."""
    pairs, count = pairs_of(graph)
    if pairs.size and not (pairs.min() >= 0 and pairs.max() < nodes):
        wrong = pairs.min() if pairs.min() < 0 else pairs.max()
        raise ArgumentError("edges", f"node {wrong}", f"nodes from 0 to {nodes - 1}")
    number = _feature_rows(graph, pairs, count)
    both = np.concatenate([pairs, pairs[::-1]], axis=1)
    number = np.concatenate([number, number])
    keep = both[0] != both[1]
    # Of several edges between two nodes the first counts.
    code, first = np.unique(both[1, keep] * nodes + both[0, keep], return_index=True)
    target, source = np.divmod(code, nodes)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=nodes))])
    return indptr.astype(np.int64), source, number[keep][first], count
