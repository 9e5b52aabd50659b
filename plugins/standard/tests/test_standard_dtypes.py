"""Half precision: computed wider, rounded once at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyattn_core.spec import resolve
from polyattn_standard.plugin import MECHANISMS

Create = Callable[..., Any]

SPECS = {spec.name: spec for spec in MECHANISMS}
ONE_OF_EACH_NORMALISER = (
    "scaled-dot-product",
    "softmax-one",
    "sigmoid",
    "softpick",
    "sparsemax",
    "entmax15",
)
HALF = {np.dtype(np.float16): 2.0**-11, np.dtype(ml_dtypes.bfloat16): 2.0**-8}
"""Type → half the distance of neighbouring numbers, relative."""


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ONE_OF_EACH_NORMALISER)
@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    queries=st.integers(1, 40),
    keys=st.integers(1, 90),
    size=st.integers(1, 40),
    value_size=st.integers(1, 20),
    causal=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_half_precision_is_the_rounded_result(
    create: Create, name: str, dtype: Any, queries: int, keys: int, size: int, value_size: int,
    causal: bool, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    sizes = ((2, 2, queries, size), (2, 2, keys, size), (2, 2, keys, value_size))
    inputs = [rng.standard_normal(shape).astype(dtype) for shape in sizes]
    mechanism = create(name, dim=2 * size, heads=2, causal=causal)
    output = mechanism.attend(*inputs)
    assert output.dtype == dtype
    assert output.shape == (2, 2, queries, value_size)

    query, key, value = (array.astype(np.float64) for array in inputs)
    expected = resolve(SPECS[name].reference)(
        query, key, value,
        mask=np.tri(queries, keys, keys - queries, dtype=bool) if causal else None,
        config=mechanism.config,
        parameters=mechanism.parameters,
    )  # fmt: skip
    # One rounding to the type, and the errors before: those of float32, or of weights in bfloat16
    # where the processor has products of these.
    before = 2.0**-8 if dtype.name == "bfloat16" else 1e-5
    allowed = 1.01 * HALF[dtype] * abs(expected) + before * abs(value).max()
    assert (abs(output.astype(np.float64) - expected) <= allowed).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["multi-head", "cosine", "l2"])
def test_parameters_do_not_widen_the_output(create: Create, name: str, dtype: Any) -> None:
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(dtype)
    mechanism = create(name, dim=8, heads=2)
    output, pullback = mechanism.vjp(x)
    assert output.dtype == dtype
    wide = mechanism(x.astype(np.float64))
    np.testing.assert_allclose(
        output.astype(np.float64), wide, rtol=1.01 * HALF[np.dtype(dtype)], atol=1e-6
    )
    assert pullback(np.ones_like(output)).query.dtype == dtype
