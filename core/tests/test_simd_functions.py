"""Functions for score rules: accuracy against SciPy and NumPy in double or extended precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import scipy.special

from polyattn_core.simd import logarithms, normal, trigonometry
from polyattn_core.simd.jit import OPTIONS

both = pytest.mark.parametrize("dtype", [np.float32, np.float64])
LONG = np.longdouble


def gelu(x: Any) -> Any:
    return x * LONG(scipy.special.ndtr(x.astype(np.float64)))


FUNCTIONS: dict[str, tuple[Any, Callable[[Any], Any], tuple[float, float], int]] = {
    # Name: library, truth, range, units in the last place.
    "log": (logarithms, np.log, (1e-30, 1e30), 2),
    "log1p": (logarithms, np.log1p, (-0.999, 1e5), 3),
    "sinh": (logarithms, np.sinh, (-80, 80), 8),
    "cosh": (logarithms, np.cosh, (-80, 80), 8),
    "arcsinh": (logarithms, np.arcsinh, (-1e5, 1e5), 4),
    "arccosh": (logarithms, np.arccosh, (1, 1e5), 4),
    "arccosh1p": (logarithms, lambda x: 2 * np.arcsinh(np.sqrt(x / 2)), (0, 1e8), 4),
    "arctanh": (logarithms, np.arctanh, (-0.999, 0.999), 4),
    "sin": (trigonometry, np.sin, (-1.5, 1.5), 3),
    "cos": (trigonometry, np.cos, (-1.5, 1.5), 3),
    "tan": (trigonometry, np.tan, (-1.5, 1.5), 5),
    "arctan": (trigonometry, np.arctan, (-30, 30), 4),
    "arcsin": (trigonometry, np.arcsin, (-0.999, 0.999), 5),
    "arccos": (trigonometry, np.arccos, (-0.999, 0.999), 6),
    "erf": (normal, lambda x: LONG(scipy.special.erf(x.astype(np.float64))), (-6, 6), 4),
    "gelu": (normal, gelu, (-4, 10), 20),
}
each = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(scope="module")
def compiled() -> dict[str, Callable[[Any], Any]]:
    """The functions in a loop, compiled as rules are."""

    def over_arrays(function: Any) -> Callable[[Any], Any]:
        @numba.njit(**OPTIONS)
        def run(x, out):  # type: ignore[no-untyped-def]
            for i in range(x.size):
                out[i] = function(x[i])

        def call(x: Any) -> Any:
            out = np.empty_like(x)
            run(x, out)
            return out

        return call

    return {name: over_arrays(getattr(entry[0], name)) for name, entry in FUNCTIONS.items()}


@each
@both
def test_errors_in_units_in_the_last_place(compiled: Any, name: str, dtype: Any) -> None:
    _, truth, (low, high), most = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    x = rng.uniform(low, high, 2000)
    near = 1 if low == 1 else 0  # where digits are lost most easily
    x = np.concatenate((x, near + (10.0 ** rng.uniform(-8, -0.1, 500)))).astype(dtype)
    x = x[(x >= low) & (x <= high)]
    expected = truth(x.astype(LONG))
    errors = np.abs(compiled[name](x) - expected) / np.spacing(np.abs(expected.astype(dtype)))
    assert errors.max() <= most


@both
@pytest.mark.parametrize("name", ["sin", "cos"])
def test_many_turns(compiled: Any, name: str, dtype: Any) -> None:
    x = np.random.default_rng(1).uniform(-1e5, 1e5, 2000).astype(dtype)
    expected = FUNCTIONS[name][1](x.astype(LONG))
    np.testing.assert_allclose(compiled[name](x), expected, atol=3 * np.finfo(dtype).eps)


@each
@both
def test_no_number_stays_none(compiled: Any, name: str, dtype: Any) -> None:
    assert np.isnan(compiled[name](np.full(70, np.nan, dtype))).all()


LIMITS: dict[str, tuple[float, float]] = {
    # At −∞ and ∞.
    "log": (np.nan, np.inf), "log1p": (np.nan, np.inf), "sinh": (-np.inf, np.inf),
    "cosh": (np.inf, np.inf), "arcsinh": (-np.inf, np.inf), "arccosh": (np.nan, np.inf),
    "arccosh1p": (np.nan, np.inf),
    "arctanh": (np.nan, np.nan), "sin": (np.nan, np.nan), "cos": (np.nan, np.nan),
    "arctan": (-np.pi / 2, np.pi / 2), "erf": (-1, 1), "gelu": (0, np.inf),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
@both
def test_limits(compiled: Any, name: str, dtype: Any) -> None:
    found = compiled[name](np.array([-np.inf, np.inf], dtype))
    np.testing.assert_allclose(found, LIMITS[name], rtol=1e-6)


@both
def test_edges_of_domains(compiled: Any, dtype: Any) -> None:
    def at(name: str, x: float) -> float:
        return float(compiled[name](np.array([x], dtype))[0])

    assert at("log", 0) == at("log1p", -1) == -np.inf
    assert at("log", 1) == at("log1p", 0) == at("arccosh", 1) == at("erf", 0) == 0
    assert np.isnan([at("log", -1), at("log1p", -1.5), at("arccosh", 0.5), at("arcsin", 2)]).all()
    assert np.isnan([at("arccosh", x) for x in (0.5, 0, -1, -3)]).all()
    assert at("arctanh", 1) == np.inf
    assert at("arcsin", 1) == pytest.approx(np.pi / 2)
    assert at("arccos", -1) == pytest.approx(np.pi)
    tiny = float(np.finfo(dtype).smallest_subnormal)
    assert at("log", tiny) == pytest.approx(np.log(tiny))


@each
def test_without_compilation(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is for code that Numba compiles"):
        getattr(FUNCTIONS[name][0], name)(1.0)
