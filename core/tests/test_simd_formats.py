"""Stored numbers: closed bounds of their errors, and kernels that read what is written."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polyattn_core.simd import decoding
from polyattn_core.simd.decoding import Scores, Stored
from polyattn_core.simd.formats import FORMATS, pack, unpack

GROUP = 32


def bound(array: Any, name: str) -> Any:
    """By how much each number may be off."""
    size = np.abs(array.astype(np.float64))
    if name in ("float32", "float64"):
        return np.zeros(array.shape)
    if name == "float16":
        return size * 2.0**-11 + 2.0**-25
    if name == "bfloat16":
        return size * 2.0**-8
    most = size.reshape((*array.shape[:-1], -1, GROUP)).max(axis=-1)
    steps = np.repeat(most, GROUP, axis=-1)
    return steps / (254 if name == "int8" else 14) + steps * 2.0**-22 + 1e-36


numbers = arrays(
    np.float32, (3, 64),
    elements=st.floats(-6e4, 6e4, width=32) | st.floats(-1, 1, width=32),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(numbers, st.sampled_from(list(FORMATS)))
def test_errors_are_within_their_bounds(array: Any, name: str) -> None:
    if name == "float64":
        array = array.astype(np.float64)
    if name == "bfloat16":  # which has no numbers below 2⁻¹²⁶ to its full precision
        array = np.where(np.abs(array) < 2.0**-126, 0, array).astype(np.float32)
    found = unpack(*pack(array, name, GROUP), name)
    assert found.dtype == FORMATS[name].dtype
    assert (np.abs(found.astype(np.float64) - array) <= bound(array, name)).all()


def test_bfloat16_rounds_like_the_library() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint32)
    array = bits.view(np.float32)
    array = np.concatenate([array[np.isfinite(array)], [0.0, -0.0, 1.00390625, 1.01171875]])
    array = array[: array.size // 4 * 4].astype(np.float32)
    with np.errstate(over="ignore"):
        expected = array.astype(ml_dtypes.bfloat16)
    packed, _ = pack(array, "bfloat16", 0)
    np.testing.assert_array_equal(packed, expected.view(np.uint16))
    assert np.isnan(unpack(pack(np.float32([np.nan]), "bfloat16", 0)[0], None, "bfloat16")).all()


def test_whole_numbers_come_back() -> None:
    """Every number that int4 and int8 can hold, in every place of a block."""
    for name, most in (("int8", 127), ("int4", 7)):
        row = np.resize(np.arange(-most, most + 1), (41, 64)).astype(np.float32)
        row[:, 0] = most  # of both groups, so that scales are 1
        row[:, 32] = -most
        np.testing.assert_array_equal(unpack(*pack(row, name, GROUP), name), row)


def stored(key: Any, value: Any, name: str) -> Stored:
    keys, width = key.shape[2:]
    data, scales = zip(*(pack(x, name, GROUP) for x in (key, value)), strict=True)
    if scales[0] is not None:
        scales = [
            np.concatenate([s.swapaxes(-1, -2), np.full((*s.shape[:2], s.shape[3], 16), np.nan)], 3)
            for s in scales
        ]  # what is behind the last row counts for nothing
        scales = [np.ascontiguousarray(s, np.float32) for s in scales]
    plain = decoding.contiguous(key, value, 0, keys)
    return Stored(
        name, *data, plain.runs, plain.starts, plain.totals, *scales, width, value.shape[3], GROUP
    )


def expected(query: Any, key: Any, value: Any) -> Any:
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    group = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x, group, axis=1) for x in (key, value))
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("keys", [1, 15, 257, 3000])
def test_kernels_read_what_is_stored(name: str, keys: int) -> None:
    rng = np.random.default_rng(keys)
    dtype = FORMATS[name].dtype
    for width, value_width in ((64, 64), (96, 32), (160, 96)):
        query = rng.standard_normal((2, 4, 3, width)).astype(dtype)
        key = rng.standard_normal((2, 2, keys, width)).astype(dtype)
        value = rng.standard_normal((2, 2, keys, value_width)).astype(dtype)
        read = [unpack(*pack(x, name, GROUP), name) for x in (key, value)]
        out, _ = decoding.attend(query, stored(key, value, name), Scores(width**-0.5))
        tolerance = 20 * np.finfo(dtype).eps
        np.testing.assert_allclose(out, expected(query, *read), atol=tolerance)


@pytest.mark.parametrize("width", [1, 7, 16, 40])
def test_plain_rows_of_any_size(width: int) -> None:
    rng = np.random.default_rng(width)
    query, key, value = (rng.standard_normal((1, 2, n, width)) for n in (2, 700, 700))
    out, _ = decoding.attend(query, decoding.contiguous(key, value, 0, 700), Scores(width**-0.5))
    np.testing.assert_allclose(out, expected(query, key, value), atol=1e-14)


HALVES = """
import numpy as np
from polyattn_core.simd import decoding
from polyattn_core.simd.decoding import Scores
bits = np.arange(1 << 16, dtype=np.uint16)
value = bits[None, None, :, None].repeat(16, 3)
runs = np.zeros((1, 5), np.int64)
key = np.zeros((1, 1, 1 << 16, 16), np.uint16)
query = np.zeros((1, 1, 1, 16), np.float32)
starts = np.array([0, 1])
for b in (*range(0, 1 << 16, 97), 0, 1, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0x7E00, 0x8001, 0xFC00):
    runs[0] = 0, b, 0, 1, 0
    stored = decoding.Stored("float16", key, value, runs, starts, np.array([1]))
    out, _ = decoding.attend(query, stored, Scores(1.0))
    expected = bits[b : b + 1].view(np.float16).astype(np.float32)[0]
    assert np.array_equal(out[0, 0, 0], np.full(16, expected), equal_nan=True), (b, out, expected)
"""


@pytest.mark.parametrize(
    "environment", [{}, {"NUMBA_CPU_NAME": "generic"}], ids=["this", "without the instruction"]
)
def test_halves_are_read_exactly(run_python: Any, environment: dict[str, str]) -> None:
    run_python(HALVES, **environment)
