"""Distances, midpoints and gradients against geoopt, mpmath and torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special

from polyattn_core.errors import ArgumentError

Create = Callable[..., Any]


def ball_points(rng: np.random.Generator, *shape: int, radius: float = 0.95) -> np.ndarray:
    x = rng.standard_normal(shape)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return x * radius * rng.random((*shape[:-1], 1))


def torch_and_geoopt() -> tuple[Any, Any]:
    torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        geoopt = pytest.importorskip("geoopt", reason="geoopt is not installed: make oracles")
    return torch, geoopt


@pytest.mark.oracle
@pytest.mark.parametrize("curvature", [-1.0, -0.3])
def test_poincare_against_geoopt(create: Create, curvature: float) -> None:
    torch, geoopt = torch_and_geoopt()
    ball = geoopt.PoincareBall(c=torch.tensor(-curvature, dtype=torch.float64))
    rng = np.random.default_rng(0)
    radius = 0.95 / np.sqrt(-curvature)
    q, k, v = (ball_points(rng, 1, n, 5, radius=radius) for n in (6, 9, 9))
    mechanism = create("hyperbolic", dim=5, coordinates="ball", curvature=curvature, beta=1.7)
    tensors = [torch.from_numpy(x[0]).requires_grad_() for x in (q, k, v)]
    distance = ball.dist(tensors[0][:, None], tensors[1][None])
    weights = torch.softmax(-1.7 * distance, dim=-1)
    expected = ball.weighted_midpoint(
        tensors[2][None].expand(6, 9, 5), weights=weights, reducedim=[1], dim=-1
    )
    output, pullback = mechanism.attend_vjp(q, k, v)
    np.testing.assert_allclose(output[0], expected.detach().numpy(), rtol=1e-8, atol=1e-10)
    seen = mechanism.observe(q, k, v, "weights").weights
    np.testing.assert_allclose(seen[0], weights.detach().numpy(), rtol=1e-9)
    incoming = rng.standard_normal((6, 5))
    expected.backward(torch.from_numpy(incoming))
    found = pullback(incoming[None])
    for mine, tensor in zip((found.query, found.key, found.value), tensors, strict=True):
        np.testing.assert_allclose(mine[0], tensor.grad.numpy(), rtol=1e-6, atol=1e-8)


@pytest.mark.oracle
def test_lorentz_against_geoopt(create: Create) -> None:
    torch, geoopt = torch_and_geoopt()
    manifold = geoopt.Lorentz(k=torch.tensor(1.0, dtype=torch.float64))
    rng = np.random.default_rng(1)
    spatial = [rng.standard_normal((n, 4)) for n in (5, 8, 8)]
    points = [
        np.concatenate((np.sqrt(1 + (x**2).sum(-1, keepdims=True)), x), axis=-1) for x in spatial
    ]
    q, k, _ = (torch.from_numpy(x) for x in points)
    inner = manifold.inner(None, q[:, None], k[None]).squeeze(-1)
    weights = torch.softmax(2 * 0.4 * inner, dim=-1).numpy()
    mean = weights @ points[2]
    centroid = mean / np.sqrt(mean[:, :1] ** 2 - (mean[:, 1:] ** 2).sum(-1, keepdims=True))
    mechanism = create("lorentz", dim=5, coordinates="hyperboloid", beta=0.4)
    np.testing.assert_allclose(mechanism(*points), centroid, rtol=1e-10)
    on_it = manifold.check_point_on_manifold(torch.from_numpy(mechanism(*points)))
    assert on_it


@pytest.mark.oracle
def test_tangent_coordinates_are_those_of_geoopt(create: Create) -> None:
    torch, geoopt = torch_and_geoopt()
    manifold = geoopt.Lorentz(k=torch.tensor(1.0, dtype=torch.float64))
    x = np.random.default_rng(2).standard_normal((7, 4))
    tangent = torch.from_numpy(np.concatenate((np.zeros((7, 1)), x), axis=-1))
    points = manifold.expmap0(tangent)
    distance = manifold.dist(points[:, None], points[None]).numpy()
    expected = scipy.special.softmax(-np.where(np.eye(7, dtype=bool), 0, distance), axis=-1) @ x
    output = create("hyperbolic", dim=4, scale=1.0, aggregation="average")(x)
    np.testing.assert_allclose(output, expected, rtol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("gap", [1e-3, 1e-6])
def test_next_to_the_boundary_against_mpmath(create: Create, gap: float) -> None:
    mp = pytest.importorskip("mpmath", reason="compares with mpmath, which is not installed")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((12, 3))
    x *= (1 - gap) / np.linalg.norm(x, axis=-1, keepdims=True)
    query, keys = x[0], x[1:]

    def exact(a: np.ndarray, b: np.ndarray) -> float:
        with mp.workdps(60):
            a_, b_ = ([mp.mpf(float(t)) for t in y] for y in (a, b))
            apart = sum((s - t) ** 2 for s, t in zip(a_, b_, strict=True))
            own, their = (1 - sum(t * t for t in y) for y in (a_, b_))
            return float(mp.acosh(1 + 2 * apart / (own * their)))

    distances = np.array([exact(query, key) for key in keys])
    mechanism = create("hyperbolic", dim=3, coordinates="ball", beta=1.0, aggregation="average")
    logs = mechanism.observe(
        query[None, None], keys[None], np.eye(11)[None], "weights", "log_sum_exp"
    )
    found = -(np.log(logs.weights[0, 0]) + logs.log_sum_exp[0, 0])
    np.testing.assert_allclose(found, distances, rtol=1e-9)
    # float32 coordinates are themselves off by more than the gap tells; what is computed with is
    # float64, so the distances are those of the rounded points.
    single = mechanism.observe(
        *(y.astype(np.float32) for y in (query[None, None], keys[None], np.eye(11)[None])),
        "weights", "log_sum_exp",
    )  # fmt: skip
    rounded = [exact(query.astype(np.float32), key.astype(np.float32)) for key in keys]
    found = -(np.log(single.weights[0, 0]) + single.log_sum_exp[0, 0])
    np.testing.assert_allclose(found, rounded, rtol=1e-5)


def test_float32_without_refinement_is_coarse_out_there(create: Create) -> None:
    """What `precision` does, in figures: a point and itself at 1 − 1e-6."""
    x = np.array([[[1 - 1e-6, 0.0, 0.0], [0.6, 0.8 - 2e-6, 0.0]]], np.float32)
    value = np.eye(2, dtype=np.float32)[None]
    options = {"dim": 3, "coordinates": "ball", "aggregation": "average", "beta": 0.05}
    refined = create("hyperbolic", **options).attend(x, x, value)
    exact = create("hyperbolic", **options).attend(*(y.astype(np.float64) for y in (x, x, value)))
    np.testing.assert_allclose(refined, exact, atol=1e-6)
    plain = create("hyperbolic", **options, precision="input").attend(x, x, value)
    assert plain.dtype == np.float32
    assert np.isfinite(plain).all()


def test_a_point_is_at_distance_0_of_itself(create: Create) -> None:
    x = np.random.default_rng(4).standard_normal((1, 20, 8))
    mechanism = create("hyperbolic", dim=8, beta=100.0, scale=1.0, aggregation="average")
    seen = mechanism.observe(x, x, x, "weights", "log_sum_exp")
    diagonal = np.diagonal(seen.weights, axis1=-2, axis2=-1)
    np.testing.assert_array_equal(np.log(diagonal) + seen.log_sum_exp, np.zeros((1, 20)).round(12))


@pytest.mark.parametrize("name", ["hyperbolic", "lorentz", "lorentz-cascade", "mixed-curvature"])
def test_points_outside(create: Create, name: str) -> None:
    x = np.random.default_rng(5).standard_normal((4, 8))
    x[0] *= 100
    projected = create(name, dim=8, coordinates="ball", max_radius=3.0)(x)
    assert np.isfinite(projected).all()
    with pytest.raises(ArgumentError, match="outside='project'"):
        create(name, dim=8, coordinates="ball", max_radius=3.0, outside="refuse")(x)
    inside = 0.1 * np.tanh(x)
    refusing = create(name, dim=8, coordinates="ball", outside="refuse")(inside)
    np.testing.assert_array_equal(refusing, create(name, dim=8, coordinates="ball")(inside))


def test_projection_is_to_max_radius(create: Create) -> None:
    far, near = np.array([[3.0, 4.0]]), np.tanh(1.0) * np.array([[0.6, 0.8]])
    keys, values = np.array([[0.1, 0.2], [-0.5, 0.3]]), np.eye(2)
    options = {"dim": 2, "coordinates": "ball", "max_radius": 2.0, "aggregation": "average"}
    mechanism = create("hyperbolic", **options)
    np.testing.assert_allclose(mechanism(far, keys, values), mechanism(near, keys, values))


def test_off_the_hyperboloid(create: Create) -> None:
    x = np.array([[1.0, 0.5, 0.5], [2.0, 1.0, -1.0]])
    on_it = x.copy()
    on_it[:, 0] = np.sqrt(1 + (x[:, 1:] ** 2).sum(-1))
    options = {"dim": 3, "coordinates": "hyperboloid"}
    np.testing.assert_allclose(create("lorentz", **options)(x), create("lorentz", **options)(on_it))
    refusing = create("lorentz", **options, outside="refuse")
    refusing(on_it)
    with pytest.raises(ArgumentError, match="off the hyperboloid"):
        refusing(x)


def test_rotary_positions_are_isometries(create: Create) -> None:
    """Turning both by the same positions changes no distance."""
    x = np.random.default_rng(6).standard_normal((1, 8))
    plain = create("hyperbolic", dim=8)
    turned = create("hyperbolic", dim=8, position="rope")
    keys = np.repeat(x, 3, axis=0)
    assert not np.allclose(plain(x, keys), turned(x, keys * [[1], [2], [3]]))
    np.testing.assert_allclose(plain(x, x), turned(x, x), atol=1e-12)


@pytest.mark.parametrize("name", ["hyperbolic", "mixed-curvature"])
def test_every_option_matters(create: Create, name: str) -> None:
    x = np.random.default_rng(7).standard_normal((6, 16))
    base = create(name, dim=16)(x)
    changes: list[dict[str, Any]] = [{"scale": 1.0}, {"beta": 3.0}, {"coordinates": "ball"}]
    if name == "hyperbolic":
        changes += [{"curvature": -4.0}, {"aggregation": "average"}]
    else:
        changes += [{"curvature_h": -4.0}, {"curvature_s": 4.0}, {"hyperbolic_dim": 16}]
    for change in changes:
        assert not np.allclose(create(name, dim=16, **change)(x), base), change
