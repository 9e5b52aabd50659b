"""Norms and activations: against formulas in float64 and SciPy's error function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, ndtr

from polyattn_core.simd import layers

FORMULAS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * ndtr(x),
    "gelu-tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * expit(x),
}
TOLERANCE = {"float32": 3e-6, "float64": 1e-13}


def test_every_activation_has_a_formula() -> None:
    assert set(FORMULAS) == set(layers.ACTIVATIONS)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("name", list(FORMULAS))
@pytest.mark.parametrize("size", [(1, 1), (3, 65), (700, 63)])
def test_activations(name: str, dtype: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = (4 * rng.standard_normal(size)).astype(dtype)
    bias, gradient = (
        rng.standard_normal(size[1]).astype(dtype),
        rng.standard_normal(size).astype(dtype),
    )
    before = x.copy()
    exact = x.astype(np.float64) + bias
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    np.testing.assert_allclose(layers.activate(x, bias, name), FORMULAS[name](exact), **close)
    step = 1e-6
    slope = (FORMULAS[name](exact + step) - FORMULAS[name](exact - step)) / (2 * step)
    found = layers.activation_gradient(x, bias, name, gradient)
    np.testing.assert_allclose(found, gradient * slope, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(x, before)
    shown = layers.activate(x, None, name)
    np.testing.assert_array_equal(layers.activate(x, None, name, out=x), shown)
    assert x is not before


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_activations_far_out(dtype: str) -> None:
    x = np.array([[-1e4, -40.0, -13.0, -5.5, 0.0, 40.0, 1e4, np.inf, np.nan]], dtype)
    for name, formula in FORMULAS.items():
        with np.errstate(all="ignore"):
            expected = formula(x.astype(np.float64))
        tiny = np.finfo(dtype).tiny
        found = layers.activate(x, None, name)
        np.testing.assert_allclose(
            found, expected, rtol=2e-4, atol=100 * tiny + 1e-7 * (name == "gelu-tanh")
        )


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("size", [(1, 1), (5, 65), (900, 130)])
def test_norms(size: tuple[int, int], dtype: str, centred: bool) -> None:
    rng = np.random.default_rng(1)
    x = (3 + 2 * rng.standard_normal(size)).astype(dtype)
    weight, bias = rng.standard_normal((2, size[1])).astype(dtype)

    def formula(x: Any, weight: Any, bias: Any) -> Any:
        mean = x.mean(axis=1, keepdims=True) if centred else 0
        scale = np.sqrt(((x - mean) ** 2).mean(axis=1, keepdims=True) + 1e-3)
        return (x - mean) / scale * weight + bias

    exact = [array.astype(np.float64) for array in (x, weight, bias)]
    out, means, scales = layers.norm(x, weight, bias, 1e-3, centred=centred)
    tolerance = 10 * TOLERANCE[dtype]
    np.testing.assert_allclose(out, formula(*exact), rtol=tolerance, atol=tolerance)
    plain, _, _ = layers.norm(x, weight, None, 1e-3, centred=centred)
    np.testing.assert_allclose(plain, formula(*exact[:2], 0), rtol=tolerance, atol=tolerance)
    gradient = rng.standard_normal(size).astype(dtype)
    found = layers.norm_gradient(x, weight, means, scales, gradient, centred=centred)
    for place, one in enumerate(found):
        along = rng.standard_normal(exact[place].shape)
        moved = [
            (
                formula(*(a + s * along if i == place else a for i, a in enumerate(exact)))
                * gradient
            ).sum()
            for s in (1e-6, -1e-6)
        ]
        slope = (moved[0] - moved[1]) / 2e-6
        scale = np.linalg.norm(one) * np.linalg.norm(along)
        assert abs((one * along).sum() - slope) <= max(1e-5, tolerance) * scale + 3e-6


def test_threads_change_nothing() -> None:
    x = np.random.default_rng(2).standard_normal((5000, 64)).astype(np.float32)
    one, two = layers.activate(x, None, "gelu", limit=1), layers.activate(x, None, "gelu", limit=2)
    np.testing.assert_array_equal(one, two)
