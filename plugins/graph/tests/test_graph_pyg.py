"""The layers of PyTorch Geometric, with their weights copied: outputs and gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]
Create = Callable[..., Any]

NODES, HEADS, SIZE, WIDTH, EDGE = 40, 3, 4, 5, 6

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def oracle() -> tuple[Any, Any]:
    torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own imports
            import torch_geometric.nn as nn
    except ImportError as error:
        pytest.skip(f"torch_geometric is not installed: {error}")
    return torch, nn


def problem() -> tuple[Array, Array, Array, Array]:
    """Nodes, distinct edges of which some are loops, features, and an incoming gradient."""
    rng = np.random.default_rng(0)
    edges = np.unique(rng.integers(0, NODES, (2, 120)), axis=1)
    assert (edges[0] == edges[1]).any()
    return (
        rng.standard_normal((NODES, WIDTH)),
        edges,
        rng.standard_normal((edges.shape[1], EDGE)),
        rng.standard_normal((NODES, HEADS * SIZE)),
    )


def array_of(tensor: Any) -> Array:
    found: Array = tensor.detach().double().numpy()
    return found


def set_parameters(layer: Any, **values: Array) -> None:
    """In double precision: what is initialised in single is replaced by what is copied."""
    assert set(values) == set(layer.parameters)
    layer.parameters.update(values)


def close(found: Array, expected: Any, what: str) -> None:
    np.testing.assert_allclose(found, array_of(expected), rtol=2e-5, atol=2e-6, err_msg=what)


@pytest.mark.parametrize("with_features", [False, True])
@pytest.mark.parametrize("loops", [False, True])
def test_gat(create: Create, oracle: Any, with_features: bool, loops: bool) -> None:
    torch, nn = oracle
    x, edges, features, incoming = problem()
    theirs = nn.GATConv(
        WIDTH, SIZE, HEADS, edge_dim=EDGE if with_features else None, add_self_loops=loops,
        fill_value="mean", negative_slope=0.3, bias=False,
    ).double()  # fmt: skip
    inputs = torch.from_numpy(x).requires_grad_()
    given = torch.from_numpy(features).requires_grad_()
    out = theirs(inputs, torch.from_numpy(edges), given if with_features else None)
    out.backward(torch.from_numpy(incoming))

    weight = array_of(theirs.lin.weight)
    options: dict[str, Any] = {"negative_slope": 0.3, "self_loops": loops}
    own = {"query": array_of(theirs.att_dst)[0], "key": array_of(theirs.att_src)[0]}
    side: dict[str, Any] = {"edges": edges}
    if with_features:
        options["edge_dim"] = EDGE
        mixed = array_of(theirs.lin_edge.weight).reshape(HEADS, SIZE, EDGE)
        own["edge"] = np.einsum("hd,hde->he", array_of(theirs.att_edge)[0], mixed)
        side["edge_features"] = features
    name = "edge-featured" if with_features else "gat"
    layer = create(name, dim=HEADS * SIZE, heads=HEADS, **options)
    set_parameters(layer, **own)
    output, pullback = layer.vjp(x @ weight.T, **side)
    found = pullback(incoming)
    close(output, out, "output")
    close(found.query @ weight, inputs.grad, "gradient by nodes")
    # Those by the linear map come through the attention numbers too only by way of the nodes.
    close(found.query.T @ x, theirs.lin.weight.grad, "gradient by the linear map")
    close(found.parameters["query"], theirs.att_dst.grad[0], "gradient by the query numbers")
    close(found.parameters["key"], theirs.att_src.grad[0], "gradient by the key numbers")
    if with_features:
        close(found.side["edge_features"], given.grad, "gradient by edge features")


@pytest.mark.parametrize("with_features", [False, True])
def test_gatv2(create: Create, oracle: Any, with_features: bool) -> None:
    torch, nn = oracle
    x, edges, features, incoming = problem()
    theirs = nn.GATv2Conv(
        WIDTH, SIZE, HEADS, edge_dim=EDGE if with_features else None, fill_value="mean", bias=False
    ).double()
    inputs = torch.from_numpy(x).requires_grad_()
    given = torch.from_numpy(features).requires_grad_()
    out = theirs(inputs, torch.from_numpy(edges), given if with_features else None)
    out.backward(torch.from_numpy(incoming))

    left, right = array_of(theirs.lin_l.weight), array_of(theirs.lin_r.weight)
    own = {"attention": array_of(theirs.att)[0]}
    side: dict[str, Any] = {"edges": edges}
    options: dict[str, Any] = {"self_loops": True}
    if with_features:
        options["edge_dim"] = EDGE
        own["edge"] = array_of(theirs.lin_edge.weight).reshape(HEADS, SIZE, EDGE)
        side["edge_features"] = features
    layer = create("gatv2", dim=HEADS * SIZE, heads=HEADS, **options)
    set_parameters(layer, **own)
    source = x @ left.T
    output, pullback = layer.vjp(x @ right.T, source, source, **side)
    found = pullback(incoming)
    close(output, out, "output")
    d_source = found.key + found.value
    close(d_source @ left + found.query @ right, inputs.grad, "gradient by nodes")
    close(found.parameters["attention"], theirs.att.grad[0], "gradient by attention")
    if with_features:
        close(found.side["edge_features"], given.grad, "gradient by edge features")
        edge = theirs.lin_edge.weight.grad
        close(found.parameters["edge"].reshape(-1, EDGE), edge, "gradient by the edge map")


@pytest.mark.parametrize("with_features", [False, True])
def test_graph_transformer(create: Create, oracle: Any, with_features: bool) -> None:
    torch, nn = oracle
    x, edges, features, incoming = problem()
    theirs = nn.TransformerConv(
        WIDTH, SIZE, HEADS, edge_dim=EDGE if with_features else None, root_weight=False
    ).double()
    inputs = torch.from_numpy(x).requires_grad_()
    given = torch.from_numpy(features).requires_grad_()
    out = theirs(inputs, torch.from_numpy(edges), given if with_features else None)
    out.backward(torch.from_numpy(incoming))

    maps = [theirs.lin_query, theirs.lin_key, theirs.lin_value]
    weights = [array_of(m.weight) for m in maps]
    side: dict[str, Any] = {"edges": edges}
    options: dict[str, Any] = {}
    own: dict[str, Array] = {}
    if with_features:
        options["edge_dim"] = EDGE
        own["edge"] = array_of(theirs.lin_edge.weight).reshape(HEADS, SIZE, EDGE)
        side["edge_features"] = features
    layer = create("graph-transformer", dim=HEADS * SIZE, heads=HEADS, **options)
    set_parameters(layer, **own)
    projected = [x @ w.T + array_of(m.bias) for w, m in zip(weights, maps, strict=True)]
    output, pullback = layer.vjp(*projected, **side)
    found = pullback(incoming)
    close(output, out, "output")
    parts = (found.query, found.key, found.value)
    whole = sum(d @ w for d, w in zip(parts, weights, strict=True))
    close(np.asarray(whole), inputs.grad, "gradient by nodes")
    if with_features:
        close(found.side["edge_features"], given.grad, "gradient by edge features")
        edge = theirs.lin_edge.weight.grad
        close(found.parameters["edge"].reshape(-1, EDGE), edge, "gradient by the edge map")
