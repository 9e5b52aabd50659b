"""Coherence and persistence against networkx and SciPy."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist, pdist

from polyattn_core.errors import ArgumentError, DataError, ShapeError
from polyattn_topology import CoherenceMetric, WindowCoherence, persistence_h0
from polyattn_topology.reference import cheapest_cut

METRICS = tuple(CoherenceMetric)


def graph_of(keys):
    weights = 1 - cdist(keys, keys, "cosine") / 2
    np.fill_diagonal(weights, 0)
    return nx.from_numpy_array(np.maximum(weights, 0))


def one(metric, keys, window=None):
    return float(WindowCoherence([metric], window)(keys))


def normalised(graph, nodes):
    return nx.normalized_cut_size(graph, nodes, weight="weight")


@pytest.mark.parametrize("n", [4, 7, 20, 65])
def test_cuts_of_networkx_by_windows(rng, n):
    keys = rng.standard_normal((n, 5)) + 0.5
    graph, window = graph_of(keys), 3
    total = graph.size(weight="weight")
    windows = [range(i, min(i + window, n)) for i in range(0, n, window)]
    inside = sum(graph.subgraph(w).size(weight="weight") for w in windows)
    pairs = sum(len(w) * (len(w) - 1) for w in windows) / (n * (n - 1))
    expected = min((1 - inside / total) / (1 - pairs), 1)
    assert one("boundary-mass", keys, window) == pytest.approx(expected)
    cuts = [normalised(graph, list(range(i))) for i in range(window, n, window)]
    expected = min(min(cuts) * (n - 1) / n, 1)
    assert one("cut-proxy", keys, window) == pytest.approx(expected)


@pytest.mark.parametrize("n", [2, 3, 20, 65])
def test_cuts_of_networkx_along_the_principal_axis(rng, n):
    keys = rng.standard_normal((n, 5))
    graph = graph_of(keys)
    units = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    along = units @ np.linalg.svd(units - units.mean(0))[2][0]
    order = np.argsort(along)
    cuts = [normalised(graph, list(map(int, order[:i]))) for i in range(1, n)]
    assert one("cut-proxy", keys) == pytest.approx(min(min(cuts) * (n - 1) / n, 1))
    side = [int(i) for i in np.flatnonzero(along < along.mean())]
    crossing = nx.cut_size(graph, side, weight="weight") / graph.size(weight="weight")
    even = 2 * len(side) * (n - len(side)) / (n * (n - 1))
    assert one("boundary-mass", keys) == pytest.approx(min(crossing / even, 1))


def test_moments_of_scipy(rng):
    keys = rng.standard_normal((30, 5)) + 0.3
    cosines = 1 - pdist(keys, "cosine")
    assert one("disagreement", keys) == pytest.approx(cosines.mean())
    assert one("similarity-variance", keys) == pytest.approx(1 - cosines.std())
    both = np.concatenate([1 - pdist(part, "cosine") for part in (keys[:15], keys[15:])])
    assert one("disagreement", keys, 15) == pytest.approx(max(both.mean(), 0))
    assert one("similarity-variance", keys, 15) == pytest.approx(1 - both.std())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 6))
def test_order_and_length_of_keys_do_not_matter(seed, n, size):
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((n, size))
    measure = WindowCoherence().measure
    found = measure(keys)
    moved = measure((keys * rng.uniform(0.1, 9, (n, 1)))[rng.permutation(n)])
    for metric in METRICS:
        assert 0 <= found[metric] <= 1
        if size > 1:  # in one dimension directions are equal, and which is cut first is chance
            assert moved[metric] == pytest.approx(float(found[metric]), abs=1e-7)


def test_windows_see_the_order(rng):
    keys = np.concatenate((np.ones((8, 3)), -np.ones((8, 3)))) + 0.1 * rng.standard_normal((16, 3))
    mixed = keys[np.arange(16).reshape(2, 8).T.ravel()]
    for metric in METRICS:
        assert abs(one(metric, keys, 8) - one(metric, mixed, 8)) > 0.3


def test_shapes_of_data(rng):
    aligned = 1 + 0.1 * rng.standard_normal((200, 16))
    camps = np.concatenate((aligned, -aligned))
    cloud = rng.standard_normal((400, 16))
    coherent = WindowCoherence()
    assert coherent(aligned) > 0.97
    assert coherent(camps) < 0.05
    assert 0.5 < coherent(cloud) < 0.8


def test_batches_and_keys_that_do_not_count(rng):
    keys = rng.standard_normal((2, 3, 9, 4))
    whole = WindowCoherence()(keys)
    assert whole.shape == (2, 3)
    np.testing.assert_allclose(whole[1, 2], WindowCoherence()(keys[1, 2]))
    padded = np.concatenate((keys, np.zeros((2, 3, 2, 4)), np.full((2, 3, 1, 4), np.nan)), axis=-2)
    np.testing.assert_allclose(WindowCoherence()(padded), whole)
    assert WindowCoherence()(np.full((4, 3), np.nan)) == 1
    np.testing.assert_allclose(WindowCoherence()(1e200 * keys), whole)
    np.testing.assert_allclose(WindowCoherence()(keys.astype(np.float32)), whole, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 4])
def test_layouts_of_memory(rng, window):
    keys = rng.standard_normal((2, 3, 65, 6))
    coherence = WindowCoherence(window=window)
    strided = np.zeros((2, 65, 3, 12))
    strided[..., ::2] = keys.swapaxes(1, 2)
    view = strided.swapaxes(1, 2)[..., ::2]
    before = view.copy()
    np.testing.assert_array_equal(coherence(view), coherence(keys))
    np.testing.assert_array_equal(view, before)
    each = [[coherence(keys[b, h]) for h in range(3)] for b in range(2)]
    np.testing.assert_array_equal(coherence(keys), each)
    half = keys.astype(np.float16)
    np.testing.assert_allclose(coherence(half), coherence(half.astype(float)), atol=0.02)
    assert coherence(keys[:, :0, :]).shape == (2, 0)


@pytest.mark.parametrize("n", [66, 300])
def test_at_most_64_cuts_evenly_apart(rng, n):
    keys = rng.standard_normal((n, 3)) + 0.2
    expected, _, _, _ = cheapest_cut(keys)
    assert one("cut-proxy", keys) == pytest.approx(expected)


def test_a_sample_of_keys(rng):
    for shift in (0, 0.3, 1):
        keys = rng.standard_normal((3, 1500, 16)) + shift
        exact, drawn = WindowCoherence()(keys), WindowCoherence(sample=256)(keys)
        assert (exact != drawn).all()
        np.testing.assert_allclose(drawn, exact, atol=0.02)
        seen = np.sort(np.random.default_rng(0).permutation(1500)[:256])
        np.testing.assert_array_equal(drawn, WindowCoherence()(keys[:, seen]))
    few = keys[:, :256]
    np.testing.assert_array_equal(WindowCoherence(sample=256)(few), WindowCoherence()(few))


def test_the_gate_takes_a_sample(create, rng):
    keys = rng.standard_normal((900, 8)) + 1
    for options, coherence in (
        ({}, WindowCoherence(sample=256)),
        ({"sample": 20}, WindowCoherence(sample=20)),
        ({"sample": None}, WindowCoherence()),
        ({"window": 30}, WindowCoherence(window=30)),
    ):
        gate = create("topology-gated", dim=8, **options)
        gate(keys)
        assert gate.state.coherence == pytest.approx(float(coherence(keys)))


def test_errors():
    for arguments in (
        {"metrics": ["mass"]},
        {"metrics": []},
        {"window": 1},
        {"sample": 1},
        {"sample": 9, "window": 3},
    ):
        with pytest.raises(ArgumentError, match=next(iter(arguments))):
            WindowCoherence(**arguments)
    with pytest.raises(ShapeError, match="keys"):
        WindowCoherence()(np.zeros(3))
    with pytest.raises(DataError, match="points"):
        persistence_h0([[np.nan]])
    with pytest.raises(ShapeError, match="points"):
        persistence_h0(np.zeros((0, 3)))


@pytest.mark.parametrize("n", [1, 2, 63, 300])
def test_persistence(rng, n):
    points = rng.standard_normal((2, n, 3))
    found = persistence_h0(points)
    assert found.shape == (2, n - 1)
    for each, deaths in zip(points, found, strict=True):
        tree = minimum_spanning_tree(cdist(each, each)).data
        np.testing.assert_allclose(deaths, np.sort(tree))
        if n > 1:
            np.testing.assert_allclose(deaths, linkage(each, "single")[:, 2])


def test_persistence_of_duplicates():
    np.testing.assert_array_equal(persistence_h0([[1.0], [1.0], [3.0], [1.0]]), [0, 0, 2])
