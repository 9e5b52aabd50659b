"""Elementary functions against decimal arithmetic of fifty digits."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numba
import numpy as np
import pytest

from polyattn_core.simd import mathematics
from polyattn_core.simd.jit import OPTIONS

both = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ONE = Decimal(1)


def exact_tanh(x: Decimal) -> Decimal:
    power = (2 * x).exp()
    return (power - 1) / (power + 1)


EXACT: dict[str, Callable[[Decimal], Decimal]] = {
    "exp": Decimal.exp,
    "expm1": lambda x: x.exp() - 1,
    "tanh": exact_tanh,
    "sigmoid": lambda x: ONE / (ONE + (-x).exp()),
}
each = pytest.mark.parametrize("name", EXACT)


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

    return {name: over_arrays(getattr(mathematics, name)) for name in EXACT}


def units(found: Any, exact: Callable[[Decimal], Decimal], x: Any) -> Any:
    """Errors in units in the last place of the exact results."""
    errors = []
    with localcontext() as context:
        context.prec = 50
        for argument, result in zip(x, found, strict=True):
            truth = exact(Decimal(float(argument)))
            unit = Decimal(float(np.spacing(abs(x.dtype.type(float(truth))))))
            errors.append(float(abs(Decimal(float(result)) - truth) / unit))
    return np.array(errors)


@each
@both
@pytest.mark.parametrize(("low", "high"), [(0, 1e-5), (1e-5, 0.1), (0.1, 2), (2, 20), (20, 86.5)])
def test_errors_in_units_in_the_last_place(
    compiled: Any, name: str, dtype: Any, low: float, high: float
) -> None:
    x = np.random.default_rng(0).uniform(low, high, 300)
    x = np.concatenate((x, -x)).astype(dtype)
    assert units(compiled[name](x), EXACT[name], x).max() <= 4


@each
def test_errors_do_not_grow_with_the_argument(compiled: Any, name: str) -> None:
    x = np.random.default_rng(1).uniform(300, 708, 300)
    x = np.concatenate((x, -x))
    assert units(compiled[name](x), EXACT[name], x).max() <= 4


@each
@both
def test_no_number_stays_none(compiled: Any, name: str, dtype: Any) -> None:
    x = np.full(70, np.nan, dtype)
    assert np.isnan(compiled[name](x)).all()


@both
def test_limits(compiled: Any, dtype: Any) -> None:
    infinite = np.array([-np.inf, np.inf], dtype)
    assert compiled["exp"](infinite).tolist() == [0, np.inf]
    assert compiled["expm1"](infinite).tolist() == [-1, np.inf]
    assert compiled["tanh"](infinite).tolist() == [-1, 1]
    assert compiled["sigmoid"](infinite).tolist() == [0, 1]


@both
def test_zero(compiled: Any, dtype: Any) -> None:
    zero = np.array([0.0, -0.0], dtype)
    assert compiled["exp"](zero).tolist() == [1, 1]
    assert compiled["expm1"](zero).tolist() == [0, 0]
    assert compiled["tanh"](zero).tolist() == [0, 0]
    assert compiled["sigmoid"](zero).tolist() == [0.5, 0.5]


@both
def test_where_exp_leaves_the_range_of_numbers(compiled: Any, dtype: Any) -> None:
    information = np.finfo(dtype)
    highest = np.log(information.max.astype(np.float64))
    lowest = np.log(information.smallest_normal.astype(np.float64))
    x = np.array([highest - 0.01, highest + 0.01, lowest - 0.01, lowest - 1e3, 1e4], dtype)
    near, above, below, far, huge = compiled["exp"](x)
    assert np.isfinite(near)
    assert near > information.max / 2
    assert above == huge == np.inf
    # Nothing below the smallest normal number, and never a negative one.
    assert 0 <= below <= information.smallest_normal
    assert far == 0


@both
def test_small_arguments_keep_their_relative_accuracy(compiled: Any, dtype: Any) -> None:
    x = np.array([np.finfo(dtype).smallest_subnormal * 4, 1e-30, -1e-30], dtype)
    np.testing.assert_allclose(compiled["expm1"](x), x, rtol=1e-6)
    np.testing.assert_allclose(compiled["tanh"](x), x, rtol=1e-6)


@each
def test_bounded_functions_stay_within_their_bounds(compiled: Any, name: str) -> None:
    x = np.linspace(-120, 120, 20_001, dtype=np.float32)
    found = compiled[name](x)
    low, high = {"exp": (0, np.inf), "expm1": (-1, np.inf), "tanh": (-1, 1), "sigmoid": (0, 1)}[
        name
    ]
    assert found.min() >= low
    assert found.max() <= high
    assert (
        np.diff(found[np.isfinite(found)]) >= -1e-6 * np.abs(found[np.isfinite(found)][1:])
    ).all()


@each
def test_they_are_for_compiled_code(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is for code that Numba compiles; use numpy"):
        getattr(mathematics, name)(1.0)


@pytest.mark.parametrize("argument", [1, True])
def test_they_take_floating_numbers_only(argument: Any) -> None:
    @numba.njit
    def wrong(x):  # type: ignore[no-untyped-def]
        return mathematics.exp(x)

    with pytest.raises(numba.TypingError):
        wrong(argument)
