"""Positions and biases from graphs, and the dual space, against networkx, RoPE and torch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

from polyattn_core.errors import ArgumentError, CapabilityError
from polyattn_core.masks import Causal
from polyattn_core.positions import Rope, rotate
from polyattn_graph.positions import angles_of, distance_coordinates, spectral_coordinates

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def dense(query: Array, key: Array, value: Array, bias: Any = 0.0) -> Array:
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]) + bias
    found: Array = scipy.special.softmax(scores, axis=-1) @ value
    return found


@pytest.mark.parametrize("coordinates", ["distance", "spectral"])
@pytest.mark.parametrize("count", [1, 2, 7, 64, 65])
def test_a_path_gives_ordinary_rope(
    create: Create, arrays: Arrays, coordinates: str, count: int
) -> None:
    query, key, value = arrays(count, count)
    graph = nx.path_graph(count)
    layer = create("graph-rope", dim=8, heads=2, coordinates=coordinates, base=500.0)
    place = np.arange(count)
    rope = Rope(base=500.0)
    expected = dense(rotate(query, place, rope), rotate(key, place, rope), value)
    np.testing.assert_allclose(
        layer.attend(query, key, value, edges=graph), expected, rtol=1e-7, atol=1e-8
    )


def test_distances_are_those_of_networkx() -> None:
    graph = nx.random_geometric_graph(60, 0.25, seed=3)
    graph.add_node(60)  # out of reach
    found = distance_coordinates(graph, 61, 3)
    anchors = [0]
    for axis in range(3):
        hops = nx.single_source_shortest_path_length(graph, anchors[-1])
        beyond = max(hops.values()) + 1
        np.testing.assert_array_equal(found[:, axis], [hops.get(v, beyond) for v in range(61)])
        anchors.append(int(found[:, : axis + 1].min(axis=1).argmax()))


def test_spectral_coordinates_of_a_grid() -> None:
    """On a grid of unequal sides the first two eigenvectors are cosines along the sides."""
    graph = nx.convert_node_labels_to_integers(nx.grid_2d_graph(9, 2), ordering="sorted")
    first = spectral_coordinates(graph, 18, 1)[:, 0]
    place = np.repeat(np.arange(9), 2)
    expected = 18 / np.pi * np.arccos(np.clip(np.cos(np.pi * (place + 0.5) / 9), -1, 1)) - 0.5
    np.testing.assert_allclose(first, expected, atol=1e-6)


def test_axes_take_turns() -> None:
    coordinates = np.array([[2.0, 5.0]])
    turned = angles_of(coordinates, 8, 100.0)[0]
    np.testing.assert_allclose(turned, [2.0, 5.0, 2.0 * 0.1, 5.0 * 0.1])


def test_scores_depend_on_differences(create: Create) -> None:
    """Moved along a path, two nodes at the same distance have the same score."""
    query = np.ones((1, 30, 8))
    layer = create("graph-rope", dim=8)
    weights = layer.observe(query, query, query, "weights", edges=nx.path_graph(30)).weights[0]
    ratio = np.log(weights / np.diag(weights)[:, None])
    for lag in (1, 4):
        np.testing.assert_allclose(np.diag(ratio, lag), ratio[0, lag], rtol=1e-9)


@pytest.mark.parametrize("edge_dim", [None, 2])
def test_graphormer_bias(create: Create, arrays: Arrays, edge_dim: int | None) -> None:
    """Hops by networkx. Of a tree paths are unique, so that edges on the way are known."""
    rng = np.random.default_rng(0)
    graph = nx.random_labeled_tree(25, seed=2)
    graph.add_node(25)
    query, key, value = arrays(26, 26)
    options = {"max_distance": 4, "edge_dim": edge_dim}
    layer = create("graphormer-bias", dim=8, heads=2, **options)
    table = rng.standard_normal((2, 6)).astype(np.float32)
    layer.parameters.update({"distance": table}, partial=True)
    features = rng.standard_normal((24, 2))
    number = {frozenset(edge): i for i, edge in enumerate(graph.edges)}
    bias = np.zeros((2, 26, 26))
    side: dict[str, Any] = {"edges": graph}
    weights = rng.standard_normal((2, 2)).astype(np.float32)
    if edge_dim is not None:
        layer.parameters.update({"edge": weights}, partial=True)
        side["edge_features"] = features
    paths = dict(nx.all_pairs_shortest_path(graph))
    for i in range(26):
        for j in range(26):
            path = paths[i].get(j)
            hops = 5 if path is None else min(len(path) - 1, 5)
            bias[:, i, j] = table[:, hops]
            if edge_dim is not None and 0 < hops < 5:
                ways = [number[frozenset(e)] for e in pairwise(path)]
                bias[:, i, j] += weights.astype(float) @ features[ways].mean(axis=0)
    expected = dense(query, key, value, bias)
    np.testing.assert_allclose(layer.attend(query, key, value, **side), expected, rtol=1e-6)
    own = rng.standard_normal((2, 1, 26))  # a bias of the caller is added
    biased = layer.attend(query, key, value, bias=own, **side)
    np.testing.assert_allclose(biased, dense(query, key, value, bias + own), rtol=1e-6)


def test_graphormer_gradients(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(9, 9)
    rng = np.random.default_rng(0)
    layer = create("graphormer-bias", dim=8, heads=2, max_distance=3, edge_dim=2)
    layer.parameters.update({n: rng.standard_normal(a.shape) for n, a in layer.parameters.items()})
    features, bias = rng.standard_normal((9, 2)), rng.standard_normal((2, 1, 9))
    graphs = [nx.cycle_graph(9), nx.empty_graph(9)]

    def attend(features: Array, bias: Array) -> Array:
        found: Array = layer.attend(
            query, key, value, edges=graphs, edge_features=features, bias=bias
        )
        return found

    output, pullback = layer.attend_vjp(
        query, key, value, edges=graphs, edge_features=features, bias=bias
    )
    incoming = rng.standard_normal(output.shape)
    found = pullback(incoming)
    for gradient, at, call in (
        (found.side["edge_features"], features, lambda x: attend(x, bias)),
        (found.bias, bias, lambda x: attend(features, x)),
    ):
        along = rng.standard_normal(at.shape)
        ends = [(call(at + s * along) * incoming).sum() for s in (1e-6, -1e-6)]
        assert (gradient * along).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)
    for name in ("distance", "edge"):
        before = np.array(layer.parameters[name], np.float64)
        along = rng.standard_normal(before.shape)
        ends = []
        for s in (2.0**-10, -(2.0**-10)):
            layer.parameters.update({name: before + s * along}, partial=True)
            ends.append((attend(features, bias) * incoming).sum())
        layer.parameters.update({name: before}, partial=True)
        slope = (ends[0] - ends[1]) * 2.0**9
        assert (found.parameters[name] * along).sum() == pytest.approx(slope, rel=2e-3)


def test_masks_and_positions(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(12, 12)
    graph = nx.path_graph(12)
    layer = create("graph-rope", dim=8, heads=2, causal=True)
    loose = create("graph-rope", dim=8, heads=2)
    masked = loose.attend(query, key, value, edges=graph, mask=Causal())
    np.testing.assert_allclose(layer.attend(query, key, value, edges=graph), masked, **CLOSE)


def test_refusals(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(5, 3)
    for name in ("graph-rope", "graphormer-bias"):
        with pytest.raises(CapabilityError, match="another number of keys than of queries"):
            create(name, dim=8, heads=2).attend(query, key, value, edges=nx.path_graph(3))
    with pytest.raises(ArgumentError, match="edges: got node 7; expected nodes from 0 to 2"):
        create("graph-rope", dim=8, heads=2).attend(
            query[:, :, :3], key, value, edges=np.array([[0], [7]])
        )
    with pytest.raises(ArgumentError, match="'spectral' for 5000 nodes"):
        spectral_coordinates(nx.path_graph(3), 5000, 1)


@pytest.mark.oracle
def test_dual_space_against_torch(create: Create, arrays: Arrays) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
    query, key, value = arrays(9, 12)
    q, k, v = (torch.from_numpy(array).requires_grad_() for array in (query, key, value))
    c = 1.7

    def lifted(x: Any) -> Any:
        # geoopt.Lorentz(k) has ⟨x, x⟩ = −k.
        time = torch.sqrt(1 / c + (x**2).sum(-1, keepdim=True))
        return torch.cat([time, x], dim=-1)

    a, b = lifted(q)[..., :, None, :], lifted(k)[..., None, :, :]
    inner = (a * b).sum(-1) - 2 * a[..., 0] * b[..., 0]
    distance = torch.acosh(-c * inner) / c**0.5
    scores = 0.3 * (q @ k.transpose(-1, -2)) / 2 - 0.7 * distance
    expected = torch.softmax(scores, dim=-1) @ v
    expected.backward(torch.ones_like(expected))
    layer = create("dual-space", dim=8, heads=2, mixing=0.3, curvature=c)
    output, pullback = layer.attend_vjp(query, key, value)
    np.testing.assert_allclose(output, expected.detach().numpy(), **CLOSE)
    found = pullback(np.ones_like(output))
    for gradient, tensor in ((found.query, q), (found.key, k), (found.value, v)):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-8, atol=1e-10)


def test_dual_space_of_equal_tokens(create: Create) -> None:
    """No distance, no derivative: finite gradients."""
    x = np.ones((3, 4))
    output, pullback = create("dual-space", dim=4, mixing=0.0).vjp(x)
    np.testing.assert_allclose(output, x)
    found = pullback(np.ones_like(output))
    assert np.isfinite(found.query).all()


def test_ends_of_the_mixture(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(9, 12)
    flat = create("dual-space", dim=8, heads=2, mixing=1.0).attend(query, key, value)
    np.testing.assert_allclose(flat, dense(query, key, value), **CLOSE)
