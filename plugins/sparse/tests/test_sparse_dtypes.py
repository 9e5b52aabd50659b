"""Half precision: computed wider, rounded once at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

Create = Callable[..., Any]
Dense = Callable[..., Any]

HALF = {np.dtype(np.float16): 2.0**-11, np.dtype(ml_dtypes.bfloat16): 2.0**-8}
"""Type → half the distance of neighbouring numbers, relative."""


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["flash", "top-k", "local-global"])
@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    queries=st.integers(1, 40),
    keys=st.integers(1, 90),
    size=st.integers(1, 40),
    value_size=st.integers(1, 20),
    causal=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_half_precision_is_the_rounded_result(
    create: Create, dense: Dense, name: str, dtype: Any, queries: int, keys: int, size: int,
    value_size: int, causal: bool, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    sizes = ((2, 2, queries, size), (2, 2, keys, size), (2, 2, keys, value_size))
    # Small whole numbers, so that equal scores are equal in every precision.
    inputs = [np.round(2 * rng.standard_normal(shape)).astype(dtype) for shape in sizes]
    options: dict[str, Any] = {"scale": 0.125, "causal": causal}
    if name == "top-k":
        options["k"] = 5
    mechanism = create(name, dim=2 * size, heads=2, **options)
    output = mechanism.attend(*inputs)
    assert output.dtype == dtype
    assert output.shape == (2, 2, queries, value_size)

    query, key, value = (array.astype(np.float64) for array in inputs)
    seen = np.tri(queries, keys, keys - queries, dtype=bool) if causal else True
    seen = np.broadcast_to(seen, (2, 2, queries, keys))
    if name == "top-k" and keys > 5:
        scores = np.where(seen, query @ key.swapaxes(-1, -2), -np.inf)
        seen = seen & (scores >= np.sort(scores, axis=-1)[..., -5, None])
    expected = dense(query, key, value, seen, scale=0.125)
    # One rounding to the type, and the errors before: those of float32, or of weights in bfloat16
    # where the processor has products of these.
    before = 2.0**-8 if dtype.name == "bfloat16" else 1e-5
    allowed = 1.01 * HALF[dtype] * abs(expected) + before * (1 + abs(value).max())
    assert (abs(output.astype(np.float64) - expected) <= allowed).all()
