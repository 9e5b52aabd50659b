"""The largest weights of each row, against sorting all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn_core.errors import ArgumentError
from polyattn_core.masks import Causal, Padding, Window

Array = Any
MASKS = (None, Causal(), Window(3, 3), ~Window(3, 3))


def arrays(queries: int, keys: int, heads: int, dtype: str) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(queries + keys)
    shapes = (heads, queries, 8), (1, keys, 8), (1, keys, 5)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)  # type: ignore[return-value]


def largest(weights: Array, top: int) -> tuple[Array, Array]:
    """The top of each row by a stable sort, −1 and 0 behind the last weight above 0."""
    order = np.argsort(-weights, axis=-1, kind="stable")[..., :top]
    found = np.take_along_axis(weights, order, axis=-1)
    lacking = [(0, 0)] * (weights.ndim - 1) + [(0, top - order.shape[-1])]
    order, found = np.pad(order, lacking), np.pad(found, lacking)
    return found, np.where(found > 0, order, -1)


@pytest.mark.parametrize("mask", MASKS, ids=repr)
@pytest.mark.parametrize(
    ("queries", "keys", "top", "dtype"),
    [
        (1, 1, 8, "float64"),
        (63, 65, 3, "float32"),
        (65, 63, 1, "float64"),
        (7, 200, 300, "float32"),
    ],
)
def test_they_are_the_first_of_the_sorted_weights(
    build: Any, mask: Any, queries: int, keys: int, top: int, dtype: str
) -> None:
    mechanism = build(dim=16, heads=2, kv_heads=1)
    inputs = arrays(queries, keys, 2, dtype)
    seen = mechanism.observe(*inputs, "weights", "top_weights", mask=mask, top=top)
    weights, order = largest(seen.weights, top)
    np.testing.assert_array_equal(seen.top_weights, weights)
    np.testing.assert_array_equal(seen.top_keys, order)
    assert seen.top_keys.dtype == np.int64


def test_equal_weights_are_in_the_order_of_their_keys(build: Any) -> None:
    ones = np.ones((1, 90, 8))
    bias = np.zeros((1, 90, 90))
    bias[..., 70] = 1
    seen = build(dim=8).observe(ones, ones, ones, "top_weights", bias=bias, top=4)
    assert (seen.top_keys == [70, 0, 1, 2]).all()
    np.testing.assert_allclose(seen.top_weights[..., 0] / seen.top_weights[..., 3], np.e)


def test_rows_that_see_nothing_and_rows_that_see_little(build: Any) -> None:
    query, key, value = (x[None] for x in arrays(6, 9, 1, "float64"))
    seen = build(dim=8).observe(query, key, value, "top_weights", mask=Padding([0]), top=3)
    assert (seen.top_keys == -1).all()
    assert (seen.top_weights == 0).all()
    seen = build(dim=8).observe(query, key, value, "top_weights", mask=Padding([2]), top=3)
    assert (np.sort(seen.top_keys, axis=-1) == [-1, 0, 1]).all()
    np.testing.assert_allclose(seen.top_weights.sum(axis=-1), 1)


def test_there_are_eight_unless_said_otherwise(build: Any) -> None:
    inputs = arrays(20, 20, 1, "float32")
    seen = build(dim=8).observe(*inputs, "top_weights")
    assert seen.top_weights.shape == seen.top_keys.shape == (1, 20, 8)
    assert seen.weights is None
    assert build(dim=8).observe(*inputs, "entropy").top_keys is None


def test_a_row_that_is_not_a_number_says_so(build: Any) -> None:
    query, key, value = arrays(5, 9, 1, "float32")
    query[0, 2] = np.nan
    seen = build(dim=8).observe(query, key, value, "top_weights", top=2)
    assert np.isnan(seen.top_weights[0, 2]).all()
    assert np.isfinite(np.delete(seen.top_weights, 2, axis=1)).all()


@pytest.mark.parametrize("top", [0, -1, 2.0, True, None, 1 << 20])
def test_impossible_numbers_are_refused(build: Any, top: object) -> None:
    with pytest.raises(ArgumentError, match=r"top: .*a whole number from 1 to"):
        build(dim=8).observe(*arrays(2, 3, 1, "float32"), "top_weights", top=top)
