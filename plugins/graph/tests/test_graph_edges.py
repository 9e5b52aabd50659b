"""Every form of a graph, batches of graphs, loops, dropout; and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse
import scipy.special

from polyattn_core.errors import ArgumentError, ConfigError, MissingInputError, ShapeError

Array = npt.NDArray[Any]
Create = Callable[..., Any]

LAYERS = ("gat", "gatv2", "graph-transformer")


def nodes(count: int = 34, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 8))


@pytest.mark.parametrize("name", LAYERS)
def test_forms_of_a_graph(create: Create, name: str) -> None:
    graph = nx.karate_club_graph()
    matrix = nx.to_scipy_sparse_array(graph, format="csr")
    ends = np.array(graph.edges).T
    pairs = np.concatenate([ends, ends[::-1]], axis=1)
    layer, x = create(name, dim=8, heads=2), nodes()
    expected = layer(x, edges=pairs)
    for form in (graph, graph.to_directed(), matrix, matrix.tocoo(), pairs.tolist(), [graph]):
        np.testing.assert_allclose(layer(x, edges=form), expected, rtol=1e-12, atol=1e-14)
    shuffled = pairs[:, np.random.default_rng(1).permutation(pairs.shape[1])]
    np.testing.assert_allclose(layer(x, edges=shuffled), expected, rtol=1e-12, atol=1e-14)


def test_direction_of_edges(create: Create) -> None:
    """All forms agree on who sees whom."""
    x = np.array([[1.0], [10.0]])
    layer = create("graph-transformer", dim=1)
    one = nx.DiGraph([(0, 1)])  # node 1 sees node 0
    matrix = scipy.sparse.csr_array(np.array([[0, 0], [1, 0]]))
    for form in (np.array([[0], [1]]), one, matrix):
        np.testing.assert_array_equal(layer(x, edges=form), [[0], [1]])


@pytest.mark.parametrize("name", [*LAYERS, "edge-featured"])
def test_batches_of_graphs(create: Create, name: str) -> None:
    graphs = [nx.path_graph(6), nx.star_graph(5), nx.empty_graph(6)]
    x = np.random.default_rng(0).standard_normal((3, 6, 8))
    options: dict[str, Any] = {}
    side: dict[str, Any] = {}
    if name == "edge-featured":
        options["edge_dim"] = 2
        side["edge_features"] = np.random.default_rng(1).standard_normal((10, 2))
    layer = create(name, dim=8, heads=2, **options)
    whole = layer(x, edges=graphs, **side)
    rows = (slice(0, 5), slice(5, 10), slice(10, 10))
    for b, graph in enumerate(graphs):
        own = {key: array[rows[b]] for key, array in side.items()}
        np.testing.assert_allclose(whole[b], layer(x[b], edges=graph, **own), atol=1e-13)
    assert not whole[2].any()
    # One graph for all: gradients by its features are summed.
    shared = layer(x, edges=graphs[0], **{k: v[:5] for k, v in side.items()})
    np.testing.assert_allclose(shared[0], whole[0], atol=1e-13)


def test_gradient_by_shared_features_is_a_sum(create: Create) -> None:
    x = np.random.default_rng(0).standard_normal((3, 6, 8))
    features = np.random.default_rng(1).standard_normal((5, 2))
    layer = create("gatv2", dim=8, heads=2, edge_dim=2, self_loops=True)
    path = nx.path_graph(6)
    output, pullback = layer.vjp(x, edges=path, edge_features=features)
    whole = pullback(output).side["edge_features"]
    parts = np.zeros_like(whole)
    for one in x:
        output, pullback = layer.vjp(one, edges=path, edge_features=features)
        parts += pullback(output).side["edge_features"]
    np.testing.assert_allclose(whole, parts, rtol=1e-10)


def test_the_graph_may_change(create: Create) -> None:
    """Also in place, and between calls of one instance."""
    layer, x = create("gat", dim=8, heads=2), nodes(5)
    edges = np.array([[0, 1], [2, 3]])
    first = layer(x, edges=edges)
    edges[1, 0] = 4
    second = layer(x, edges=edges)
    np.testing.assert_array_equal(second[4], first[2])
    assert not second[2].any()
    bipartite = layer(x[:2], x, edges=np.array([[4], [1]]))
    np.testing.assert_array_equal(bipartite[1], x[4])


def test_complete_graph_is_attention(create: Create) -> None:
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 65, 4))
    complete = np.indices((65, 65)).reshape(2, -1)
    layer = create("graph-transformer", dim=8, heads=2, scale=0.3)
    expected = scipy.special.softmax(0.3 * query @ key.swapaxes(-1, -2), axis=-1)
    found = layer.observe(query, key, value, "weights", "column_mass", edges=complete)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-10)
    np.testing.assert_allclose(found.output, expected @ value, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.column_mass, expected.sum(axis=-2), rtol=1e-10)


def test_dropout_keeps_the_mean(create: Create) -> None:
    layer = create("gat", dim=8, heads=2, dropout=0.4, self_loops=True)
    x, graph = nodes(), nx.karate_club_graph()
    plain = layer(x, edges=graph)
    runs = [layer(x, edges=graph, training=True, rng=seed) for seed in range(400)]
    assert abs(runs[0] - plain).max() > 0.1
    np.testing.assert_allclose(np.mean(runs, axis=0), plain, atol=0.25)
    np.testing.assert_array_equal(runs[3], layer(x, edges=graph, training=True, rng=3))
    # The pullback drops the same weights.
    output, pullback = layer.vjp(x, edges=graph, training=True, rng=3)
    np.testing.assert_array_equal(output, runs[3])
    incoming = np.random.default_rng(0).standard_normal(x.shape)
    along = np.random.default_rng(1).standard_normal(x.shape)
    ends = [
        (layer(x + s * along, edges=graph, training=True, rng=3) * incoming).sum()
        for s in (1e-6, -1e-6)
    ]
    slope = (ends[0] - ends[1]) / 2e-6
    assert (pullback(incoming).query * along).sum() == pytest.approx(slope, rel=1e-6)


def test_graphs_in_parallel_edges(create: Create) -> None:
    """Two edges between the same nodes count twice."""
    layer = create("graph-transformer", dim=1)
    x = np.array([[0.0], [1.0], [4.0]])
    edges = np.array([[1, 1, 2], [0, 0, 0]])
    assert layer(x, edges=edges)[0, 0] == pytest.approx(2.0)
    seen = layer.observe(x[None], x[None], x[None], "weights", "top_weights", edges=edges, top=4)
    np.testing.assert_allclose(seen.weights[0, 0], [0, 2 / 3, 1 / 3])
    np.testing.assert_allclose(seen.top_weights[0, 0], [2 / 3, 1 / 3, 0, 0])
    np.testing.assert_array_equal(seen.top_keys[0, 0], [1, 2, -1, -1])
    assert (seen.top_keys[0, 1:] == -1).all()


@pytest.mark.parametrize(
    ("edges", "error", "message"),
    [
        (None, MissingInputError, "gat needs edges=: the graph"),
        (np.zeros((3, 2), int), ArgumentError, r"an array \(2, edges\) of integers"),
        (np.zeros((2, 2)), ArgumentError, "edges"),
        ("karate", ArgumentError, "edges: got karate"),
        (np.array([[0], [9]]), ArgumentError, "edges: got node 9; expected numbers of queries"),
        (np.array([[-1], [0]]), ArgumentError, "edges: got node -1; expected numbers of keys"),
        ([nx.path_graph(5)] * 2, ArgumentError, "edges: got 2 graphs; expected one, or 1"),
    ],
)
def test_wrong_graphs(create: Create, edges: Any, error: type[Exception], message: str) -> None:
    layer = create("gat", dim=8, heads=2)
    with pytest.raises(error, match=message):
        layer(nodes(5), edges=edges)


def test_wrong_features(create: Create) -> None:
    x, edges = nodes(5), np.array([[0, 1], [1, 2]])
    layer = create("gatv2", dim=8, heads=2, edge_dim=3)
    with pytest.raises(ShapeError, match=r"edge_features: got .2, 4.; expected .2, 3."):
        layer(x, edges=edges, edge_features=np.ones((2, 4)))
    with pytest.raises(ArgumentError, match="edge_features: got None"):
        layer(x, edges=edges)
    with pytest.raises(ArgumentError, match="edge_dim= is not set"):
        create("gatv2", dim=8, heads=2)(x, edges=edges, edge_features=np.ones((2, 3)))
    transformer = create("graph-transformer", dim=8, heads=2, edge_dim=3)
    heads, wide, features = np.ones((2, 5, 4)), np.ones((2, 5, 5)), np.ones((2, 3))
    with pytest.raises(ShapeError, match="value: got head size 5"):
        transformer.attend(heads, heads, wide, edges=edges, edge_features=features)


def test_loops_need_as_many_keys(create: Create) -> None:
    layer = create("gat", dim=8, heads=2, self_loops=True)
    with pytest.raises(ShapeError, match="key: got 5 keys; expected as many as queries"):
        layer(nodes(3), nodes(5), edges=np.array([[0], [0]]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gat", {"edge_dim": 3}, "edge_dim"),
        ("gat", {"negative_slope": 1.0}, "negative_slope"),
        ("edge-featured", {"edge_dim": 0}, "edge_dim"),
        ("graph-rope", {"axes": 3}, "axes: got 3"),
        ("graph-rope", {"position": "rope"}, "position"),
        ("dual-space", {"mixing": 1.5}, "mixing"),
    ],
)
def test_options_refused(create: Create, name: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create(name, dim=8, heads=2, **options)


def lookup_accuracy(create: Create, name: str, size: int = 8, steps: int = 600) -> float:
    """Train on the dictionary look-up: each query finds the key with its own number.

    Brody et al., arXiv:2105.14491, section 4.2: query i has number i, key j number j and a value;
    the answer to query i is the value of key i. Numbers are one-hot through learned maps.
    """
    rng = np.random.default_rng(0)
    width = 2 * size
    layer = create(name, dim=width)
    learned = {
        "query": rng.normal(0, 0.5, (size, width)),
        "key": rng.normal(0, 0.5, (size, width)),
        **{f"layer.{n}": np.array(a, np.float64) for n, a in layer.parameters.items()},
    }
    first = {n: np.zeros_like(a) for n, a in learned.items()}
    second = {n: np.zeros_like(a) for n, a in learned.items()}
    complete = np.indices((size, size)).reshape(2, -1)
    accuracy = 0.0
    for step in range(1, steps + 1):
        values = np.eye(size)
        own = {n.partition(".")[2]: a for n, a in learned.items() if n.startswith("layer.")}
        layer.parameters.update(own)
        weights, pullback = layer.vjp(learned["query"], learned["key"], values, edges=complete)
        accuracy = float((weights.argmax(axis=1) == np.arange(size)).mean())
        right = np.maximum(np.diag(weights), 1e-9)
        incoming = -np.diag(1 / right) / size  # of the mean negative log-likelihood
        found = pullback(incoming)
        gradients = {
            "query": found.query, "key": found.key,
            **{f"layer.{n}": g for n, g in found.parameters.items()},
        }  # fmt: skip
        for n, g in gradients.items():
            first[n] = 0.9 * first[n] + 0.1 * g
            second[n] = 0.999 * second[n] + 0.001 * g**2
            mean, square = first[n] / (1 - 0.9**step), second[n] / (1 - 0.999**step)
            learned[n] -= 0.03 * mean / (np.sqrt(square) + 1e-8)
    return accuracy


def test_dictionary_lookup(create: Create) -> None:
    """GAT ranks the keys alike for all queries and finds one of them; GATv2 finds them all."""
    assert lookup_accuracy(create, "gat") <= 1 / 8
    assert lookup_accuracy(create, "gatv2") == 1
