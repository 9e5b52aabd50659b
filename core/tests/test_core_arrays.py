"""Arrays: what is accepted, what is copied, and what is only looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from polyattn_core import arrays
from polyattn_core.arrays import (
    as_array,
    canonical,
    check_qkv,
    compute_dtype,
    dtype_name,
    lead_shape,
    merge_heads,
    named_dtype,
    split_heads,
    unbroadcast,
)
from polyattn_core.errors import ArgumentError, DTypeError, ShapeError
from polyattn_core.spec import DTYPES

SINGLE = np.dtype(np.float32)


def numbers(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


# ---- dtypes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [
        (np.float64, np.float64),
        (np.float32, np.float32),
        (np.float16, np.float32),
        (ml_dtypes.bfloat16, np.float32),
        (">f4", np.float32),
        (">f8", np.float64),
        (">f2", np.float32),
    ],
)
def test_what_is_computed_in(dtype: Any, computed: Any) -> None:
    found = compute_dtype(np.dtype(dtype), "query")
    assert found == np.dtype(computed)
    assert found.isnative
    assert dtype_name(np.dtype(dtype)) in DTYPES


@pytest.mark.parametrize(
    "dtype", ["int32", "bool", "complex64", "<U1", "object", np.longdouble, ml_dtypes.float8_e4m3fn]
)
def test_what_is_not(dtype: Any) -> None:
    dtype = np.dtype(dtype)
    if dtype == np.float64:
        pytest.skip("long double is double here")
    with pytest.raises(DTypeError) as caught:
        compute_dtype(dtype, "key")
    assert str(caught.value) == (
        f"key: got {dtype}; expected an array of float16, bfloat16, float32 or float64"
    )


def test_names_of_dtypes() -> None:
    for name in DTYPES:
        assert named_dtype(name).name == name
        assert dtype_name(named_dtype(name)) == name


def test_as_array() -> None:
    array = numbers(2, 3)
    assert as_array(array, "query") is array
    assert as_array([[1, 2], [3, 4]], "query").dtype == np.float64
    assert as_array([[True, 2.5]], "query").tolist() == [[1.0, 2.5]]
    assert as_array([array], "query").dtype == np.float32
    with pytest.raises(DTypeError, match=r"^query: got int64; expected an array of float16"):
        as_array(np.ones((2, 3), np.int64), "query")
    with pytest.raises(DTypeError, match=r"^bias: got object"):
        as_array(None, "bias")
    with pytest.raises(DTypeError, match=r"^bias: got <U1"):
        as_array(["a"], "bias")
    with pytest.raises(ShapeError, match=r"^key: got .*; expected a rectangular array of numbers$"):
        as_array([[1.0], [1.0, 2.0]], "key")


# ---- shapes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (
            [(3, 4), (1, 3, 4), (1, 3, 4)],
            "query: got (3, 4); expected at least 3 axes: (..., heads, tokens, head size)",
        ),
        (
            [(1, 3, 4), (1, 3, 4), (4,)],
            "value: got (4,); expected at least 3 axes: (..., heads, tokens, head size)",
        ),
        (
            [(1, 3, 4), (1, 0, 4), (1, 0, 4)],
            "key: got (1, 0, 4); expected no empty axis among heads, tokens, head size",
        ),
        (
            [(1, 3, 4), (1, 3, 5), (1, 3, 4)],
            "key: got (1, 3, 5); expected head size 4 like query (1, 3, 4)",
        ),
        (
            [(1, 3, 4), (1, 5, 4), (1, 6, 4)],
            "value: got (1, 6, 4); expected 5 tokens like key (1, 5, 4)",
        ),
        (
            [(4, 3, 4), (2, 5, 4), (1, 5, 4)],
            "value: got (1, 5, 4); expected 2 heads like key (2, 5, 4)",
        ),
        (
            [(3, 3, 4), (2, 5, 4), (2, 5, 4)],
            "query: got (3, 3, 4); expected a number of heads that is a multiple of the 2 of key",
        ),
    ],
)
def test_arrays_that_do_not_fit(shapes: list[tuple[int, ...]], text: str) -> None:
    with pytest.raises(ShapeError) as caught:
        check_qkv(*(numbers(*shape) for shape in shapes))
    assert str(caught.value) == text


def test_arrays_that_fit() -> None:
    check_qkv(numbers(2, 4, 3, 8), numbers(2, 5, 8), numbers(7, 1, 2, 5, 9))


def test_one_dtype_for_all() -> None:
    with pytest.raises(DTypeError) as caught:
        check_qkv(numbers(1, 3, 4), numbers(1, 3, 4, dtype=np.float64), numbers(1, 3, 4))
    assert str(caught.value) == (
        "query, key, value: got float32, float64, float32; expected one dtype for all three"
    )


def test_leading_axes() -> None:
    query, key = numbers(2, 1, 1, 3, 4), numbers(5, 1, 3, 4)
    assert lead_shape(query, key, key) == (2, 5)
    assert lead_shape(key[0], key[0], key[0]) == ()
    with pytest.raises(ShapeError) as caught:
        lead_shape(numbers(2, 1, 3, 4), numbers(3, 1, 3, 4), key)
    assert str(caught.value) == (
        "query, key, value: got (2, 1, 3, 4), (3, 1, 3, 4), (5, 1, 3, 4); "
        "expected leading axes that broadcast with each other"
    )


# ---- the canonical layout -------------------------------------------------------------------

VIEWS: dict[str, Callable[[], Any]] = {
    "as it is": lambda: numbers(2, 3, 5, 4),
    "no leading axis": lambda: numbers(3, 5, 4),
    "several leading axes": lambda: numbers(2, 2, 3, 5, 4),
    "split from the last axis": lambda: split_heads(numbers(2, 5, 12), 3, "query"),
    "every other token": lambda: numbers(2, 3, 10, 4)[:, :, ::2],
    "backwards": lambda: numbers(2, 3, 5, 4)[:, ::-1, ::-1],
    "part of the head": lambda: numbers(2, 3, 5, 9)[..., 3:7],
    "broadcast along the batch": lambda: np.broadcast_to(numbers(1, 3, 5, 4), (7, 3, 5, 4)),
    "one number wide": lambda: numbers(2, 3, 5, 4)[..., 1:2],
    "read-only": lambda: np.frombuffer(numbers(2, 3, 5, 4).tobytes(), SINGLE).reshape(2, 3, 5, 4),
}


@pytest.mark.parametrize("name", VIEWS)
def test_what_strides_allow_is_not_copied(name: str) -> None:
    array = VIEWS[name]()
    lead = array.shape[:-3]
    found = canonical(array, lead, SINGLE)
    assert found.shape == (int(np.prod(lead)), *array.shape[-3:])
    assert np.shares_memory(found, array)
    np.testing.assert_array_equal(found.reshape(array.shape), array)


def unaligned(array: Any) -> Any:
    octets = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:]
    return octets.view(array.dtype).reshape(array.shape)


COPIES: dict[str, Callable[[], Any]] = {
    "another dtype": lambda: numbers(2, 3, 5, 4, dtype=np.float16),
    "bfloat16": lambda: numbers(2, 3, 5, 4, dtype=ml_dtypes.bfloat16),
    "another byte order": lambda: numbers(2, 3, 5, 4, dtype=">f4"),
    "the last axis not contiguous": lambda: numbers(2, 3, 4, 5).swapaxes(-1, -2),
    "every other number": lambda: numbers(2, 3, 5, 8)[..., ::2],
    "a constant head": lambda: np.broadcast_to(numbers(2, 3, 5, 1), (2, 3, 5, 4)),
    "not aligned": lambda: unaligned(numbers(2, 3, 5, 4)),
    "a field of records": lambda: np.zeros((2, 3, 5, 4), [("a", "u1"), ("x", "f4")])["x"],
}


@pytest.mark.parametrize("name", COPIES)
def test_what_they_do_not_allow_is(name: str) -> None:
    array = COPIES[name]()
    found = canonical(array, (2,), SINGLE)
    assert found.dtype == SINGLE
    assert found.dtype.isnative
    assert found.flags.aligned
    assert found.strides[-1] == found.itemsize
    np.testing.assert_array_equal(found, array.astype(SINGLE))


def test_leading_axes_are_broadcast_without_copying_where_that_is_possible() -> None:
    array = numbers(1, 3, 5, 4)
    found = canonical(array, (6, 7), SINGLE)
    assert found.shape == (42, 3, 5, 4)
    assert np.shares_memory(found, array)
    mixed = numbers(2, 1, 3, 5, 4)
    found = canonical(mixed, (2, 7), SINGLE).reshape(2, 7, 3, 5, 4)
    np.testing.assert_array_equal(found, np.broadcast_to(mixed, (2, 7, 3, 5, 4)))


def test_unbroadcast_sums_what_was_repeated() -> None:
    gradient = numbers(2, 3, 4, 5, dtype=np.float64)
    for shape in ((2, 3, 4, 5), (3, 4, 5), (4, 5), (1, 4, 5), (2, 1, 4, 1), (1, 1, 1, 1), ()):
        # The pullback of broadcasting: ⟨broadcast(x), g⟩ = ⟨x, unbroadcast(g)⟩.
        x = numbers(*shape, dtype=np.float64)
        found = unbroadcast(gradient, shape)
        assert found.shape == shape
        assert np.vdot(x, found) == pytest.approx(
            np.vdot(np.broadcast_to(x, (2, 3, 4, 5)), gradient)
        )


def test_splitting_and_merging_heads() -> None:
    array = numbers(2, 5, 12)
    split = split_heads(array, 3, "query")
    assert split.shape == (2, 3, 5, 4)
    assert np.shares_memory(split, array)
    np.testing.assert_array_equal(split[1, 2, 3], array[1, 3, 8:12])
    merged = merge_heads(split)
    assert np.shares_memory(merged, array)
    np.testing.assert_array_equal(merged, array)
    with pytest.raises(ShapeError) as caught:
        split_heads(array, 5, "value")
    assert (
        str(caught.value) == "value: got (2, 5, 12); expected a last axis that splits into 5 heads"
    )


# ---- through a mechanism --------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VIEWS, *COPIES])
def test_any_layout_gives_the_same_attention(build: Any, name: str) -> None:
    array = (VIEWS | COPIES)[name]()
    plain = np.ascontiguousarray(array, np.float32)
    before = array.copy()
    mechanism = build(dim=3 * array.shape[-1], heads=3)
    found = mechanism.attend(array, array, array)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, mechanism.attend(plain, plain, plain).astype(array.dtype))
    _, pull = mechanism.attend_vjp(array, array, array)
    _, expected = mechanism.attend_vjp(plain, plain, plain)
    gradient = np.ones(plain.shape, np.float32)
    for key in ("query", "key", "value"):
        found = getattr(pull(gradient), key)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, getattr(expected(gradient), key).astype(array.dtype))
    np.testing.assert_array_equal(array, before)


def test_the_module_says_what_it_accepts() -> None:
    assert all(name in arrays.ACCEPTED_DTYPES for name in DTYPES)


@pytest.mark.parametrize("kind", [np.matrix, np.ma.MaskedArray])
def test_subclasses_are_read_as_ordinary_arrays(build: Any, kind: type) -> None:
    mechanism = build(dim=4)
    plain = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = mechanism(plain.view(kind))
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, mechanism(plain))


def test_masked_arrays_that_hide_something_are_refused(build: Any) -> None:
    hidden = np.ma.masked_greater(np.ones((3, 4)), 0)
    with pytest.raises(ArgumentError, match="query: got a masked array; expected one that hides"):
        build(dim=4)(hidden)
