"""The Laplacian by itself: what it is, when it is built, what it refuses; and the metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.spatial

from polyattn_core.errors import ArgumentError, ConfigError, ShapeError
from polyattn_diffusion import graph
from polyattn_diffusion.laplacian import GraphLaplacian, LaplacianType
from polyattn_diffusion.metrics import diffusion_energy, estimate

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]


@pytest.mark.parametrize("k", [None, 3])
def test_spectra(k: int | None) -> None:
    keys = np.random.default_rng(0).standard_normal((3, 40, 5))
    for kind in LaplacianType:
        laplacian = GraphLaplacian.from_keys(keys, None, kind, k=k)
        matrix = laplacian.to_array()
        assert matrix.shape == (3, 40, 40)
        eigenvalues = np.linalg.eigvals(matrix)
        assert abs(eigenvalues.imag).max() < 1e-9
        assert -1e-9 < eigenvalues.real.min() < 1e-9
        assert eigenvalues.real.max() <= laplacian.largest_eigenvalue
        if kind is not LaplacianType.SYMMETRIC_NORMALIZED:
            np.testing.assert_allclose(matrix.sum(axis=-1), 0, atol=1e-10)
        if kind is not LaplacianType.RANDOM_WALK:
            np.testing.assert_allclose(matrix, matrix.swapaxes(-1, -2), atol=1e-12)
        x = np.random.default_rng(1).standard_normal((3, 40, 2))
        np.testing.assert_allclose(laplacian.apply(x), matrix @ x, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (700, 3), (5000, 8)])
def test_neighbours_are_those_of_a_tree(shape: tuple[int, int], dtype: Any) -> None:
    # Far from the origin, where products of float32 alone would cancel.
    keys = (np.random.default_rng(2).standard_normal(shape) + 30).astype(dtype)
    k = min(7, len(keys) - 1)
    found = graph.NeighbourGraph(keys[None, None], 1.0, None, None, 7).edges
    pairs = set(zip(found.rows.tolist(), found.indices.tolist(), strict=True))
    if not k:
        assert not pairs
        return
    _, near = scipy.spatial.cKDTree(keys.astype(np.float64)).query(keys, k + 1)
    expected = {(i, j) for i, row in enumerate(near.tolist()) for j in row if j != i}
    assert pairs == expected | {(j, i) for i, j in expected}


def test_nothing_of_the_size_of_all_pairs_is_in_memory() -> None:
    import tracemalloc

    keys = np.random.default_rng(0).standard_normal((8192, 8)).astype(np.float32)
    x = keys[:, :4].copy()
    for k in (None, 8):
        GraphLaplacian.from_keys(keys[:100], k=k).apply(x[:100])  # compile
        tracemalloc.start()
        GraphLaplacian.from_keys(keys, k=k).apply(x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8192 * 8192 * 4 / 4


def test_graph_is_built_once_and_when_keys_change(
    create: Create, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = arrays()
    built: list[int] = []
    original = graph.CompleteGraph.__init__

    def counted(self: Any, *args: Any) -> None:
        built.append(1)
        original(self, *args)

    monkeypatch.setattr(graph.CompleteGraph, "__init__", counted)
    diffusion = create("diffusion", dim=8, heads=2)
    assert diffusion.laplacian is None
    first = diffusion.attend(query, key, value)
    np.testing.assert_array_equal(diffusion.attend(query, key, value), first)
    diffusion.attend(2 * query, key.copy(), value + 1)
    assert len(built) == 1
    assert diffusion.laplacian.to_array().shape == (2, 2, 30, 30)
    key[0, 0, 0, 0] += 1e-9  # in place: the copy that was kept tells
    diffusion.attend(query, key, value)
    assert len(built) == 2
    diffusion.reset()
    assert diffusion.laplacian is None
    diffusion.attend(query, key, value)
    assert len(built) == 3


def test_bandwidth_comes_from_the_data(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    diffusion = create("diffusion", dim=8, heads=2)
    scaled = create("diffusion", dim=8, heads=2, scale=0.5 * 1e-12)
    # Keys a million times as large make the same graph.
    np.testing.assert_allclose(
        diffusion.attend(query, key, value),
        scaled.attend(1e6 * query, 1e6 * key, value),
        rtol=1e-9,
    )
    # In 512 dimensions a bandwidth of 1 leaves no edge; the median does.
    keys = np.random.default_rng(0).standard_normal((50, 512))
    assert GraphLaplacian.from_keys(keys, 1.0).degrees.max() < 1e-100
    assert GraphLaplacian.from_keys(keys).degrees.min() > 10


def test_sampled_median() -> None:
    keys = np.random.default_rng(0).standard_normal((2000, 3))
    exact = np.median(scipy.spatial.distance.pdist(keys))
    assert GraphLaplacian.from_keys(keys, k=2).sigma == pytest.approx(exact, rel=0.02)


def test_equal_keys() -> None:
    laplacian = GraphLaplacian.from_keys(np.ones((4, 2)), k=2)
    assert laplacian.sigma == 1
    assert np.isfinite(laplacian.to_array()).all()
    lonely = GraphLaplacian.from_keys([[1.0, 2.0]])
    np.testing.assert_array_equal(lonely.to_array(), [[0]])


def test_tutorial(create: Create) -> None:
    """Multi-scale diffusion for document understanding."""
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((200, 16))
    diffusion = create(
        "diffusion", dim=16, t=2.0, num_steps=20, sigma=1.0, use_knn=True, k=32,
        laplacian_type=LaplacianType.SYMMETRIC_NORMALIZED,
    )  # fmt: skip
    scales = diffusion.compute_multiscale(keys[7], keys, 4)
    assert scales.shape == (4, 200)
    # The last scale is the diffusion itself.
    output = diffusion.compute_diffusion(keys[7], keys, np.eye(200))
    np.testing.assert_allclose(scales[-1], output, rtol=1e-10, atol=1e-14)
    shares = scales / scales.sum(axis=-1, keepdims=True)
    entropy = -(shares * np.log(shares)).sum(axis=-1)
    assert (np.diff(entropy) > 0).all()  # from local to global
    many = create("diffusion", dim=16, heads=4).compute_multiscale(keys, keys, 3)
    assert many.shape == (3, 4, 200, 200)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GraphLaplacian.from_keys(np.ones(3)), ShapeError, "keys: got .3,."),
        (lambda: GraphLaplacian.from_keys(np.ones((3, 1)), -1.0), ArgumentError, "sigma: got -1.0"),
        (lambda: GraphLaplacian.from_keys(np.ones((3, 1)), 1, "sym"), ArgumentError, "random-walk"),
        (lambda: GraphLaplacian.from_keys(np.ones((3, 1)), k=0), ArgumentError, "k: got 0"),
        (lambda: GraphLaplacian.from_keys(np.ones((3, 1))).apply(np.ones((2, 1))), ShapeError, "x"),
        (lambda: estimate(np.ones((3, 1)), np.ones((4, 1))), ShapeError, "key, value"),
        (lambda: estimate(np.ones((3, 1)), np.ones((3, 1)), sample=0), ArgumentError, "sample"),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("diffusion", {"k": 5}, "k: got 5"),
        ("diffusion", {"num_steps": 5, "tolerance": 0.1}, "tolerance"),
        ("diffusion", {"sigma": 0.0}, "sigma"),
        ("diffusion", {"causal": True}, "causal"),
        ("ppr", {"alpha": 0.0}, "alpha"),
        ("chebyshev", {"tolerance": 0.1}, "tolerance"),
        ("advection-diffusion", {"laplacian_type": "unnormalized"}, "laplacian_type"),
    ],
)
def test_options_refused(create: Create, name: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create(name, dim=8, **options)


def test_too_long_is_refused(create: Create, arrays: Arrays) -> None:
    with pytest.raises(ArgumentError, match=r"t: got a filter of more than .* terms"):
        create("wave", dim=8, heads=2, t=1e6).attend(*arrays())
    with pytest.raises(ArgumentError, match=r"t: got 1000000"):
        create("advection-diffusion", dim=8, heads=2, t=1e6).attend(*arrays())


# ---- the metric ----


def energy_of_neighbours(key: Array, value: Array) -> float:
    distances, near = scipy.spatial.KDTree(key).query(key, 9)
    weights = np.exp(-0.5 * (distances[:, 1:] / np.median(distances[:, 1:])) ** 2)
    squares = ((value[:, None] - value[near[:, 1:]]) ** 2).sum(axis=2)
    mean = scipy.spatial.distance.pdist(value, "sqeuclidean").mean()
    return float((weights * squares).sum() / weights.sum() / mean)


def test_energy() -> None:
    rng = np.random.default_rng(0)
    key, value = 50 + rng.standard_normal((3, 70, 4)), rng.standard_normal((3, 70, 2))
    value[1] = key[1, :, :2]
    expected = [energy_of_neighbours(k, v) for k, v in zip(key, value, strict=True)]
    assert diffusion_energy(key, key, value) == pytest.approx(np.mean(expected), rel=1e-9)
    assert expected[1] < 0.5 < 0.9 < expected[0] < 1.1
    assert estimate(key, value).standard_error == 0
    by_head = [diffusion_energy(k, k, v) for k, v in zip(key, value, strict=True)]
    np.testing.assert_allclose(by_head, expected, rtol=1e-9)


def test_energy_of_what_has_none() -> None:
    key, value = np.random.default_rng(0).standard_normal((2, 3, 60, 2))
    assert diffusion_energy(key, key, np.ones_like(value)) == 0
    assert diffusion_energy(key[:, :1], key[:, :1], value[:, :1]) == 0
    assert diffusion_energy(key[:0], key[:0], value[:0]) == 0
    assert diffusion_energy(key[:, :2], key[:, :2], value[:, :2]) == pytest.approx(1)
    assert 0.5 < diffusion_energy(np.ones_like(key), key, value) < 1.5


def test_energy_tells_clusters_from_noise() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(6), 40)
    key = 5 * rng.standard_normal((6, 32))[labels] + rng.standard_normal((240, 32))
    assert diffusion_energy(key, key, np.eye(6)[labels]) == 0
    assert diffusion_energy(key, key, key) < 0.1
    assert diffusion_energy(key, key, rng.standard_normal((240, 32))) == pytest.approx(1, abs=0.05)
    # Twins that disagree: like keys carry unlike values.
    place = np.repeat(np.arange(40.0) * 100, 2)[:, None] + np.tile([0.0, 1.0], 40)[:, None]
    assert diffusion_energy(place, place, np.tile([1.0, -1.0], 40)[:, None]) > 1.1


@pytest.mark.parametrize("sample", [64, 256])
def test_sampled_energy_and_its_error(sample: int) -> None:
    rng = np.random.default_rng(0)
    key = rng.standard_normal((3000, 4))
    value = np.tanh(key[:, :2]) + 0.5 * rng.standard_normal((3000, 2))
    exact = energy_of_neighbours(key, value)
    found = [estimate(key, value, sample=sample, seed=seed) for seed in range(40)]
    misses = np.array([e.value - exact for e in found])
    errors = np.array([e.standard_error for e in found])
    assert (errors > 0).all()
    # The stated error is of the size of the real one, and there is no bias beside it.
    assert 0.6 < np.sqrt((misses**2).mean()) / errors.mean() < 1.6
    assert abs(misses.mean()) < 4 * errors.mean() / np.sqrt(40)
    assert diffusion_energy(key, key, value) == pytest.approx(exact, rel=0.15)
