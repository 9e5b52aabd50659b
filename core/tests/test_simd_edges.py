"""The edge engine against SciPy's sparse matrices and plain NumPy over lists of edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse
import scipy.special

from polyattn_core.simd.edges import Edges

Array = npt.NDArray[Any]
CLOSE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-12}


def graph(queries: int, keys: int, density: float, seed: int = 0) -> Edges:
    matrix = scipy.sparse.random(
        queries, keys, density, format="csr", rng=np.random.default_rng(seed)
    )
    return Edges(matrix.indptr, matrix.indices, keys)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def normal(request: Any) -> Any:
    rng = np.random.default_rng(1)
    return lambda *shape: rng.standard_normal(shape).astype(request.param)


@pytest.mark.parametrize("shape", [(1, 1, 1.0), (63, 65, 0.2), (300, 200, 0.02), (5, 4, 0.0)])
def test_sums_and_products(normal: Any, shape: tuple[int, int, float]) -> None:
    edges = graph(*shape)
    weights, value = normal(len(edges), 3), normal(shape[1], 3, 5)
    other, extra = normal(shape[0], 3, 5), normal(len(edges), 3, 5)
    close = CLOSE[value.dtype]
    for h in range(3):
        matrix = scipy.sparse.csr_array((weights[:, h], edges.indices, edges.indptr), shape[:2])
        np.testing.assert_allclose(
            edges.sum(weights, value)[:, h], matrix @ value[:, h], rtol=close, atol=close
        )
        np.testing.assert_allclose(
            edges.sum_back(weights, other)[:, h], matrix.T @ other[:, h], rtol=close, atol=close
        )
    ends = value[edges.indices] + extra
    expected = np.einsum("ehd,ehd->eh", other[edges.rows], ends)
    found = edges.products(other, value, extra)
    np.testing.assert_allclose(found, expected, rtol=close, atol=10 * close)
    sums = np.zeros_like(other)
    np.add.at(sums, edges.rows, weights[..., None] * ends)
    np.testing.assert_allclose(edges.sum(weights, value, extra), sums, rtol=close, atol=10 * close)


def test_softmax(normal: Any) -> None:
    edges = graph(200, 300, 0.02)
    scores = 50 * normal(len(edges), 2)
    weights, log_sum = edges.softmax(scores)
    gradient = normal(len(edges), 2)
    back = edges.softmax_backward(weights, gradient)
    close = CLOSE[scores.dtype]
    assert (np.diff(edges.indptr) == 0).any()
    for i in range(200):
        own = slice(edges.indptr[i], edges.indptr[i + 1])
        if own.start == own.stop:
            assert np.isneginf(log_sum[i]).all()
            continue
        w = scipy.special.softmax(scores[own].astype(np.float64), axis=0)
        np.testing.assert_allclose(weights[own], w, rtol=100 * close, atol=close)
        np.testing.assert_allclose(
            log_sum[i], scipy.special.logsumexp(scores[own], axis=0), rtol=close, atol=10 * close
        )
        expected = w * (gradient[own] - (w * gradient[own]).sum(axis=0))
        np.testing.assert_allclose(back[own], expected, rtol=100 * close, atol=10 * close)


def test_softmax_of_what_is_not_finite() -> None:
    edges = Edges(np.array([0, 2, 4, 6]), np.array([0, 1, 0, 1, 0, 1]), 2)
    scores = np.array([[-np.inf], [-np.inf], [np.nan], [0.0], [-np.inf], [1.0]])
    weights, log_sum = edges.softmax(scores)
    np.testing.assert_array_equal(weights[:2], 0)
    assert np.isnan(weights[2:4]).all()
    np.testing.assert_array_equal(weights[4:], [[0], [1]])
    assert np.isneginf(log_sum[0]).all()


@pytest.mark.parametrize("with_edge", [False, True])
def test_additive_gradients(with_edge: bool) -> None:
    edges = graph(70, 66, 0.1)
    rng = np.random.default_rng(3)
    left, right = rng.standard_normal((70, 2, 3)), rng.standard_normal((66, 2, 3))
    edge = rng.standard_normal((len(edges), 2, 3)) if with_edge else None
    attention, incoming = rng.standard_normal((2, 3)), rng.standard_normal((len(edges), 2))

    def plain(left: Array, right: Array, edge: Array | None, attention: Array) -> Array:
        x = left[edges.rows] + right[edges.indices] + (0 if edge is None else edge)
        return np.einsum("hd,ehd->eh", attention, np.where(x > 0, x, 0.2 * x))

    inputs = [left, right, edge, attention]
    np.testing.assert_allclose(edges.additive(*inputs, 0.2), plain(*inputs), atol=1e-12)
    found = edges.additive_backward(*inputs, 0.2, incoming)
    assert (found[2] is None) != with_edge
    for place, (at, gradient) in enumerate(zip(inputs, found, strict=True)):
        if at is None:
            continue
        along = rng.standard_normal(at.shape)
        ends = [
            (plain(*[x + s * along if i == place else x for i, x in enumerate(inputs)]) * incoming)
            for s in (1e-6, -1e-6)
        ]
        slope = (ends[0] - ends[1]).sum() / 2e-6
        np.testing.assert_allclose((gradient * along).sum(), slope, rtol=1e-6)


def test_number_of_threads_does_not_matter(normal: Any) -> None:
    edges = graph(3000, 3000, 0.01)
    weights, value = normal(len(edges), 1), normal(3000, 1, 16)
    alone = Edges(edges.indptr, edges.indices, 3000, limit=1)
    np.testing.assert_array_equal(edges.sum(weights, value), alone.sum(weights, value))
