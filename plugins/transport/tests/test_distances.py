"""The functions: distances against closed forms, SciPy and POT; Sinkhorn; the metric."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import polyattn_transport
from polyattn_core.errors import ArgumentError, DataError, ShapeError
from polyattn_core.spec import resolve
from polyattn_transport import (
    ot_distance,
    sinkhorn,
    sliced_wasserstein_distance,
    wasserstein_1d,
)
from polyattn_transport.plugin import polyattn_metrics

RNG = np.random.default_rng(0)


def test_line_against_scipy() -> None:
    x, y = RNG.standard_normal(13), RNG.standard_normal(8)
    u, v = RNG.random(13), RNG.random(8)
    expected = scipy.stats.wasserstein_distance(x, y)
    assert float(wasserstein_1d(x, y, power=1)) == pytest.approx(expected, abs=1e-12)
    expected = scipy.stats.wasserstein_distance(x, y, u, v)
    found = wasserstein_1d(x, y, x_weights=u, y_weights=v, power=1)
    assert float(found) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_line_against_the_best_assignment(power: float) -> None:
    x, y = RNG.standard_normal((2, 9))
    cost = np.abs(x[:, None] - y) ** power
    best = cost[scipy.optimize.linear_sum_assignment(cost)].mean() ** (1 / power)
    assert float(wasserstein_1d(x, y, power=power)) == pytest.approx(best)


def test_line_between_normal_distributions() -> None:
    """W₂² = (m₁ − m₂)² + (s₁ − s₂)²."""
    levels = (np.arange(100_000) + 0.5) / 100_000
    normal = scipy.stats.norm.ppf(levels)
    found = float(wasserstein_1d(1 + 2 * normal, -1 + 0.5 * normal))
    assert found**2 == pytest.approx(4 + 2.25, rel=1e-3)


def test_line_broadcasts() -> None:
    x, y = RNG.standard_normal((3, 1, 5)), RNG.standard_normal((4, 6))
    found = wasserstein_1d(x, y)
    assert found.shape == (3, 4)
    assert found[2, 1] == pytest.approx(float(wasserstein_1d(x[2, 0], y[1])))


def test_translation() -> None:
    x = RNG.standard_normal((50, 4))
    move = np.array([1.0, -2.0, 0.5, 3.0])
    found = sliced_wasserstein_distance(x, x + move, projections=4)
    assert found == pytest.approx(np.linalg.norm(move) / 2)


@pytest.mark.oracle
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_sliced_distance_against_pot(ot: Any, power: float) -> None:
    x, y = RNG.standard_normal((20, 3)), RNG.standard_normal((30, 3)) + 1
    a, b = RNG.random(20), RNG.random(30)
    along = RNG.standard_normal((3, 7))
    along /= np.linalg.norm(along, axis=0)
    expected = ot.sliced_wasserstein_distance(
        x, y, a / a.sum(), b / b.sum(), p=power, projections=along
    )
    found = sliced_wasserstein_distance(
        x, y, power=power, directions=along.T, x_weights=a, y_weights=b
    )
    assert found == pytest.approx(float(expected))


@pytest.mark.oracle
def test_sinkhorn_against_pot(ot: Any) -> None:
    cost = RNG.random((6, 9))
    a, b = RNG.random(6), RNG.random(9)
    a, b = a / a.sum(), b / b.sum()
    for epsilon in (1.0, 0.05):
        found = sinkhorn(cost, a, b, regularisation=epsilon, max_iterations=20_000)
        assert found.converged
        expected = ot.sinkhorn(
            a, b, cost, epsilon, method="sinkhorn_log", stopThr=1e-12, numItermax=50_000
        )
        np.testing.assert_allclose(found.plan, expected, atol=1e-8)
        potentials = found.row_potential[:, None] + found.column_potential
        np.testing.assert_allclose(np.exp((potentials - cost) / epsilon), found.plan)


def test_sinkhorn_reports_convergence() -> None:
    cost = RNG.random((30, 30))
    early = sinkhorn(cost, regularisation=0.01, max_iterations=3)
    assert not early.converged
    assert early.iterations == 3
    assert early.error == pytest.approx(np.abs(early.plan.sum(axis=0) - 1 / 30).max())
    late = sinkhorn(cost, regularisation=0.01, tolerance=1e-6, max_iterations=100_000)
    assert late.converged
    assert late.error <= 1e-6
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    assert late.cost == pytest.approx(cost[rows, columns].mean(), abs=0.02)


def test_sinkhorn_with_masses_of_0() -> None:
    found = sinkhorn(RNG.random((3, 3)), [0.5, 0.0, 0.5], [0.2, 0.8, 0.0], regularisation=0.5)
    assert found.converged
    assert not found.plan[1].any()
    assert not found.plan[:, 2].any()


def test_metric() -> None:
    x = RNG.standard_normal((2, 4, 300, 8))
    assert ot_distance(x, x) == 0
    assert ot_distance(x, x + 100) == pytest.approx(1, abs=1e-3)
    y = RNG.standard_normal((2, 4, 200, 8)) * 2 + 1
    base = ot_distance(x, y)
    assert 0.05 < base < 0.7
    assert ot_distance(7 * x + 3, 7 * y + 3) == pytest.approx(base)
    assert ot_distance(x, y[:, ::2]) == pytest.approx(base, abs=0.05)  # grouped heads
    assert ot_distance(x[0, 0], y[0, 0]) == pytest.approx(base, abs=0.1)
    assert ot_distance(x, y, seed=1) == pytest.approx(base, abs=0.02)
    assert ot_distance(x, y, samples=50) != base
    assert ot_distance(x, y, projections=3) != base
    assert ot_distance(np.ones((5, 3)), np.ones((4, 3))) == 0


def test_metric_of_normal_clouds() -> None:
    """Δ²/(Δ² + 2) on the line."""
    levels = (np.arange(2000) + 0.5) / 2000
    normal = scipy.stats.norm.ppf(levels)[:, None]
    for delta in (0.5, 1.0, 3.0):
        expected = delta**2 / (delta**2 + 2)
        assert ot_distance(normal, normal + delta) == pytest.approx(expected, rel=5e-3)


def test_wrong_arguments() -> None:
    good = np.zeros((3, 2))
    with pytest.raises(ArgumentError, match=r"power: got 0.5; expected at least 1"):
        wasserstein_1d([1.0], [2.0], power=0.5)
    with pytest.raises(ShapeError, match=r"x: "):
        wasserstein_1d([], [2.0])
    with pytest.raises(DataError, match=r"y: .*finite"):
        wasserstein_1d([1.0], [np.nan])
    with pytest.raises(ArgumentError, match=r"x_weights"):
        wasserstein_1d([1.0, 2.0], [1.0], x_weights=[-1.0, 2.0])
    with pytest.raises(ShapeError, match=r"x_weights"):
        wasserstein_1d([1.0, 2.0], [1.0], x_weights=[1.0, 2.0, 3.0])
    with pytest.raises(ShapeError, match=r"y: .*width 2"):
        sliced_wasserstein_distance(good, np.zeros((3, 4)))
    with pytest.raises(ArgumentError, match=r"projections: got 0"):
        sliced_wasserstein_distance(good, good, projections=0)
    with pytest.raises(ArgumentError, match=r"regularisation"):
        sinkhorn(good, regularisation=0)
    with pytest.raises(ArgumentError, match=r"max_iterations"):
        sinkhorn(good, max_iterations=0)
    with pytest.raises(ArgumentError, match=r"b: .*sum"):
        sinkhorn(good, [1, 1, 1], [1, 1])
    with pytest.raises(ShapeError, match=r"a: "):
        sinkhorn(good, [1, 1])
    with pytest.raises(ShapeError, match=r"key: .*width 2"):
        ot_distance(good, np.zeros((3, 4)))


def test_the_metric_is_the_function() -> None:
    (metric,) = polyattn_metrics()
    assert metric.name == "ot-distance"
    assert resolve(metric.factory) is polyattn_transport.ot_distance


def test_names_are_listed_before_they_are_imported() -> None:
    assert set(dir(polyattn_transport)) >= set(polyattn_transport.__all__)
    for name in polyattn_transport.__all__:
        assert getattr(polyattn_transport, name).__name__ == name
