"""Filters against SciPy's integrators and matrix functions, on graphs built by scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.integrate
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg
import scipy.spatial.distance
import scipy.special
import sklearn.neighbors

from polyattn_core.errors import ConfigError
from polyattn_diffusion.config import LaplacianType

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def adjacency(key: Array, sigma: float | None, k: int | None) -> Array:
    """Gaussian weights, the graph of neighbours by scikit-learn."""
    pairs = scipy.spatial.distance.pdist(key)
    sigma = float(np.median(pairs)) if sigma is None else sigma
    weights: Array = np.exp(-scipy.spatial.distance.squareform(pairs**2) / (2 * sigma**2))
    np.fill_diagonal(weights, 0)
    if k is not None:
        search = sklearn.neighbors.NearestNeighbors(n_neighbors=k).fit(key)
        near = search.kneighbors_graph(mode="connectivity").toarray() > 0
        weights = np.where(near | near.T, weights, 0)
    return weights


def laplacian(weights: Array, kind: str) -> Array:
    """By SciPy."""
    if kind == "unnormalized":
        return np.asarray(scipy.sparse.csgraph.laplacian(weights))
    if kind == "symmetric-normalized":
        return np.asarray(scipy.sparse.csgraph.laplacian(weights, normed=True))
    return np.eye(len(weights)) - weights / weights.sum(axis=1, keepdims=True)


def attended(query: Array, key: Array, spread: Callable[[Array], Array]) -> Array:
    """p·spread for each batch element and head, where spread maps keys to filtered values."""
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    weights = scipy.special.softmax(scores, axis=-1)
    filtered = np.array([[spread(k) for k in heads] for heads in key])
    return weights @ filtered


@pytest.mark.parametrize("kind", list(LaplacianType))
@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("sigma", [None, 1.7])
def test_heat_kernel(
    create: Create, arrays: Arrays, kind: str, k: int | None, sigma: float | None
) -> None:
    query, key, _ = arrays(7, 65)
    value = np.broadcast_to(np.eye(65), (2, 2, 65, 65))
    options = {} if k is None else {"use_knn": True, "k": k}
    diffusion = create(
        "diffusion", dim=8, heads=2, t=1.3, sigma=sigma, laplacian_type=kind, **options
    )

    def spread(key: Array) -> Array:
        matrix = laplacian(adjacency(key, sigma, k), kind)
        found: Array = scipy.sparse.linalg.expm_multiply(-1.3 * matrix, np.eye(65))
        return found

    output = diffusion.attend(query, key, value)
    np.testing.assert_allclose(output, attended(query, key, spread), **CLOSE)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-8])
def test_tolerance_is_kept_and_used(create: Create, arrays: Arrays, tolerance: float) -> None:
    query, key, value = arrays(5, 40)
    exact = create("diffusion", dim=8, heads=2, t=20.0).attend(query, key, value)
    found = create("diffusion", dim=8, heads=2, t=20.0, tolerance=tolerance)
    error = abs(found.attend(query, key, value) - exact).max()
    # Values of norm at most √40·3, through a filter that is off by at most the tolerance.
    assert 0 < error <= 20 * tolerance


def test_euler_converges_to_the_heat_equation(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(5, 40)
    exact = create("diffusion", dim=8, heads=2, t=2.0).attend(query, key, value)
    errors = [
        abs(
            create("diffusion", dim=8, heads=2, t=2.0, num_steps=n).attend(query, key, value)
            - exact
        ).max()
        for n in (10, 20, 40)
    ]
    ratios = [a / b for a, b in pairwise(errors)]
    assert all(1.7 < ratio < 2.3 for ratio in ratios)  # of first order


def test_unstable_euler_is_refused(create: Create, arrays: Arrays) -> None:
    with pytest.raises(ConfigError, match=r"num_steps: got 3; expected .*at least 4"):
        create("diffusion", dim=8, t=3.5, num_steps=3)
    create("diffusion", dim=8, t=3.5, num_steps=4)
    # Degrees reach the tens here, which only the keys can tell.
    loose = create("diffusion", dim=8, heads=2, t=1.0, num_steps=2, laplacian_type="unnormalized")
    with pytest.raises(ValueError, match=r"num_steps: got 2; expected at least [0-9]+, as"):
        loose.attend(*arrays(5, 40))


def test_wave_against_an_integrator(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(3, 20)

    def spread(key: Array) -> Array:
        matrix = laplacian(adjacency(key, None, None), "symmetric-normalized")
        start = value[0, 0]

        def slope(t: float, state: Array) -> Array:
            u, v = state.reshape(2, *start.shape)
            return np.concatenate([v, -matrix @ u]).ravel()

        initial = np.concatenate([start, np.zeros_like(start)]).ravel()
        solution = scipy.integrate.solve_ivp(slope, (0, 4.0), initial, rtol=1e-10, atol=1e-12)
        found: Array = solution.y[:, -1].reshape(2, *start.shape)[0]
        return found

    shared = np.broadcast_to(value[0, 0], value.shape)
    output = create("wave", dim=8, heads=2, t=4.0).attend(query, key, shared)
    np.testing.assert_allclose(output, attended(query, key, spread), atol=1e-7)


def test_advection_against_an_integrator(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(3, 20)
    drift = np.array([1.0, -2.0, 0.5, 0.0])
    mechanism = create("advection-diffusion", dim=8, heads=2, t=2.5, k=4)
    mechanism.parameters.update({"drift": np.stack([drift, drift])})
    shared = np.broadcast_to(value[0, 0], value.shape)

    def spread(key: Array) -> Array:
        weights = adjacency(key, None, 4)
        climb = np.maximum((key @ drift)[None] - (key @ drift)[:, None], 0)
        rates = weights / weights.sum(axis=1, keepdims=True) * (1 + climb)

        def slope(t: float, state: Array) -> Array:
            x = state.reshape(value[0, 0].shape)
            return (rates @ x - rates.sum(axis=1, keepdims=True) * x).ravel()

        solution = scipy.integrate.solve_ivp(
            slope, (0, 2.5), value[0, 0].ravel(), rtol=1e-10, atol=1e-12
        )
        return solution.y[:, -1].reshape(value[0, 0].shape)

    output = mechanism.attend(query, key, shared)
    np.testing.assert_allclose(output, attended(query, key, spread), atol=1e-7)


def test_page_rank_is_a_fixed_point(create: Create, arrays: Arrays) -> None:
    """π = α p + (1 − α) π D⁻¹W, iterated."""
    query, key, _ = arrays(4, 33)
    ppr = create("ppr", dim=8, heads=2, alpha=0.2, use_knn=True, k=6)
    found = ppr.observe(query, key, key, "weights").weights
    scores = query @ key.swapaxes(-1, -2) / 2
    start = scipy.special.softmax(scores, axis=-1)
    for b in range(2):
        for h in range(2):
            weights = adjacency(key[b, h], None, 6)
            walk = weights / weights.sum(axis=1, keepdims=True)
            rank = start[b, h]
            for _ in range(200):
                rank = 0.2 * start[b, h] + 0.8 * rank @ walk
            np.testing.assert_allclose(found[b, h], rank, **CLOSE)


@pytest.mark.oracle
def test_page_rank_against_appnp(create: Create) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        nn = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")
    rng = np.random.default_rng(0)
    key, value = rng.standard_normal((40, 3)), rng.standard_normal((40, 6))
    weights = adjacency(key, 1.0, 5)
    source, target = weights.nonzero()
    # APPNP normalises by D^{−½} W D^{−½}; self-loops are off, as here.
    appnp = nn.APPNP(K=400, alpha=0.1, add_self_loops=False).double()
    theirs = appnp(
        torch.from_numpy(value),
        torch.from_numpy(np.stack([source, target])),
        torch.from_numpy(weights[source, target]),
    ).numpy()
    # Queries so near to one key each that attention before the walk is the identity.
    key_of = key * 1e3
    ppr = create(
        "ppr", dim=3, alpha=0.1, sigma=1e3, use_knn=True, k=5, scale=1.0,
        laplacian_type="symmetric-normalized",
    )  # fmt: skip
    bias = np.where(np.eye(40) > 0, 0.0, -1e9)
    ours = ppr(np.zeros((40, 3)), key_of, value, bias=bias)
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_chebyshev_is_its_polynomial(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(4, 25)
    mechanism = create("chebyshev", dim=8, heads=2, order=5)
    c = np.random.default_rng(5).standard_normal((2, 6))
    mechanism.parameters.update({"coefficients": c})
    output = mechanism.attend(query, key, value)
    c = mechanism.parameters["coefficients"].astype(np.float64)
    for h in range(2):

        def spread(k: Array, h: int = h) -> Array:
            matrix = laplacian(adjacency(k, None, None), "symmetric-normalized")
            eigenvalues, vectors = np.linalg.eigh(matrix)
            filtered = np.polynomial.chebyshev.chebval(eigenvalues - 1, c[h])
            return (vectors * filtered) @ vectors.T

        for b in range(2):
            filtered = spread(key[b, h]) @ value[b, h]
            scores = query[b, h] @ key[b, h].T / 2
            expected = scipy.special.softmax(scores, axis=-1) @ filtered
            np.testing.assert_allclose(output[b, h], expected, **CLOSE)


def test_first_coefficients_are_the_heat_kernel(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(4, 25)
    learned = create("chebyshev", dim=8, heads=2, order=12).attend(query, key, value)
    heat = create("diffusion", dim=8, heads=2, t=1.0).attend(query, key, value)
    np.testing.assert_allclose(learned, heat, atol=1e-6)


def test_scales_reach_t(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(4, 25)
    mechanism = create("multiscale-diffusion", dim=8, heads=2, t=3.0, scales=3, ratio=3.0)
    np.testing.assert_allclose(mechanism.times, [1 / 3, 1, 3])
    for scale, t in enumerate(mechanism.times):
        logits = np.full((2, 3), -100.0)
        logits[:, scale] = 0
        mechanism.parameters.update({"scale_logits": logits})
        alone = create("diffusion", dim=8, heads=2, t=float(t)).attend(query, key, value)
        np.testing.assert_allclose(mechanism.attend(query, key, value), alone, atol=1e-9)
