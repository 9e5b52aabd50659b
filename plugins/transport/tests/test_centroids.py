"""k-means with mass, transport to centroids, and plans of low rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_transport.centroids import cluster

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]


def blobs(count: int = 60, clusters: int = 4) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    middle = 10 * rng.standard_normal((clusters, 3))
    label = rng.integers(0, clusters, count)
    return (middle[label] + 0.1 * rng.standard_normal((count, 3)))[None, None], label


def test_clusters_are_found() -> None:
    keys, label = blobs()
    found = cluster(keys, 4)
    pairs = set(zip(label.tolist(), found.label[0, 0].tolist(), strict=True))
    assert len(pairs) == 4
    for c in range(4):
        np.testing.assert_allclose(
            found.center[0, 0, c], keys[0, 0][found.label[0, 0] == c].mean(0)
        )
    np.testing.assert_allclose(found.mass.sum(axis=-1), 1)


def test_rounds_lower_the_inertia_to_that_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.cluster", reason="scikit-learn is not installed")
    keys = np.random.default_rng(1).standard_normal((1, 1, 400, 5))

    def inertia(rounds: int) -> float:
        found = cluster(keys, 8, rounds=rounds)
        nearest = np.take_along_axis(found.center, found.label[..., None], axis=2)
        return float(((keys - nearest) ** 2).sum())

    best = sklearn.KMeans(8, n_init=10, random_state=0).fit(keys[0, 0]).inertia_
    assert inertia(0) > inertia(3) > inertia(50)
    assert inertia(50) < 1.05 * best


def test_order_of_keys_does_not_matter_and_duplicates_leave_clusters_empty() -> None:
    keys, _ = blobs()
    order = np.random.default_rng(2).permutation(60)
    first, second = cluster(keys, 6), cluster(keys[:, :, order], 6)
    np.testing.assert_array_equal(first.label[..., order], second.label)
    twice = np.repeat(keys[:, :, :2], 5, axis=2)
    found = cluster(twice, 4)
    assert (found.count > 0).sum() == 2
    assert found.count.sum() == 10


def test_wrong_arguments() -> None:
    with pytest.raises(ShapeError, match=r"keys: .*4 axes"):
        cluster(np.zeros((3, 2)), 2)
    with pytest.raises(ArgumentError, match=r"centroids: got 0; expected at least 1"):
        cluster(np.zeros((1, 1, 3, 2)), 0)


def test_options_change_the_clusters(create: Create) -> None:
    key = np.random.default_rng(0).standard_normal((1, 1, 200, 4))
    base = create("centroid-ot", dim=4, centroids=5).clusters(key).center
    for options in ({"seed": 1}, {"rounds": 0}, {"centroids": 6}):
        other = create("centroid-ot", dim=4, **{"centroids": 5, **options}).clusters(key).center
        assert other.shape != base.shape or not np.allclose(other, base)


def test_a_centroid_for_every_key_is_sinkhorn(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(6, 8)
    every = create("centroid-ot", dim=8, heads=2, centroids=8, iterations=300, rounds=50)
    if (every.clusters(key).count == 1).all():
        plain = create("sinkhorn", dim=8, heads=2, iterations=300)
        np.testing.assert_allclose(
            every.attend(query, key, value), plain.attend(query, key, value), atol=1e-9
        )
    else:
        pytest.fail("k-means++ draws distinct keys until none is left")


@pytest.mark.oracle
def test_centroid_plan_against_pot(create: Create, arrays: Arrays, ot: Any) -> None:
    query, key, value = arrays(9, 30)
    attention = create("centroid-ot", dim=8, heads=2, centroids=4, iterations=2000, scale=0.8)
    output, clusters = attention.attend(query, key, value), attention.clusters(key)
    for b, h in np.ndindex(2, 2):
        center, mass = clusters.center[b, h], clusters.mass[b, h]
        cost = ((query[b, h][:, None] - center[None]) ** 2).sum(axis=-1) / 2
        plan = ot.sinkhorn(np.full(9, 1 / 9), mass, cost, 1 / 0.8, "sinkhorn_log", stopThr=1e-12)
        means = np.stack([value[b, h][clusters.label[b, h] == c].mean(axis=0) for c in range(4)])
        np.testing.assert_allclose(output[b, h], 9 * plan @ means, atol=1e-8)


# ---- low rank ----


def features(attention: Any, array: Array) -> Array:
    root = attention.config.head_dim**-0.25
    return np.asarray(np.exp(root * array @ attention.directions.T))


@pytest.mark.oracle
def test_low_rank_against_pot(create: Create, arrays: Arrays, ot: Any) -> None:
    query, key, value = arrays(9, 12)
    attention = create("low-rank-ot", dim=8, heads=2, rank=5, iterations=2000)
    weights = attention.observe(query, key, value, "weights").weights
    for b, h in np.ndindex(2, 2):
        left, right = features(attention, query[b, h]), features(attention, key[b, h])
        a, mass = np.full(9, 1 / 9), np.full(12, 1 / 12)
        u, v = ot.lowrank.sinkhorn_low_rank_kernel(
            left, right, a, mass, numItermax=5000, stopThr=1e-13
        )
        plan = u[:, None] * (left @ right.T) * v
        np.testing.assert_allclose(weights[b, h], 9 * plan, atol=1e-7)


def test_many_features_approach_sinkhorn(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(20, 20)
    exact = create("sinkhorn", dim=8, heads=2, iterations=50).attend(query, key, value)

    def error(rank: int) -> float:
        found = create("low-rank-ot", dim=8, heads=2, rank=rank, iterations=50)
        return float(np.abs(found.attend(query, key, value) - exact).mean())

    assert error(4096) < 0.5 * error(64)
    assert error(4096) < 0.05


def test_low_rank_plan(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(20, 30)
    attention = create("low-rank-ot", dim=8, heads=2, rank=3, iterations=300)
    seen = attention.observe(query, key, value, "weights", "column_mass")
    assert (np.linalg.matrix_rank(seen.weights) == 3).all()
    np.testing.assert_allclose(seen.weights.sum(axis=-1), 1, atol=1e-12)
    np.testing.assert_allclose(seen.column_mass, 20 / 30, atol=1e-8)
    other = create("low-rank-ot", dim=8, heads=2, rank=3, iterations=300, seed=1)
    assert np.abs(other.attend(query, key, value) - seen.output).max() > 0.01
    early = create("low-rank-ot", dim=8, heads=2, rank=3, iterations=300, tolerance=0.1)
    assert 0 < np.abs(early.attend(query, key, value) - seen.output).max() < 0.3
