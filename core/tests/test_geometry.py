"""Maps of spaces of constant curvature: closed forms, inverses, finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from polyattn_core import geometry

CURVATURES = [-2.0, -1e-7, 0.0, 1e-7, 0.5]


@pytest.mark.parametrize("k", CURVATURES)
def test_maps_are_inverse_and_as_long_as_the_distance(k: float) -> None:
    rng = np.random.default_rng(0)
    p, x = 0.3 * rng.standard_normal((2, 20, 3))
    p, x = (geometry.project(y, k, 0.9) for y in (p, x))
    v = geometry.log_map(x, k, p)
    np.testing.assert_allclose(geometry.exp_map(v, k, p), x, atol=1e-12)
    conformal = 2 / (1 + k * (p**2).sum(-1))
    length = conformal * np.linalg.norm(v, axis=-1)
    np.testing.assert_allclose(length, geometry.distance(p, x, k), rtol=1e-9)
    translated = geometry.mobius_add(-p, x, k)
    origin = np.zeros_like(p)
    np.testing.assert_allclose(geometry.distance(origin, translated, k), length, rtol=1e-9)


def test_known_values() -> None:
    half = np.array([0.5, 0.0])
    assert np.isclose(geometry.distance(0 * half, half, -1.0), np.log(3))
    assert np.isclose(geometry.distance(0 * half, half, 1.0), 2 * np.arctan(0.5))
    assert geometry.distance(0 * half, half, 0.0) == 1.0


@pytest.mark.parametrize("name", ["tan_k", "arctan_k"])
@pytest.mark.parametrize("k", [-1.0, -1e-4, 0.0, 1e-4, 0.7])
def test_slopes_by_curvature(name: str, k: float) -> None:
    x = np.array([0.0, 0.1, 0.5, 0.8])
    function, slope = getattr(geometry, name), getattr(geometry, name + "_slope")
    step = 1e-5
    expected = (function(x, k + step) - function(x, k - step)) / (2 * step)
    np.testing.assert_allclose(slope(x, k), expected, rtol=1e-6, atol=1e-10)


def test_sphere() -> None:
    rng = np.random.default_rng(1)
    p, x = rng.standard_normal((2, 9, 4))
    p, x = (y / np.linalg.norm(y, axis=-1, keepdims=True) for y in (p, x))
    v = geometry.sphere_log(x, p)
    np.testing.assert_allclose((v * p).sum(-1), 0, atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(v, axis=-1), np.arccos((x * p).sum(-1)))
    np.testing.assert_allclose(geometry.sphere_exp(v, p), x, atol=1e-14)


def test_radial_pullback() -> None:
    rng = np.random.default_rng(2)
    x, g = rng.standard_normal((2, 1, 2, 5, 3))
    x[0, 0, 0] = 0

    def profile(r: np.ndarray) -> geometry.Profile:
        safe = np.where(r > 0, r, 1)
        return geometry.Profile(np.where(r > 0, np.sinh(r) / safe, 1), lambda: np.cosh(r))

    _, pull = geometry.radial(x, profile)
    step, d = 1e-6, rng.standard_normal(x.shape)
    sides = [(geometry.radial(x + s * step * d, profile)[0] * g).sum() for s in (1, -1)]
    np.testing.assert_allclose(
        (pull(g)[0] * d).sum(), (sides[0] - sides[1]) / (2 * step), rtol=1e-7
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 7, 64, 65])
def test_lengths_and_scaled_however_rows_lie(dtype: str, size: int) -> None:
    rng = np.random.default_rng(3)
    whole = rng.standard_normal((2, 9, 3, 2 * size + 1)).astype(dtype)
    whole[0, 1, 2, 1:3] = np.nan, np.inf
    packed = np.zeros(16 + whole.nbytes, np.uint8)[1 : 1 + whole.nbytes].view(dtype)
    unaligned = packed.reshape(whole.shape)
    unaligned[...] = whole
    views = (
        whole[..., 1 : 1 + size],
        whole.swapaxes(1, 2)[..., 1 : 1 + size],
        whole[:, ::-1, :, ::2],
        np.broadcast_to(whole[:1], whole.shape),
        unaligned,
        whole[:, :0],
        whole[..., :0],
    )
    for view in views:
        given = view.copy()
        wide = given.astype(np.float64)
        found = geometry.lengths(view)
        np.testing.assert_allclose(found, np.sqrt(np.square(wide).sum(axis=-1)), rtol=1e-14)
        ratio = rng.standard_normal(view.shape[:-1])
        expected = view * ratio[..., None].astype(dtype)
        for result in (
            geometry.scaled(view, ratio),
            geometry.scaled(
                view, ratio, np.empty((*view.shape[:-1], size * 3), dtype)[..., : view.shape[-1]]
            ),
        ):
            assert result.dtype == dtype
            np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(view, given)
