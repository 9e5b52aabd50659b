"""Spaces and maps against geoopt, torch and closed forms."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special

from polyattn_core.errors import ArgumentError, CapabilityError, ShapeError
from polyattn_curvature.config import TangentSpaceConfig
from polyattn_curvature.quantiser import ComponentQuantizer
from polyattn_curvature.tangent import TangentSpaceMapper

Create = Callable[..., Any]


def geoopt() -> Any:
    pytest.importorskip("torch", reason="compares with geoopt, which stands on PyTorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("geoopt", reason="compares with geoopt, which is not installed")


def manifold(kappa: float) -> Any:
    import torch

    return geoopt().Stereographic(k=torch.tensor(kappa, dtype=torch.float64), learnable=True)


@pytest.mark.oracle
@pytest.mark.parametrize("kappa", [-1.0, 0.0, 0.6])
def test_kappa_stereographic_against_geoopt(create: Create, kappa: float) -> None:
    geoopt()
    import torch

    space = manifold(kappa)
    rng = np.random.default_rng(0)
    q, k, v = (0.3 * rng.standard_normal((1, n, 4)) for n in (5, 7, 7))
    tensors = [torch.from_numpy(x[0]).requires_grad_() for x in (q, k, v)]
    distance = space.dist(tensors[0][:, None], tensors[1][None])
    expected = torch.softmax(-2.5 * distance, dim=-1) @ tensors[2]
    mechanism = create(
        "kappa-stereographic", dim=4, curvature=kappa, beta=2.5, coordinates="stereographic"
    )
    output, pullback = mechanism.attend_vjp(q, k, v)
    np.testing.assert_allclose(output[0], expected.detach().numpy(), rtol=1e-7)
    incoming = rng.standard_normal((5, 4))
    expected.backward(torch.from_numpy(incoming))
    found = pullback(incoming[None])
    for mine, tensor in zip((found.query, found.key, found.value), tensors, strict=True):
        np.testing.assert_allclose(mine[0], tensor.grad.numpy(), rtol=1e-5, atol=1e-8)
    by_kappa = float(space.k.grad)
    np.testing.assert_allclose(found.parameters["curvature"], [by_kappa], rtol=1e-4, atol=1e-7)


@pytest.mark.oracle
def test_fused_against_geoopt(create: Create) -> None:
    geoopt()
    import torch

    rng = np.random.default_rng(1)
    q, k, v = (0.3 * rng.standard_normal((1, n, 8)) for n in (5, 7, 7))
    tensors = [torch.from_numpy(x[0]).requires_grad_() for x in (q, k, v)]
    ball, sphere = manifold(-0.8), manifold(1.3)
    weights = torch.tensor([0.7, 1.5, -0.4], dtype=torch.float64, requires_grad=True)

    def tangent(x: Any) -> list[Any]:
        return [x[:, :4], ball.logmap0(x[:, 4:6]), sphere.logmap0(x[:, 6:])]

    parts = zip(tangent(tensors[0]), tangent(tensors[1]), strict=True)
    scores = sum(w * (a @ b.T) for w, (a, b) in zip(weights, parts, strict=True))
    expected = torch.softmax(2.0 * scores, dim=-1) @ tensors[2]
    mechanism = create(
        "fused-mixed-curvature", dim=8, scale=2.0, euclidean_dim=4, hyperbolic_dim=2,
        spherical_dim=2, curvature_h=-0.8, curvature_s=1.3, weight_e=0.7, weight_h=1.5,
        weight_s=-0.4,
    )  # fmt: skip
    output, pullback = mechanism.attend_vjp(q, k, v)
    np.testing.assert_allclose(output[0], expected.detach().numpy(), rtol=1e-9)
    incoming = rng.standard_normal((5, 8))
    expected.backward(torch.from_numpy(incoming))
    found = pullback(incoming[None])
    for mine, tensor in zip((found.query, found.key, found.value), tensors, strict=True):
        np.testing.assert_allclose(mine[0], tensor.grad.numpy(), rtol=1e-7, atol=1e-10)
    by = found.parameters
    np.testing.assert_allclose(by["weights"][0], weights.grad.numpy(), rtol=1e-7)
    np.testing.assert_allclose(by["curvature_h.log"], [-0.8 * float(ball.k.grad)], rtol=1e-5)
    np.testing.assert_allclose(by["curvature_s.log"], [1.3 * float(sphere.k.grad)], rtol=1e-5)


def test_heads_of_both_signs(create: Create) -> None:
    """Each head is what it is by itself, whatever signs the others have."""
    q, k, v = np.random.default_rng(7).standard_normal((3, 3, 6, 4))
    both = create("kappa-stereographic", dim=12, heads=3)
    both.parameters.update({"curvature": [-2.0, 0.0, 1.5]}, partial=True)
    output = both.attend(q, k, v)
    for head, curvature in enumerate((-2.0, 0.0, 1.5)):
        one = create("kappa-stereographic", dim=4, curvature=curvature)
        alone = one.attend(*(x[head : head + 1] for x in (q, k, v)))
        np.testing.assert_allclose(output[head], alone[0], rtol=1e-10)


def test_spherical_is_the_angle(create: Create) -> None:
    q, k = np.random.default_rng(2).standard_normal((2, 6, 3))
    cosines = (q / np.linalg.norm(q, axis=1)[:, None]) @ (k / np.linalg.norm(k, axis=1)[:, None]).T
    expected = scipy.special.softmax(-2 * np.arccos(cosines), axis=-1) @ k
    np.testing.assert_allclose(create("spherical", dim=3, beta=2.0)(q, k), expected, rtol=1e-10)


def test_points_outside(create: Create) -> None:
    x = np.random.default_rng(3).standard_normal((4, 8))
    assert np.isfinite(create("fused-mixed-curvature", dim=8)(100 * x)).all()
    with pytest.raises(ArgumentError, match="outside='project'"):
        create("fused-mixed-curvature", dim=8, outside="refuse")(100 * x)
    for curvature in (-1.0, 1.0):
        options = {"dim": 8, "curvature": curvature}
        assert np.isfinite(create("kappa-stereographic", **options)(1000 * x)).all()
        with pytest.raises(ArgumentError, match="outside='project'"):
            create("kappa-stereographic", **options, outside="refuse")(1000 * x)


# ---- the mapper ----


@pytest.mark.oracle
@pytest.mark.parametrize("kappa", [-1.0, -0.3, 0.0, 0.7])
def test_mapper_against_geoopt(kappa: float) -> None:
    geoopt()
    import torch

    space = manifold(kappa)
    rng = np.random.default_rng(4)
    points, origin = 0.3 * rng.standard_normal((6, 3)), 0.2 * rng.standard_normal(3)
    mapper = TangentSpaceMapper(
        TangentSpaceConfig(hyperbolic_dim=3, curvature=kappa, learnable_origin=True)
    )
    mapper.parameters.update({"origin": origin}, partial=True)
    x, p = (torch.from_numpy(a).requires_grad_() for a in (points, origin))
    expected = space.logmap(p[None].expand(6, 3), x)
    tangent, pullback = mapper.vjp(points)
    np.testing.assert_allclose(tangent, expected.detach().numpy(), rtol=1e-7, atol=1e-10)
    np.testing.assert_array_equal(tangent, mapper.map_to_tangent(points))
    np.testing.assert_allclose(mapper.map_from_tangent(tangent), points, atol=1e-12)
    incoming = rng.standard_normal((6, 3))
    expected.backward(torch.from_numpy(incoming))
    d_points, by = pullback(incoming)
    np.testing.assert_allclose(d_points, x.grad.numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(by["origin"], p.grad.numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(by["curvature"], float(space.k.grad), rtol=1e-4, atol=1e-7)


@pytest.mark.oracle
@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-12])
def test_mapper_next_to_the_boundary(gap: float) -> None:
    mp = pytest.importorskip("mpmath", reason="compares with mpmath, which is not installed")
    r = 1 - gap
    mapper = TangentSpaceMapper(TangentSpaceConfig(hyperbolic_dim=2))
    found = mapper.map_to_tangent(np.array([[r, 0.0]]))[0, 0]
    with mp.workdps(40):
        exact = float(mp.atanh(mp.mpf(r)))
    assert np.isclose(found, exact, rtol=1e-14)
    assert np.isfinite(mapper.map_to_tangent(np.array([[3.0, 4.0]]))).all()
    assert np.linalg.norm(mapper.map_from_tangent(np.array([[300.0, 400.0]]))) < 1


def test_mapper_options_and_errors() -> None:
    config = TangentSpaceConfig(hyperbolic_dim=2, learnable_curvature=False)
    mapper = TangentSpaceMapper(config)
    x = np.array([[0.1, 0.2]], np.float32)
    tangent, pullback = mapper.vjp(x)
    assert tangent.dtype == np.float32
    assert pullback(tangent)[1] == {}
    with pytest.raises(ShapeError, match="hyperbolic_dim=2"):
        mapper.map_to_tangent(np.zeros((2, 3)))
    with pytest.raises(ArgumentError, match="finite"):
        mapper.map_to_tangent(np.array([[np.nan, 0.0]]))
    mapper.parameters.update({"origin": [2.0, 0.0]}, partial=True)
    with pytest.raises(ArgumentError, match="inside the ball"):
        mapper.map_to_tangent(x)


# ---- the quantiser ----


@pytest.mark.parametrize("bits", [(8, 5, 5), (2, 3, 16), (7, 7, 7)])
def test_quantiser_keeps_its_bound_and_its_bytes(bits: tuple[int, int, int]) -> None:
    x = np.random.default_rng(5).standard_normal((3, 10, 13))
    x[0, 0, :6] = 0
    quantizer = ComponentQuantizer((6, 4, 3), bits)
    packed = quantizer.pack(x)
    assert packed.codes.dtype == np.uint8
    total = 6 * bits[0] + 4 * bits[1] + 3 * bits[2]
    assert packed.codes.shape == (3, 10, -(-total // 8))
    assert packed.nbytes == 30 * (quantizer.bytes_per_vector + 12)
    found = quantizer.unpack(packed)
    assert np.all(np.abs(found - x) <= quantizer.error_bound(packed))
    assert np.all(found[0, 0, :6] == 0)
    # Nothing is lost the second time.
    np.testing.assert_allclose(quantizer.unpack(quantizer.pack(found)), found, rtol=1e-6)


def test_quantiser_errors() -> None:
    with pytest.raises(ArgumentError, match="bits"):
        ComponentQuantizer((4, 2), (8, 5, 5))
    with pytest.raises(ArgumentError, match="from 2 to 16"):
        ComponentQuantizer((4,), (1,))
    with pytest.raises(ShapeError, match="last axis of 4"):
        ComponentQuantizer((4,), (8,)).pack(np.zeros((2, 5)))


def test_attention_from_packed_keys(create: Create) -> None:
    rng = np.random.default_rng(6)
    q, k, v = (0.3 * rng.standard_normal((2, n, 8)) for n in (5, 70, 70))
    options = {"dim": 16, "heads": 2}
    quantised = create("quantised-mixed-curvature", **options, chunk=16)
    fused = create("fused-mixed-curvature", **options)
    packed = quantised.pack(k)
    output = quantised.attend(q, k, v)
    np.testing.assert_allclose(quantised.attend_packed(q, packed, v), output, rtol=1e-12)
    whole = create("quantised-mixed-curvature", **options).attend(q, k, v)
    np.testing.assert_allclose(whole, output, rtol=1e-12)
    exact = fused.attend(q, k, v)
    fine = create("quantised-mixed-curvature", **options, bits_h=16, bits_s=16, bits_e=16)
    assert np.abs(fine.attend(q, k, v) - exact).max() < 1e-6
    assert 1e-5 < np.abs(output - exact).max() < 1e-3
    with pytest.raises(CapabilityError, match="gradients"):
        quantised.attend_vjp(q, k, v)
