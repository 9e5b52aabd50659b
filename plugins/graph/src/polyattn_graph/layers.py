"""The mechanisms along edges: `gat`, `gatv2`, `edge-featured`, `graph-transformer`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyattn_core.arrays import Array

from .base import EdgeMechanism, EdgePullback, Nodes, ScoreGradients, ScorePullback


def _glorot(rng: np.random.Generator, *shape: int) -> Array:
    bound = math.sqrt(6 / (shape[-2] + shape[-1]))
    return rng.uniform(-bound, bound, shape).astype(np.float32)


class GAT(EdgeMechanism):
    """Graph attention: a number for each node as query, one as key, and a soft-max over edges.

        softmax over edges (leaky(a_query·qᵢ + a_key·kⱼ)) vⱼ

    where leaky has `negative_slope` below 0 and the parameters `query` and `key` are (heads, head
    size). All queries rank the keys alike: see :class:`GATv2`. The linear maps of a layer come
    before, so that query, key and value are usually the same W x.

    O(edges · d) time, O(edges · heads + n d) memory, forward and backward. `edges` are what
    :mod:`polyattn_graph.edges` lists; a query without an edge gets 0. Gradients are by query, key,
    value and parameters. Shapes and errors otherwise are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`; the graph takes the place of masks.

    References
    ----------
    Veličković et al., Graph attention networks, arXiv:1710.10903.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> gat = pa.create("gat", dim=8, heads=2, self_loops=True)
    >>> x = np.random.default_rng(0).standard_normal((3, 8))
    >>> path = np.array([[0, 1, 1, 2], [1, 0, 2, 1]])  # sources over targets
    >>> gat(x, edges=path).shape
    (3, 8)
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        shape = (config.heads, config.head_dim)
        return {"query": _glorot(rng, *shape), "key": _glorot(rng, *shape)}

    def _edge_numbers(self, nodes: Nodes) -> Array | None:
        """What edges add to the score before it bends, (edges, heads, 1)."""
        return None

    def _scores(self, nodes: Nodes) -> tuple[Array, ScorePullback]:
        dtype = nodes.query.dtype
        a_query, a_key = (self.parameters[n].astype(dtype) for n in ("query", "key"))
        edges, slope = nodes.topology.edges, self.config.negative_slope
        left = np.einsum("nhd,hd->nh", nodes.query, a_query)[..., None]
        right = np.einsum("nhd,hd->nh", nodes.key, a_key)[..., None]
        edge = self._edge_numbers(nodes)
        ones = np.ones((left.shape[1], 1), dtype)

        def pull(gradient: Array) -> ScoreGradients:
            d_left, d_right, d_edge, _ = edges.additive_backward(
                left, right, edge, ones, slope, gradient
            )
            parameters = {
                "query": np.einsum("nhd,nhi->hd", nodes.query, d_left),
                "key": np.einsum("nhd,nhi->hd", nodes.key, d_right),
            }
            d_features = None
            if d_edge is not None and nodes.features is not None:
                parameters["edge"] = d_edge[..., 0].T @ nodes.features
                d_features = d_edge[..., 0] @ self.parameters["edge"].astype(dtype)
            return ScoreGradients(d_left * a_query, d_right * a_key, parameters, d_features)

        return edges.additive(left, right, edge, ones, slope), pull


class EdgeFeatured(GAT):
    """Graph attention whose scores also depend on features of the edge.

        softmax over edges (leaky(a_query·qᵢ + a_key·kⱼ + a_edge·eᵢⱼ)) vⱼ

    where `edge_features` (edges, edge_dim) are in the order of the edges as passed, shared by both
    directions of an undirected edge, and the parameter `edge` is (heads, edge_dim). What else there
    is to say is said of :class:`GAT`; gradients are by the features too.

    O(edges · (d + heads · edge_dim)) time, O(edges · heads + n d) memory.

    References
    ----------
    Veličković et al., Graph attention networks, arXiv:1710.10903; with edges as in Wang et al.,
    EGAT, ICANN 2021.

    Examples
    --------
    A road that costs more is seen less:

    >>> import numpy as np, polyattn as pa
    >>> layer = pa.create("edge-featured", dim=1)
    >>> layer.parameters.update({"query": [[0.0]], "key": [[0.0]], "edge": [[-5.0]]})
    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> roads = np.array([[1, 2], [0, 0]])
    >>> layer(x, edges=roads, edge_features=[[0.0], [np.log(3)]])[0]
    array([1.25])
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        edge = _glorot(rng, self.config.heads, self.config.edge_dim)
        return {**super()._initial_parameters(rng), "edge": edge}

    def _edge_numbers(self, nodes: Nodes) -> Array | None:
        assert nodes.features is not None
        a_edge = self.parameters["edge"].astype(nodes.query.dtype)
        return np.ascontiguousarray((nodes.features @ a_edge.T)[..., None])


class GATv2(EdgeMechanism):
    """Graph attention in which each query ranks the keys in its own way.

        softmax over edges (a·leaky(qᵢ + kⱼ + W_edge eᵢⱼ)) vⱼ

    where the parameter `attention` a is (heads, head size) and, with `edge_dim`, `edge` is (heads,
    head size, edge_dim). Bending before the product with a is what lets the ranking depend on the
    query, which :class:`GAT` cannot.

    O(edges · d) time; O(edges · heads + n d) memory, O(edges · d) with edge features. Edges,
    errors and gradients as for :class:`GAT`, and by the edge features.

    References
    ----------
    Brody et al., How attentive are graph attention networks?, arXiv:2105.14491.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> layer = pa.create("gatv2", dim=8, heads=2, edge_dim=3)
    >>> rng = np.random.default_rng(0)
    >>> x, features = rng.standard_normal((4, 8)), rng.standard_normal((5, 3))
    >>> edges = np.array([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    >>> layer(x, edges=edges, edge_features=features).shape
    (4, 8)
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        found = {"attention": _glorot(rng, config.heads, config.head_dim)}
        if config.edge_dim is not None:
            found["edge"] = _glorot(rng, config.heads, config.head_dim, config.edge_dim)
        return found

    def _scores(self, nodes: Nodes) -> tuple[Array, ScorePullback]:
        dtype = nodes.query.dtype
        attention = np.ascontiguousarray(self.parameters["attention"], dtype)
        edges, slope = nodes.topology.edges, self.config.negative_slope
        edge = _embedded(self, nodes)

        def pull(gradient: Array) -> ScoreGradients:
            d_query, d_key, d_edge, d_attention = edges.additive_backward(
                nodes.query, nodes.key, edge, attention, slope, gradient
            )
            parameters, d_features = {"attention": d_attention}, None
            if d_edge is not None:
                parameters["edge"], d_features = _pull_embedded(self, nodes, d_edge)
            return ScoreGradients(d_query, d_key, parameters, d_features)

        return edges.additive(nodes.query, nodes.key, edge, attention, slope), pull


class GraphTransformer(EdgeMechanism):
    """Dot-product attention along edges, whose features are added to keys and values.

        softmax over edges (scale · qᵢ·(kⱼ + W eᵢⱼ)) (vⱼ + W eᵢⱼ)

    where scale is 1/√(head size) unless given and, with `edge_dim`, the parameter `edge` W is
    (heads, head size, edge_dim); values then are as wide as keys.

    O(edges · d) time; O(edges · heads + n d) memory, O(edges · d) with edge features. Edges,
    errors and gradients as for :class:`polyattn_graph.layers.GAT`, and by the edge features.

    References
    ----------
    Shi et al., Masked label prediction: unified message passing model for semi-supervised
    classification, arXiv:2009.03509.

    Examples
    --------
    On the complete graph it is scaled dot-product attention:

    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((5, 8))
    >>> complete = np.indices((5, 5)).reshape(2, -1)
    >>> layer = pa.create("graph-transformer", dim=8, heads=2)
    >>> np.allclose(layer(x, edges=complete), pa.create("flash", dim=8, heads=2)(x))
    True
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        if config.edge_dim is None:
            return {}
        return {"edge": _glorot(rng, config.heads, config.head_dim, config.edge_dim)}

    def _edge_values(self, nodes: Nodes) -> tuple[Array, EdgePullback] | None:
        edge = _embedded(self, nodes)
        if edge is None:
            return None
        if edge.shape[-1] != nodes.value.shape[-1]:
            from polyattn_core.errors import ShapeError

            raise ShapeError(
                "value", f"head size {nodes.value.shape[-1]}",
                f"{edge.shape[-1]} like key, as edge features are added to both",
            )  # fmt: skip

        def pull(gradient: Array) -> tuple[dict[str, Array], Array]:
            d_edge, d_features = _pull_embedded(self, nodes, gradient)
            return {"edge": d_edge}, d_features

        return edge, pull

    def _scores(self, nodes: Nodes) -> tuple[Array, ScorePullback]:
        edges = nodes.topology.edges
        scale = nodes.query.dtype.type(self.config.scale or 1 / math.sqrt(nodes.query.shape[-1]))
        edge = _embedded(self, nodes)

        def pull(gradient: Array) -> ScoreGradients:
            gradient = gradient * scale
            d_query = edges.sum(gradient, nodes.key, edge)
            d_key = edges.sum_back(gradient, nodes.query)
            if edge is None:
                return ScoreGradients(d_query, d_key, {})
            d_edge = gradient[..., None] * nodes.query[edges.rows]
            d_parameter, d_features = _pull_embedded(self, nodes, d_edge)
            return ScoreGradients(d_query, d_key, {"edge": d_parameter}, d_features)

        return edges.products(nodes.query, nodes.key, edge) * scale, pull


def _embedded(mechanism: Any, nodes: Nodes) -> Array | None:
    """W e for each edge, (edges, heads, size)."""
    if nodes.features is None:
        return None
    edge = mechanism.parameters["edge"].astype(nodes.query.dtype)
    found = nodes.features @ edge.reshape(-1, edge.shape[-1]).T
    return np.ascontiguousarray(found).reshape(len(found), *edge.shape[:2])


def _pull_embedded(mechanism: Any, nodes: Nodes, gradient: Array) -> tuple[Array, Array]:
    assert nodes.features is not None
    edge = mechanism.parameters["edge"].astype(gradient.dtype)
    flat = gradient.reshape(len(gradient), -1)
    return (flat.T @ nodes.features).reshape(edge.shape), flat @ edge.reshape(-1, edge.shape[-1])
