"""Filters against functions of dense matrices, and the bounds of eigenvalues they rest on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from polyattn_core.errors import ArgumentError
from polyattn_diffusion.config import LaplacianType
from polyattn_diffusion.filters import expand
from polyattn_diffusion.graph import CompleteGraph, KeyGraph, NeighbourGraph
from polyattn_diffusion.operators import Laplacian, Operator, Transposed
from polyattn_diffusion.resolvent import Resolvent

Array = npt.NDArray[Any]

kinds = pytest.mark.parametrize("kind", list(LaplacianType))


def operator(
    key: Array, kind: LaplacianType, k: int | None = None, visible: Array | None = None
) -> Operator:
    key = np.atleast_2d(key)[None, None]
    graph: KeyGraph = (
        CompleteGraph(key, None, visible, None)
        if k is None
        else NeighbourGraph(key, None, visible, None, k)
    )
    return Laplacian(graph, kind)


def dense(laplacian: Operator) -> Array:
    n = laplacian.graph.shape[2]
    eye = np.eye(n, dtype=laplacian.graph.points.dtype)
    return laplacian.apply(eye[None, None])[0, 0].astype(float)


def outlying(dtype: str = "float64", n: int = 130) -> Array:
    key = np.random.default_rng(0).standard_normal((n, 6))
    key[:4] *= np.array([2, 3, 4, 6])[:, None]
    return key.astype(dtype)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    size=st.integers(1, 5),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    kind=st.sampled_from(list(LaplacianType)),
    k=st.none() | st.integers(1, 8),
    hidden=st.integers(0, 5),
    seed=st.integers(0, 1 << 30),
)
def test_no_eigenvalue_is_out_of_reach(
    n: int, size: int, spread: float, kind: LaplacianType, k: int | None, hidden: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    key = rng.standard_normal((n, size)) * (1 + spread * rng.random((n, 1)) ** 8)
    laplacian = operator(key, kind, k, np.arange(n)[None] >= min(hidden, n - 1))
    largest = scipy.linalg.eigvals(dense(laplacian)).real.max()
    assert largest <= laplacian.reach * (1 + 1e-9) + 1e-12
    assert laplacian.reach <= laplacian.bound
    assert Transposed(laplacian).reach == laplacian.reach


@kinds
def test_all_pairs_reach_half_as_far(kind: LaplacianType) -> None:
    key = np.random.default_rng(0).standard_normal((200, 8))
    laplacian = operator(key, kind)
    assert laplacian.reach < 0.6 * laplacian.bound
    assert operator(key, kind, 8).reach == operator(key, kind, 8).bound


@kinds
@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("alpha", [0.9, 0.15, 0.003])
@pytest.mark.parametrize(("dtype", "tolerance", "error"), [
    ("float64", 1e-12, 1e-11), ("float32", 1e-6, 2e-5), ("float64", 1e-3, 1e-3),
    ("float64", 1e-300, 1e-11)
])  # fmt: skip
def test_resolvent_against_a_solver(
    kind: LaplacianType, k: int | None, alpha: float, dtype: str, tolerance: float, error: float
) -> None:
    laplacian = operator(outlying(dtype), kind, k)
    matrix = dense(laplacian)
    x = np.random.default_rng(1).standard_normal((1, 1, 130, 5)).astype(dtype)
    x[..., 1] = 0
    x[..., 2] = np.eye(130)[0]
    resolvent = Resolvent(alpha, tolerance)
    for each, at in ((laplacian, matrix), (Transposed(laplacian), matrix.T)):
        expected = scipy.linalg.solve(alpha * np.eye(130) + (1 - alpha) * at, alpha * x[0, 0])
        np.testing.assert_allclose(
            resolvent.apply(each, x)[0, 0], expected, rtol=0, atol=error * np.abs(x).max()
        )


@kinds
def test_resolvent_takes_fewer_products_than_a_series(kind: LaplacianType) -> None:
    laplacian = operator(outlying(), kind)
    products: list[Array] = []
    apply = laplacian.apply
    laplacian.apply = lambda x: products.append(x) or apply(x)  # type: ignore[assignment,func-returns-value]
    Resolvent(0.15, 1e-6).apply(laplacian, np.ones((1, 1, 130, 1)) * outlying()[None, None])
    series = expand(lambda x: 0.15 / (0.15 + 0.85 * x), laplacian.bound, 1e-6, "alpha")
    assert 1 < len(products) < 0.4 * len(series)


@kinds
def test_columns_do_not_meet(kind: LaplacianType) -> None:
    laplacian = operator(outlying(), kind)
    resolvent = Resolvent(0.2, 1e-6)
    rng = np.random.default_rng(2)
    alone, others = rng.standard_normal((1, 1, 130, 2)), rng.standard_normal((1, 1, 130, 3))
    others[..., 0] *= 1e150
    others[0, 0, 7, 1] = np.nan
    found = resolvent.apply(laplacian, np.concatenate((alone, others), axis=-1))
    np.testing.assert_allclose(found[..., :2], resolvent.apply(laplacian, alone), rtol=1e-12)
    assert np.isfinite(found[..., 2]).all()
    assert np.isnan(found[..., 3]).all()
    assert np.isfinite(found[..., 4]).all()


def test_resolvent_without_edges_and_at_the_end_of_its_range() -> None:
    one = operator(np.ones((1, 3)), LaplacianType.RANDOM_WALK)
    x = np.ones((1, 1, 1, 2))
    np.testing.assert_array_equal(Resolvent(0.1, 1e-9).apply(one, x), x)
    many = operator(outlying("float32"), LaplacianType.RANDOM_WALK)
    y = np.random.default_rng(3).standard_normal((1, 1, 130, 2)).astype(np.float32)
    np.testing.assert_array_equal(Resolvent(1.0, 1e-6).apply(many, y), y)
    with pytest.raises(ArgumentError, match=r"alpha: got 1e-08; expected at least .* float32"):
        Resolvent(1e-8, 1e-6).apply(many, y)
