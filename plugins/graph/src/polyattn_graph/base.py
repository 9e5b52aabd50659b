"""What all mechanisms along edges share: everything but the score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_core.masks import MaskShape
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback

from .edges import Topology, topology

if TYPE_CHECKING:
    from .kernels import Edges


@dataclass(slots=True)
class Nodes:
    """Arrays of a call as the engine takes them: (nodes, heads, size)."""

    query: Array
    key: Array
    value: Array
    topology: Topology
    features: Array | None
    """(edges, edge_dim)."""


@dataclass(slots=True)
class ScoreGradients:
    """What the gradient by the scores comes to."""

    query: Array
    key: Array
    parameters: dict[str, Array]
    features: Array | None = None


ScorePullback = Callable[[Array], ScoreGradients]
EdgePullback = Callable[[Array], tuple[dict[str, Array], Array]]


class EdgeMechanism(Mechanism):
    """Attention of each query to the keys that it has an edge to.

    The rows of the last graph are remembered with a copy of what it was, and used again for an
    equal one. Calls from several threads are safe.
    """

    config: Any

    def __init__(self, config: Any, **rest: Any) -> None:
        super().__init__(config, **rest)
        self._last: tuple[Any, Array, Topology] | None = None

    # ---- what a mechanism says ----------------------------------------------------------------

    @abstractmethod
    def _scores(self, nodes: Nodes) -> tuple[Array, ScorePullback]:
        """Scores (edges, heads), and their pullback."""

    def _edge_values(self, nodes: Nodes) -> tuple[Array, EdgePullback] | None:
        """What edges add to the values, (edges, heads, size), and its pullback; None adds nothing.

        The pullback gives gradients by learned arrays and by the features.
        """
        return None

    def _added(self, nodes: Nodes) -> Array | None:
        found = self._edge_values(nodes)
        return None if found is None else found[0]

    # ---- the graph ----------------------------------------------------------------------------

    def _topology(self, call: Call) -> Topology:
        graph, shape = call.side["edges"], call.shape
        place = (shape.batch, shape.queries, shape.keys)
        array = graph if isinstance(graph, np.ndarray) else None
        last = self._last
        known = array is not None and last is not None and last[0] == place
        if known and last is not None and np.array_equal(graph, last[1]):
            return last[2]
        found = topology(
            graph, *place, self_loops=self.config.self_loops, threads=self.config.threads
        )
        if array is not None:
            self._last = (place, array.copy(), found)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def _nodes(self, call: Call) -> Nodes:
        graph = self._topology(call)
        group = call.query.shape[1] // call.key.shape[1]
        width = getattr(self.config, "edge_dim", None)
        features = call.side.get("edge_features")
        if width is None:
            if features is not None:
                accepted = "nothing: edge_dim= is not set, or not an option of this mechanism"
                raise ArgumentError("edge_features", "an array", accepted)
            taken = None
        else:
            if features is None:
                raise ArgumentError("edge_features", None, f"(edges, {width}), as edge_dim= says")
            given = as_array(features, "edge_features")
            if given.shape != (graph.rows, width):
                accepted = f"({graph.rows}, {width}): edges of the graph, edge_dim"
                raise ShapeError("edge_features", given.shape, accepted)
            taken = graph.features(given.astype(call.dtype))
        return Nodes(
            _flat(call.query), _flat(call.key, group), _flat(call.value, group), graph, taken
        )

    # ---- the contract -------------------------------------------------------------------------

    def _weights(self, call: Call, scores: Array, nodes: Nodes) -> tuple[Array, Array, Any]:
        weights, log_sum = nodes.topology.edges.softmax(scores)
        if call.seed is None:
            return weights, log_sum, None
        keep = 1 - self.config.dropout
        kept = np.random.default_rng(call.seed).random(weights.shape) < keep
        return weights, log_sum, kept.astype(weights.dtype) / weights.dtype.type(keep)

    def _forward(self, call: Call) -> Array:
        nodes = self._nodes(call)
        scores, _ = self._scores(nodes)
        weights, _, kept = self._weights(call, scores, nodes)
        if kept is not None:
            weights = weights * kept
        out = nodes.topology.edges.sum(weights, nodes.value, self._added(nodes))
        return _unflat(out, call.shape.batch)

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        nodes = self._nodes(call)
        edges = nodes.topology.edges
        scores, pull_scores = self._scores(nodes)
        weights, _, kept = self._weights(call, scores, nodes)
        thinned = weights if kept is None else weights * kept
        edge_values = self._edge_values(nodes)
        extra = None if edge_values is None else edge_values[0]
        out = edges.sum(thinned, nodes.value, extra)
        group = call.query.shape[1] // call.key.shape[1]

        def pullback(gradient: Array) -> Gradients:
            incoming = _flat(gradient)
            d_weights = edges.products(incoming, nodes.value, extra)
            if kept is not None:
                d_weights *= kept
            found = pull_scores(edges.softmax_backward(weights, d_weights))
            d_features = found.features
            if edge_values is not None:
                parameters, more = edge_values[1](thinned[..., None] * incoming[edges.rows])
                for name, array in parameters.items():
                    found.parameters[name] = found.parameters.get(name, 0) + array
                d_features = more if d_features is None else d_features + more
            side = {}
            if d_features is not None:
                dtype = np.asarray(call.side["edge_features"]).dtype
                pulled = nodes.topology.pull_features(d_features)
                side["edge_features"] = pulled.astype(dtype) if dtype.kind == "f" else pulled
            batch = call.shape.batch
            return Gradients(
                _unflat(found.query, batch),
                _grouped(_unflat(found.key, batch), group),
                _grouped(_unflat(edges.sum_back(thinned, incoming), batch), group),
                None,
                found.parameters,
                side,
            )

        return _unflat(out, call.shape.batch), pullback

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        nodes = self._nodes(call)
        edges = nodes.topology.edges
        weights, log_sum, _ = self._weights(call, self._scores(nodes)[0], nodes)
        out = edges.sum(weights, nodes.value, self._added(nodes))
        shape = call.shape
        found: dict[str, Array] = {}
        if "log_sum_exp" in wanted:
            found["log_sum_exp"] = _unflat(log_sum[..., None], shape.batch)[..., 0]
        if "column_mass" in wanted:
            ones = np.ones((edges.queries, shape.heads, 1), weights.dtype)
            found["column_mass"] = _unflat(edges.sum_back(weights, ones), shape.batch)[..., 0]
        if "weights" in wanted:
            # Several edges between the same two add up.
            whole: Array = np.zeros((edges.queries, shape.keys, shape.heads), weights.dtype)
            np.add.at(whole, (edges.rows, edges.indices % shape.keys), weights)
            whole = whole.reshape(shape.batch, shape.queries, shape.keys, shape.heads)
            found["weights"] = np.ascontiguousarray(whole.transpose(0, 3, 1, 2))
        if "top_weights" in wanted:
            found |= _largest(edges, weights, shape, call.top)
        return _unflat(out, shape.batch), found


def _largest(edges: Edges, weights: Array, shape: MaskShape, top: int) -> dict[str, Array]:
    """The largest weights of each query with their keys, from those of edges (edges, heads)."""
    # Several edges between the same two add up.
    ends = edges.rows.astype(np.int64) * shape.keys + edges.indices % shape.keys
    pairs, place = np.unique(ends, return_inverse=True)
    summed = np.zeros((len(pairs), shape.heads), weights.dtype)
    np.add.at(summed, place, weights)
    rows, keys = np.divmod(pairs, shape.keys)
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    first = rank < top
    top_weights = np.zeros((shape.heads, edges.queries, top), weights.dtype)
    top_keys = np.full(top_weights.shape, -1, np.int64)
    for head, own in enumerate(summed.T):
        order = np.lexsort((keys, -own, rows))[first]  # rows stay where they are
        at = (head, rows[first], rank[first])
        top_weights[at] = own[order]
        top_keys[at] = np.where(own[order] > 0, keys[order], -1)
    full = (shape.heads, shape.batch, shape.queries, top)
    return {
        "top_weights": np.ascontiguousarray(top_weights.reshape(full).swapaxes(0, 1)),
        "top_keys": np.ascontiguousarray(top_keys.reshape(full).swapaxes(0, 1)),
    }


def _flat(array: Array, group: int = 1) -> Array:
    """(batch, heads, tokens, size) as contiguous (nodes, heads, size), heads repeated."""
    if group > 1:
        array = np.repeat(array, group, axis=1)
    batch, heads, tokens, size = array.shape
    moved = np.ascontiguousarray(array.swapaxes(1, 2))
    return moved.reshape(batch * tokens, heads, size)


def _unflat(array: Array, batch: int) -> Array:
    return array.reshape(batch, -1, *array.shape[1:]).swapaxes(1, 2)


def _grouped(array: Array, group: int) -> Array:
    """Sums over the query heads that share a key head."""
    if group == 1:
        return array
    batch, heads, tokens, size = array.shape
    found: Array = array.reshape(batch, heads // group, group, tokens, size).sum(axis=2)
    return found
