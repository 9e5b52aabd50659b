"""Vectorising inverse functions against NumPy and closed forms."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from polyattn_core.simd import inverses


def vectorised(function: Any) -> Any:
    @numba.njit
    def run(x, out):  # type: ignore[no-untyped-def]
        for i in range(len(x)):
            out[i] = function(x[i])

    def apply(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        run(x, out)
        return out.astype(np.float64)

    return apply


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 8e-7), (np.float64, 2e-15)])
def test_values(dtype: Any, tolerance: float) -> None:
    t = np.concatenate((np.linspace(-1, 1, 401), -np.logspace(0, 6, 100))).astype(dtype)
    wide = t.astype(np.float64)
    root = np.sqrt(np.abs(wide))
    safe = np.where(root > 0, root, 1)
    sides = np.where(wide > 0, np.arcsin(np.minimum(root, 1)), np.arcsinh(root)) / safe
    exact = np.where(wide == 0, 1, sides)
    np.testing.assert_allclose(vectorised(inverses.arc)(t), exact, rtol=tolerance)
    up = t >= 0
    np.testing.assert_allclose(vectorised(inverses.arc_positive)(t[up]), exact[up], rtol=tolerance)


def test_slope() -> None:
    t = np.array([-30.0, -2.0, -0.26, -0.24, -1e-3, 0.0, 1e-3, 0.2, 0.26, 0.9])
    step = 1e-6
    arc = vectorised(inverses.arc)
    expected = (arc(t + step) - arc(t - step)) / (2 * step)
    np.testing.assert_allclose(vectorised(inverses.arc_slope)(t), expected, rtol=1e-7, atol=1e-9)


def test_outside_compiled_code() -> None:
    with pytest.raises(TypeError, match="Numba"):
        inverses.arc(0.5)
