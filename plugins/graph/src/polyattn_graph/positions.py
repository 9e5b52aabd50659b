"""Attention over all pairs that knows where in a graph its tokens are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.streaming import StreamingMechanism

from .edges import is_batch, undirected

if TYPE_CHECKING:
    from polyattn_core.simd.rules import ScoreRule

_DENSE = 4096  # nodes, up to which eigenvectors are computed


def _graphs(call: Call) -> list[Any]:
    graph, batch = call.side["edges"], call.shape.batch
    if not is_batch(graph):
        return [graph]
    if len(graph) != batch:
        raise ArgumentError("edges", f"{len(graph)} graphs", f"one, or {batch} for the batch")
    return list(graph)


def distance_coordinates(graph: Any, nodes: int, axes: int) -> Array:
    """Hops from `axes` anchors, (nodes, axes).

    The first anchor is node 0, each further one the node farthest from those before. What an anchor
    cannot reach is one hop beyond the farthest that it can.
    """
    from .kernels import shortest_paths

    indptr, indices, _, _ = undirected(graph, nodes)
    found = np.empty((nodes, axes))
    nearest = np.full(nodes, np.inf)
    anchor = 0
    for axis in range(axes):
        hops = shortest_paths(indptr, indices, np.array([anchor]), nodes)[0][0].astype(float)
        hops[hops < 0] = hops.max() + 1
        found[:, axis] = hops
        nearest = np.minimum(nearest, hops)
        anchor = int(nearest.argmax())
    return found


def spectral_coordinates(graph: Any, nodes: int, axes: int) -> Array:
    """Angles of the eigenvectors of D − W after the first, in units of a node, (nodes, axes).

    Along a path of n nodes eigenvector m is cos(πm(i + ½)/n), so that with m = 1 the angle is the
    place: n/π · arccos(u √(n/2)) − ½ = i. Other graphs are laid along the same scale. Signs are
    such that the first entry that is not 0 is positive. Axes beyond the number of eigenvectors
    are 0.
    """
    if nodes > _DENSE:
        raise ArgumentError(
            "coordinates", f"'spectral' for {nodes} nodes", f"at most {_DENSE}, or 'distance'"
        )
    indptr, indices, _, _ = undirected(graph, nodes)
    laplacian = np.zeros((nodes, nodes))
    rows = np.repeat(np.arange(nodes), np.diff(indptr))
    laplacian[rows, indices] = -1
    laplacian[np.arange(nodes), np.arange(nodes)] = np.diff(indptr)
    vectors = np.linalg.eigh(laplacian)[1][:, 1 : axes + 1]
    found = np.zeros((nodes, axes))
    if not vectors.shape[1]:
        return found
    first = (np.abs(vectors) > 1e-9).argmax(axis=0)
    vectors = vectors * np.sign(vectors[first, np.arange(vectors.shape[1])])
    angle = np.arccos(np.clip(vectors * math.sqrt(nodes / 2), -1, 1))
    found[:, : vectors.shape[1]] = nodes / math.pi * angle - 0.5
    return found


COORDINATES = {"distance": distance_coordinates, "spectral": spectral_coordinates}


def angles_of(coordinates: Array, size: int, base: float) -> Array:
    """By how much each pair of channels turns, (…, nodes, size/2): axes take turns."""
    axes = coordinates.shape[-1]
    frequency = base ** (-np.arange(0, size // axes, 2) * axes / size)
    turned = coordinates[..., None, :] * frequency[:, None]
    result: Array = turned.reshape(*coordinates.shape[:-1], size // 2)
    return result


class GraphRope(StreamingMechanism):
    """Rotary embedding by the place in a graph instead of the place in a sequence.

        softmax(scale · R(xᵢ)qᵢ · R(xⱼ)kⱼ) v

    where R turns pair p of the channels by x[p mod axes] · base^(−2⌊p/axes⌋·axes/size), and x are
    coordinates of the nodes: hops from anchors (``coordinates="distance"``), or angles of the
    eigenvectors of the Laplacian (``"spectral"``, up to 4,096 nodes). Scores depend on differences
    of coordinates alone. On a path both are the place along it: this then is ordinary RoPE. Edges
    count in both directions; each node is a query and a key.

    O(n² d + axes · edges) time, O(n d) memory; spectral coordinates O(n³) and O(n²). Masks, shapes
    and errors are those of :meth:`polyattn_core.mechanism.Mechanism.attend`; gradients are by
    query, key, value and bias.

    References
    ----------
    Su et al., RoFormer: enhanced transformer with rotary position embedding, arXiv:2104.09864. The
    eigenvectors as positions: Dwivedi and Bresson, A generalization of transformer networks to
    graphs, arXiv:2012.09699.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((6, 8))
    >>> path = np.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    >>> rope = pa.create("flash", dim=8, position="rope")
    >>> np.allclose(pa.create("graph-rope", dim=8)(x, edges=path), rope(x))
    True
    """

    def _coordinates(self, call: Call) -> Array:
        config, nodes = self.config, call.shape.keys
        find = COORDINATES[config.coordinates]
        return np.stack([find(graph, nodes, config.axes) for graph in _graphs(call)])

    def _request(self, call: Call) -> tuple[Any, Any]:
        size = call.query.shape[-1]
        angles = angles_of(self._coordinates(call), size, self.config.base)[:, None]
        cosine, sine = np.cos(angles), np.sin(angles)
        query, key = _turn(call.query, cosine, sine), _turn(call.key, cosine, sine)
        request, _ = super()._request(replace(call, query=query, key=key))

        def undo(d_query: Array, d_key: Array) -> tuple[Array, Array]:
            return _turn(d_query, cosine, -sine), _turn(d_key, cosine, -sine)

        return request, undo


def _turn(array: Array, cosine: Array, sine: Array) -> Array:
    cosine, sine = cosine.astype(array.dtype), sine.astype(array.dtype)
    half = array.shape[-1] // 2
    out = np.empty(array.shape, array.dtype)
    x, y = array[..., :half], array[..., half:]
    # What is behind a mask may be infinite, and stays there.
    out[..., :half] = x * cosine - y * sine
    out[..., half:] = x * sine + y * cosine
    return out


class GraphormerBias(StreamingMechanism):
    """Scores with a learned bias for the distance in a graph, and for the edges on the way.

        softmax(scale · q·kᵀ + b[hops(i, j)] + mean of w·e along the shortest path) v

    where the parameter `distance` b is (heads, max_distance + 2): 0 … max_distance hops, and last
    what is farther or out of reach. With `edge_dim` the parameter `edge` w is (heads, edge_dim),
    and edges of one shortest path of at most max_distance hops count. Edges count in both
    directions; each node is a query and a key. Biases start at 0.

    O(n² d + n · edges) time; distances and biases are O(n² · heads) memory, which is what bounds
    the size of graphs here. Masks, shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`; gradients are by query, key, value, bias,
    parameters and edge features.

    References
    ----------
    Ying et al., Do transformers really perform bad for graph representation?, arXiv:2106.05234,
    whose w also depends on the place along the path.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> layer = pa.create("graphormer-bias", dim=1, max_distance=2)
    >>> layer.parameters.update({"distance": [[0.0, -1.0, -2.0, -50.0]]})
    >>> path = np.array([[0, 1, 2], [1, 2, 3]])
    >>> layer(np.zeros((4, 1)), np.zeros((4, 1)), np.eye(4), edges=path)[0].round(3)
    array([0.665, 0.245, 0.09 , 0.   ])
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        found = {"distance": np.zeros((config.heads, config.max_distance + 2), np.float32)}
        if config.edge_dim is not None:
            found["edge"] = np.zeros((config.heads, config.edge_dim), np.float32)
        return found

    def _features(self, call: Call) -> Array | None:
        given, width = call.side.get("edge_features"), self.config.edge_dim
        if width is None:
            if given is not None:
                raise ArgumentError("edge_features", "an array", "nothing: edge_dim= is not set")
            return None
        if given is None:
            raise ArgumentError("edge_features", None, f"(edges, {width}), as edge_dim= says")
        array = as_array(given, "edge_features")
        if array.ndim != 2 or array.shape[1] != width:
            raise ShapeError("edge_features", array.shape, f"(edges, {width})")
        return array.astype(call.dtype)

    def _paths(self, call: Call) -> tuple[list[_Paths], int]:
        found, rows = [], 0
        for graph in _graphs(call):
            found.append(_Paths(graph, call.shape.keys, self.config, rows))
            rows += found[-1].rows
        return found, rows

    def _biased(self, call: Call) -> tuple[Call, Any]:
        shape, dtype = call.shape, call.dtype
        features = self._features(call)
        paths, rows = self._paths(call)
        if features is not None and len(features) != rows:
            raise ShapeError("edge_features", features.shape, f"{rows} rows, one for each edge")
        table = self.parameters["distance"].astype(dtype)
        scores = None
        if features is not None:
            scores = features @ self.parameters["edge"].astype(dtype).T
        own = np.stack([p.bias(table, scores) for p in paths])
        full = own
        if call.bias is not None:
            lead = call.bias.reshape((1,) * max(0, 3 - call.bias.ndim) + call.bias.shape)
            lead = np.broadcast_to(lead, (*shape.lead, *lead.shape[-3:]))
            full = own + lead.reshape(shape.batch, *lead.shape[-3:])
        full = np.broadcast_to(full, (shape.batch, *full.shape[1:]))
        bias = np.ascontiguousarray(full).reshape(*shape.lead, *full.shape[1:])
        return replace(call, bias=bias), (paths, scores, features)

    def _request(self, call: Call) -> tuple[Any, Any]:
        return super()._request(self._biased(call)[0])

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        _, (paths, scores, features) = self._biased(call)
        out, pull = super()._vjp(call)

        def pullback(gradient: Array) -> Gradients:
            found = pull(gradient)
            shape = call.shape
            assert found.bias is not None
            d_full = found.bias.reshape(shape.batch, shape.heads, shape.queries, shape.keys)
            table = np.zeros((shape.heads, self.config.max_distance + 2), call.dtype)
            d_scores = None if scores is None else np.zeros_like(scores)
            for b in range(shape.batch):
                path = paths[b if len(paths) > 1 else 0]
                path.pull(d_full[b], table, d_scores)
            found.parameters["distance"] = table
            if d_scores is not None and features is not None:
                found.parameters["edge"] = d_scores.T @ features
                given = np.asarray(call.side["edge_features"]).dtype
                d_features = d_scores @ self.parameters["edge"].astype(call.dtype)
                kind = given if given.kind == "f" else d_features.dtype
                found.side["edge_features"] = d_features.astype(kind)
            found.bias = None if call.bias is None else _summed(d_full, call)
            return found

        return out, pullback


def _summed(d_full: Array, call: Call) -> Array:
    from polyattn_core.arrays import unbroadcast

    assert call.bias is not None
    return unbroadcast(d_full.reshape(*call.shape.lead, *d_full.shape[1:]), call.bias.shape)


class _Paths:
    """Shortest paths between all nodes of a graph, of at most so many hops."""

    def __init__(self, graph: Any, nodes: int, config: Any, first: int) -> None:
        from .kernels import shortest_paths

        indptr, indices, feature, self.rows = undirected(graph, nodes)
        self.most = config.max_distance
        wanted = config.edge_dim is not None
        everyone = np.arange(nodes)
        hops, last = shortest_paths(indptr, indices, everyone, self.most, edges=wanted)
        self.bucket = np.where(hops < 0, self.most + 1, hops)
        if wanted:
            self.hops = hops
            ends = np.repeat(everyone, np.diff(indptr))
            # Of the pairs at each distance: the pair without the last hop, and its edge.
            self.steps = []
            for d in range(1, self.most + 1):
                i, j = (hops == d).nonzero()
                edge = last[i, j]
                self.steps.append((i, j, ends[edge], first + feature[edge]))

    def bias(self, table: Array, scores: Array | None) -> Array:
        """(heads, nodes, nodes)."""
        found: Array = table[:, self.bucket]
        if scores is not None:
            total = np.zeros_like(found)
            for i, j, before, edge in self.steps:
                total[:, i, j] = total[:, i, before] + scores[edge].T
            found = found + total / np.maximum(self.hops, 1)
        return found

    def pull(self, gradient: Array, table: Array, scores: Array | None) -> None:
        """Add what the gradient by the bias comes to."""
        for head in range(len(table)):
            flat = gradient[head].ravel()
            table[head] += np.bincount(self.bucket.ravel(), flat, table.shape[1])
        if scores is None:
            return
        total = gradient / np.maximum(self.hops, 1)
        for i, j, before, edge in reversed(self.steps):
            np.add.at(scores, edge, total[:, i, j].T)
            for head in range(len(table)):
                np.add.at(total[head], (i, before), total[head, i, j])


class DualSpace(StreamingMechanism):
    """Scores of two geometries at once: a flat product and a hyperbolic distance.

        softmax(λ · scale · q·kᵀ − (1 − λ) d_H(q, k)) v

    where d_H is the distance of the points of the hyperboloid above q and k: with curvature −c,
    d_H = arcosh(√(1 + c‖q‖²) √(1 + c‖k‖²) − c q·k)/√c; λ is `mixing`, scale 1/√(head size) unless
    given. Both parts are functions of one product and two norms, and share a pass over the tiles.

    O(n² d) time, O(n d) memory. Masks, shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`. The distance has no derivative where q = k;
    0 stands there. Distances too small for the dtype (10⁻³ in float32) are taken for 0.

    References
    ----------
    The hyperboloid: Nickel and Kiela, Learning continuous hierarchies in the Lorentz model of
    hyperbolic geometry, arXiv:1806.03417.

    Examples
    --------
    The distance from the origin to a point at x is arsinh x:

    >>> import numpy as np, polyattn as pa
    >>> dual = pa.create("dual-space", dim=1, mixing=0.0)
    >>> dual([0.0], [[0.0], [np.sinh(np.log(3))]], np.eye(2)).round(6)
    array([0.75, 0.25])
    """

    def _scale(self, call: Call) -> float:
        return 1.0

    def _transform(self, query: Array, key: Array) -> tuple[Array, Array, Any]:
        root = query.dtype.type(math.sqrt(self.config.curvature))
        return query * root, key * root, lambda d_query, d_key: (d_query * root, d_key * root)

    def _rules(self, call: Call) -> Sequence[tuple[ScoreRule, Sequence[Any]]]:
        from .kernels import dual_score

        config = self.config
        flat = config.mixing * super()._scale(call) / config.curvature
        bent = (1 - config.mixing) / math.sqrt(config.curvature)
        return [(dual_score, (flat, bent, 4 * float(np.finfo(call.dtype).eps)))]
