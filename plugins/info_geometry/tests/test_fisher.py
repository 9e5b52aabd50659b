"""The Fisher metric against dense matrices, SciPy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import rel_entr, softmax

from polyattn_core.errors import ArgumentError, DTypeError, ShapeError
from polyattn_info_geometry import FisherConfig, FisherMetric, conjugate_gradient


def dense(p):
    return np.diag(p) - np.outer(p, p)


def row_by_row(function, p, v):
    return np.array([function(dense(a), b) for a, b in zip(p, v, strict=True)])


@pytest.mark.parametrize("size", [1, 2, 63, 65])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_against_dense_matrices(rng, size, dtype):
    fisher = FisherMetric()
    p = softmax(rng.standard_normal((7, size)), axis=-1).astype(dtype)
    v = rng.standard_normal((7, size)).astype(dtype)
    close = 1e-9 if dtype is np.float64 else 2e-4
    found = fisher.apply(p, v)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, row_by_row(np.matmul, p, v), atol=close)
    exact = row_by_row(
        lambda f, x: scipy.linalg.pinv(f, rtol=1e-6) @ x,
        p.astype(np.float64) / p.sum(-1, keepdims=True, dtype=float),
        v,
    )
    np.testing.assert_allclose(fisher.solve(p, v), exact, atol=close * (1 + abs(exact).max()))
    damped = row_by_row(lambda f, x: np.linalg.solve(f + 0.3 * np.eye(size), x), p, v)
    np.testing.assert_allclose(fisher.solve(p, v, damping=0.3), damped, atol=close)
    diagonal = v / (p * (1 - p) + 0.3)
    np.testing.assert_allclose(fisher.solve_diagonal(p, v, damping=0.3), diagonal, rtol=1e-4)


def test_conjugate_gradients_agree_with_the_closed_form(rng):
    fisher = FisherMetric(FisherConfig(cg_tol=1e-12, max_cg_iters=500))
    p = softmax(rng.standard_normal((2, 3, 20)), axis=-1)
    v = rng.standard_normal((3, 20))
    for damping in (0.0, 0.1):
        found = fisher.solve_cg(p, v, damping=damping)
        assert found.converged(1e-12)
        exact = fisher.solve(p, np.broadcast_to(v, p.shape), damping=damping)
        np.testing.assert_allclose(found.x, exact, rtol=1e-8, atol=1e-9)


def test_conjugate_gradients_on_impossible_outcomes():
    found = FisherMetric(FisherConfig(cg_tol=1e-12)).solve_cg([0.5, 0.5, 0.0], [1.0, -1.0, 5.0])
    np.testing.assert_allclose(
        found.x, np.linalg.pinv(dense(np.array([0.5, 0.5, 0]))) @ [1, -1, 5], atol=1e-12
    )


def test_limits_of_the_solver_act():
    matrix = np.diag(np.arange(1.0, 41.0))
    right = np.ones(40)
    few = conjugate_gradient(lambda x: x @ matrix, right, max_iters=3)
    assert few.iterations == 3
    assert not few.converged(1e-6)
    rough = FisherMetric(FisherConfig(cg_tol=1e-1)).solve_operator(lambda x: x @ matrix, right)
    fine = FisherMetric(FisherConfig(cg_tol=1e-9)).solve_operator(lambda x: x @ matrix, right)
    assert rough.iterations < fine.iterations
    np.testing.assert_allclose(fine.x, 1 / np.arange(1, 41), rtol=1e-7)
    damped = FisherMetric(FisherConfig(damping=2.0, cg_tol=1e-10)).solve_operator(
        lambda x: x @ matrix, right
    )
    np.testing.assert_allclose(damped.x, 1 / (2 + np.arange(1, 41)), rtol=1e-8)


@pytest.mark.parametrize("size", [1e-3, 1e-9, 1e-150])
def test_tiny_right_hand_sides_are_solved(size):
    matrix = np.array([[4.0, 1], [1, 3]])
    found = conjugate_gradient(lambda x: x @ matrix, size * np.array([1.0, 2]))
    np.testing.assert_allclose(found.x / size, np.linalg.solve(matrix, [1, 2]), rtol=1e-6)


def test_eps_bounds_the_division():
    p, v = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    steps = [FisherMetric(FisherConfig(eps=e)).solve(p, v)[1] for e in (1e-2, 1e-4)]
    assert steps[1] > 50 * steps[0] > 0


def test_second_derivative_of_the_divergence(rng):
    logits, v = rng.standard_normal(6), rng.standard_normal(6)
    p, h = softmax(logits), 1e-3
    along = [rel_entr(p, softmax(logits + s * h * v)).sum() for s in (1, -1)]
    curvature = sum(along) / h**2
    np.testing.assert_allclose(FisherMetric().inner(p, v, v), curvature, rtol=1e-5)


def test_distance(rng):
    p, r = softmax(rng.standard_normal((2, 5, 9)), axis=-1)
    direct = 2 * np.arccos(np.sqrt(p * r).sum(-1))
    fisher = FisherMetric()
    np.testing.assert_allclose(fisher.distance(p, r), direct, rtol=1e-12)
    np.testing.assert_allclose(fisher.distance(np.eye(3)[0], np.eye(3)[1]), np.pi)
    assert fisher.distance(p, p).max() == 0


@pytest.mark.parametrize("small", [1e-5, 1e-10, 1e-15])
def test_distance_near_0_is_that_of_the_metric(small):
    p = np.array([0.25, 0.75])
    direction = np.array([1.0, -1.0])
    length = small * np.sqrt((direction**2 / p).sum())  # the metric in probabilities is Σ dp²/p
    found = FisherMetric().distance(p, p + small * direction)
    moved = (p + small * direction) - p  # what is left of it after rounding
    np.testing.assert_allclose(found, np.sqrt((moved**2 / p).sum()), rtol=1e-4)
    np.testing.assert_allclose(found, length, rtol=0.2)


distributions = hnp.arrays(float, (3, 6), elements=st.floats(1e-6, 1)).map(
    lambda x: x / x.sum(-1, keepdims=True)
)


@settings(max_examples=40, deadline=None)
@given(distributions)
def test_distance_is_a_metric(three):
    d = FisherMetric().distance(three[:, None], three[None])
    np.testing.assert_allclose(d, d.T)
    assert (d <= np.pi + 1e-12).all()
    assert d[0, 2] <= d[0, 1] + d[1, 2] + 1e-12


def test_non_contiguous_and_half_precision(rng):
    p = softmax(rng.standard_normal((6, 8)), axis=-1)
    v = rng.standard_normal((8, 6)).T
    np.testing.assert_allclose(FisherMetric().apply(p, v), row_by_row(np.matmul, p, v))
    half = FisherMetric().apply(p.astype(np.float16), v.astype(np.float16))
    np.testing.assert_allclose(half, row_by_row(np.matmul, p, v), atol=1e-2)


@pytest.mark.parametrize(
    ("probs", "vector", "error"),
    [
        ([0.5, 0.6], [1.0, 2.0], ArgumentError),
        ([-0.5, 1.5], [1.0, 2.0], ArgumentError),
        ([np.nan, 1.0], [1.0, 2.0], ArgumentError),
        ([0.5, 0.5], [1.0, 2.0, 3.0], ShapeError),
        ([], [], ShapeError),
        (np.ones((2, 1)), np.ones((3, 1)), ShapeError),
        (np.ones(1), np.ones(1, np.float32), DTypeError),
    ],
)
def test_errors(probs, vector, error):
    with pytest.raises(error):
        FisherMetric().apply(probs, vector)


def test_damping_is_checked():
    with pytest.raises(ArgumentError, match="damping"):
        FisherMetric().solve([1.0], [1.0], damping=-1)
    for bad in ({"eps": 0}, {"max_cg_iters": 0}, {"cg_tol": 0}, {"damping": -1}, {"nothing": 1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            FisherConfig(**bad)
