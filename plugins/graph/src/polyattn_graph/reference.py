"""What the mechanisms compute, in float64, with matrices: short, not fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.csgraph
import scipy.special

Array = npt.NDArray[Any]
Parameters = Mapping[str, Array]
Score = Callable[[Array, Array, "Array | None", int, Any, Parameters], Array]


def _along_edges(score: Score, *, in_values: bool = False) -> Callable[..., Array]:
    """`score` maps the query and key (edges, size), and features, of a head's edges to scores."""

    def attention(
        query: Array, key: Array, value: Array, *, mask: Array | None = None,
        bias: Array | None = None, config: Any, parameters: Parameters, edges: Array,
        edge_features: Array | None = None,
    ) -> Array:  # fmt: skip
        batch, heads, queries, _ = query.shape
        group = heads // key.shape[1]
        source, target = np.asarray(edges)
        features = None if edge_features is None else np.asarray(edge_features, np.float64)
        if config.self_loops:
            keep = source != target
            source, target = source[keep], target[keep]
            if features is not None:
                features = features[keep]
                own = [features[target == i] for i in range(queries)]
                loops = [f.mean(axis=0) if len(f) else np.zeros(f.shape[1]) for f in own]
                features = np.concatenate([features, np.reshape(loops, (queries, -1))])
            source = np.concatenate([source, np.arange(queries)])
            target = np.concatenate([target, np.arange(queries)])
        out = np.zeros((batch, heads, queries, value.shape[-1]))
        for b in range(batch):
            for h in range(heads):
                q, k = query[b, h][target], key[b, h // group][source]
                v = value[b, h // group][source]
                s = score(q, k, features, h, config, parameters)
                if in_values and features is not None:
                    v = v + features @ parameters["edge"][h].T
                for i in range(queries):
                    mine = target == i
                    if mine.any():
                        out[b, h, i] = scipy.special.softmax(s[mine]) @ v[mine]
        return out

    return attention


def _leaky(x: Array, slope: float) -> Array:
    return np.where(x > 0, x, slope * x)


def _gat(
    q: Array, k: Array, features: Array | None, h: int, config: Any, parameters: Parameters
) -> Array:
    total = q @ parameters["query"][h] + k @ parameters["key"][h]
    if features is not None:
        total = total + features @ parameters["edge"][h]
    return _leaky(total, config.negative_slope)


def _gatv2(
    q: Array, k: Array, features: Array | None, h: int, config: Any, parameters: Parameters
) -> Array:
    total = q + k
    if features is not None:
        total = total + features @ parameters["edge"][h].T
    found: Array = _leaky(total, config.negative_slope) @ parameters["attention"][h]
    return found


def _dot(
    q: Array, k: Array, features: Array | None, h: int, config: Any, parameters: Parameters
) -> Array:
    if features is not None:
        k = k + features @ parameters["edge"][h].T
    found: Array = (config.scale or q.shape[-1] ** -0.5) * (q * k).sum(axis=-1)
    return found


gat = _along_edges(_gat)
gatv2 = _along_edges(_gatv2)
graph_transformer = _along_edges(_dot, in_values=True)


def _dense(
    query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None, config: Any,
    score: Callable[[Array, Array], Array],
) -> Array:  # fmt: skip
    group = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
    scores = score(query, key)
    if config.softcap is not None:
        scores = config.softcap * np.tanh(scores / config.softcap)
    if bias is not None:
        scores = scores + bias
    if mask is None:
        return np.asarray(scipy.special.softmax(scores, axis=-1) @ value)
    some = mask.any(axis=-1, keepdims=True)
    weights = scipy.special.softmax(np.where(mask | ~some, scores, -np.inf), axis=-1)
    return np.where(some, np.where(mask, weights, 0) @ value, 0)


def _hops(edges: Array, nodes: int) -> Array:
    source, target = np.asarray(edges)
    matrix = scipy.sparse.coo_array((np.ones(len(source)), (source, target)), (nodes, nodes))
    return np.asarray(
        scipy.sparse.csgraph.shortest_path(matrix.tocsr(), directed=False, unweighted=True)
    )


def graph_rope(
    query: Array, key: Array, value: Array, *, mask: Array | None = None,
    bias: Array | None = None, config: Any, parameters: Parameters, edges: Array,
) -> Array:  # fmt: skip
    """Rotary attention by hops from anchors, or by angles of eigenvectors."""
    nodes, size, axes = key.shape[2], query.shape[-1], config.axes
    hops = _hops(edges, nodes)
    if config.coordinates == "distance":
        hops = np.where(np.isinf(hops), -1, hops)
        hops = np.where(hops < 0, hops.max(axis=1, keepdims=True) + 1, hops)
        anchors = [0]
        while len(anchors) < axes:
            anchors.append(int(hops[anchors].min(axis=0).argmax()))
        place = hops[anchors].T
    else:
        adjacency = (hops == 1).astype(float)
        vectors = np.linalg.eigh(np.diag(adjacency.sum(axis=1)) - adjacency)[1][:, 1 : axes + 1]
        place = np.zeros((nodes, axes))
        for axis, u in enumerate(vectors.T):
            u = u * np.sign(u[np.abs(u) > 1e-9][0])
            angle = np.arccos(np.clip(u * np.sqrt(nodes / 2), -1, 1))
            place[:, axis] = nodes / np.pi * angle - 0.5

    def turned(x: Array, place: Array) -> Array:
        pair = x[..., : size // 2] + 1j * x[..., size // 2 :]
        p = np.arange(size // 2)
        angle = place[:, p % axes] * config.base ** (-2.0 * (p // axes) * axes / size)
        pair = pair * np.exp(1j * angle)
        return np.concatenate([pair.real, pair.imag], axis=-1)

    def score(q: Array, k: Array) -> Array:
        scale = config.scale or size**-0.5
        found: Array = scale * turned(q, place) @ turned(k, place).swapaxes(2, 3)
        return found

    return _dense(query, key, value, mask, bias, config, score)


def graphormer_bias(
    query: Array, key: Array, value: Array, *, mask: Array | None = None,
    bias: Array | None = None, config: Any, parameters: Parameters, edges: Array,
) -> Array:  # fmt: skip
    """Attention with a bias for the number of hops; without edge features."""
    bucket = np.minimum(_hops(edges, key.shape[2]), config.max_distance + 1).astype(int)
    own = parameters["distance"][:, bucket]

    def score(q: Array, k: Array) -> Array:
        scores: Array = (config.scale or q.shape[-1] ** -0.5) * q @ k.swapaxes(2, 3)
        return scores

    whole = own[None] if bias is None else own[None] + bias
    return _dense(query, key, value, mask, whole, config, score)


def dual_space(
    query: Array, key: Array, value: Array, *, mask: Array | None = None,
    bias: Array | None = None, config: Any, parameters: Parameters,
) -> Array:  # fmt: skip
    """A flat product less a hyperbolic distance."""
    c = config.curvature

    def score(q: Array, k: Array) -> Array:
        dot = q @ k.swapaxes(2, 3)
        times = np.sqrt(1 + c * (q**2).sum(-1)), np.sqrt(1 + c * (k**2).sum(-1))
        cosh = times[0][..., None] * times[1][..., None, :] - c * dot
        distance = np.arccosh(np.maximum(cosh, 1)) / np.sqrt(c)
        flat = config.mixing * (config.scale or q.shape[-1] ** -0.5) * dot
        return np.asarray(flat - (1 - config.mixing) * distance)

    return _dense(query, key, value, mask, bias, config, score)
