"""Rotary embeddings, slopes and buckets against their formulas."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from polyattn_core.errors import ArgumentError
from polyattn_core.positions import Rope, T5Bias, alibi_slopes, distances, rotate, t5_buckets
from polyattn_core.reference import rope_frequencies

Array = Any


# ---- rotary embeddings ----------------------------------------------------------------------


def turned_as_complex(array: Array, positions: Array, rope: Rope) -> Array:
    """Pairs as complex numbers times e^{i·angle}."""
    size = rope.size or array.shape[-1]
    if rope.interleaved:
        pairs = [(2 * p, 2 * p + 1) for p in range(size // 2)]
    else:
        pairs = [(p, p + size // 2) for p in range(size // 2)]
    result = array.copy()
    for p, (first, second) in enumerate(pairs):
        angle = positions / rope.factor * rope.base ** (-2 * p / size)
        number = (array[..., first] + 1j * array[..., second]) * np.exp(1j * angle)
        result[..., first], result[..., second] = number.real, number.imag
    return result


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("size", [None, 2, 6])
@pytest.mark.parametrize(("base", "factor"), [(10_000.0, 1.0), (500.0, 4.0)])
def test_rotation_is_a_complex_product(
    interleaved: bool, size: int | None, base: float, factor: float
) -> None:
    rope = Rope(interleaved=interleaved, size=size, base=base, factor=factor)
    array = np.random.default_rng(0).standard_normal((2, 3, 11, 8))
    positions = np.arange(11) + 5
    found = rotate(array, positions, rope)
    np.testing.assert_allclose(found, turned_as_complex(array, positions, rope), atol=1e-13)
    if size:
        np.testing.assert_array_equal(found[..., size:], array[..., size:])


def test_frequencies_of_a_model_that_was_scaled() -> None:
    """Wavelengths against the tokens of training, as in the code that came with Llama 3.1."""
    rope = Rope(base=500_000.0, factor=8.0, trained=8192)
    expected = []
    for pair in range(64):
        frequency = 500_000.0 ** (-2 * pair / 128)
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected.append(frequency)
        elif wavelength > 8192 / 1:
            expected.append(frequency / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    np.testing.assert_allclose(rope.frequencies(128), expected, rtol=1e-13)
    np.testing.assert_allclose(rope_frequencies(rope, 128), expected, rtol=1e-13)
    plain = Rope(base=500_000.0).frequencies(128)
    kept, divided = np.isclose(expected, plain), np.isclose(expected, plain / 8)
    assert kept.any()
    assert divided.any()
    assert not (kept | divided).all()
    array = np.random.default_rng(0).standard_normal((2, 5, 128))
    positions = np.arange(5) * 1000
    angle = positions[:, None] * np.array(expected)
    number = (array[..., :64] + 1j * array[..., 64:]) * np.exp(1j * angle)
    found = rotate(array, positions, rope)
    np.testing.assert_allclose(found, np.concatenate((number.real, number.imag), -1), atol=1e-9)


@pytest.mark.parametrize(("size", "trained"), [(64, 4096), (64, 100), (8, 4096), (2, 64), (16, 7)])
def test_frequencies_by_yarn(size: int, trained: int) -> None:
    """Equations 17 to 23 of the paper, their bounds rounded outwards as in the code of DeepSeek."""
    rope = Rope(factor=40.0, trained=trained, ramp="pairs")
    plain = Rope().frequencies(size)
    bounds = []
    for turns, rounded in ((32, math.floor), (1, math.ceil)):
        place = size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(10_000.0))
        bounds.append(rounded(place))
    low, high = max(bounds[0], 0), min(bounds[1], size - 1)
    share = np.clip((np.arange(size // 2) - low) / max(high - low, 1e-3), 0, 1)
    expected = plain / 40 * share + plain * (1 - share)
    np.testing.assert_allclose(rope.frequencies(size), expected, rtol=1e-13)
    np.testing.assert_allclose(rope_frequencies(rope, size), expected, rtol=1e-13)


def test_yarn_of_deepseek() -> None:
    """Of 32 pairs, 10 are kept and those from 23 on divided by 40."""
    found = Rope(factor=40.0, trained=4096, ramp="pairs").frequencies(64)
    ratio = Rope().frequencies(64) / found
    np.testing.assert_allclose(ratio[:11], 1, rtol=1e-13)
    np.testing.assert_allclose(ratio[23:], 40, rtol=1e-13)
    assert (np.diff(ratio[10:24]) > 0).all()


def test_yarn_needs_the_tokens_of_training() -> None:
    with pytest.raises(ValueError, match="ramp: needs trained="):
        Rope(factor=4.0, ramp="pairs")


def test_rotation_of_one_pair_by_hand() -> None:
    """(1, 0) turns to (cos n, sin n), and the second pair a hundred times slower."""
    array = np.zeros((3, 4))
    array[:, :2] = 1  # half-sized: pairs (0, 2) and (1, 3)
    found = rotate(array, np.array([0.0, 1.0, -2.0]), Rope())
    for row, n in zip(found, (0.0, 1.0, -2.0), strict=True):
        expected = [math.cos(n), math.cos(n / 100), math.sin(n), math.sin(n / 100)]
        np.testing.assert_allclose(row, expected, atol=1e-15)


@pytest.mark.parametrize("interleaved", [False, True])
def test_products_depend_on_the_distance_only(interleaved: bool) -> None:
    rope = Rope(interleaved=interleaved)
    query, key = np.random.default_rng(1).standard_normal((2, 1, 16))

    def product(m: int, n: int) -> float:
        turned = rotate(query, np.array([m]), rope), rotate(key, np.array([n]), rope)
        return float(turned[0][0] @ turned[1][0])

    for distance in (-7, 0, 30):
        first = product(100, 100 + distance)
        assert product(3000, 3000 + distance) == pytest.approx(first, abs=1e-10)
    assert product(0, 0) == pytest.approx(float(query[0] @ key[0]))
    assert abs(product(0, 5) - product(0, 0)) > 1e-3


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_keeps_lengths_and_turns_back(interleaved: bool) -> None:
    rope = Rope(interleaved=interleaved, size=6)
    array = np.random.default_rng(2).standard_normal((4, 9, 8))
    positions = np.arange(9)
    found = rotate(array, positions, rope)
    np.testing.assert_allclose(
        np.linalg.norm(found, axis=-1), np.linalg.norm(array, axis=-1), rtol=1e-14
    )
    np.testing.assert_allclose(rotate(found, positions, rope, inverse=True), array, atol=1e-14)
    # The inverse is the pullback: ⟨R x, y⟩ = ⟨x, R⁻¹ y⟩.
    other = np.random.default_rng(3).standard_normal(array.shape)
    back = rotate(other, positions, rope, inverse=True)
    assert np.vdot(found, other) == pytest.approx(np.vdot(array, back))


def test_both_layouts_differ_by_the_order_of_coordinates() -> None:
    array = np.random.default_rng(4).standard_normal((5, 8))
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    half = rotate(array, np.arange(5), Rope())
    interleaved = rotate(array[:, order], np.arange(5), Rope(interleaved=True))
    np.testing.assert_allclose(interleaved, half[:, order])


def test_rotation_computes_angles_in_double_precision() -> None:
    """At position 10⁶, angles in float32 would be off by 0.03."""
    array = np.random.default_rng(5).standard_normal((1, 8)).astype(np.float32)
    positions = np.array([1_000_003])
    found = rotate(array, positions, Rope())
    assert found.dtype == np.float32
    exact = turned_as_complex(array.astype(np.float64), positions, Rope())
    np.testing.assert_allclose(found, exact, atol=5e-7)


def test_rotation_leaves_its_input() -> None:
    array = np.ones((3, 4))
    array.flags.writeable = False
    positions = np.broadcast_to(np.arange(3), (2, 3))
    assert rotate(np.broadcast_to(array, (2, 3, 4)), positions, Rope()).shape == (2, 3, 4)
    assert (array == 1).all()


@pytest.mark.parametrize(("size", "width"), [(None, 5), (8, 6)])
def test_sizes_that_do_not_fit(size: int | None, width: int) -> None:
    with pytest.raises(ArgumentError, match=r"^position\.size: got .* at most the head size"):
        rotate(np.ones((2, width)), np.arange(2), Rope(size=size))


# ---- linear biases --------------------------------------------------------------------------


def test_slopes_of_the_paper() -> None:
    """Press et al.: 1/2, 1/4 … 1/2⁸ for 8 heads; for 12, then every other one of 16 heads."""
    eight = [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]
    assert alibi_slopes(8).tolist() == eight
    sixteen = [2 ** (-n / 2) for n in range(1, 17)]
    np.testing.assert_allclose(alibi_slopes(16), sixteen, rtol=1e-15)
    np.testing.assert_allclose(alibi_slopes(12), eight + sixteen[0:8:2], rtol=1e-15)
    assert alibi_slopes(1).tolist() == [2**-8]


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 7, 20, 64, 100])
def test_slopes_of_any_number_of_heads(heads: int) -> None:
    slopes = alibi_slopes(heads)
    assert slopes.shape == (heads,)
    assert len(set(slopes.tolist())) == heads
    assert ((slopes > 0) & (slopes < 1)).all()


# ---- buckets of T5 --------------------------------------------------------------------------


def bucket(distance: int, buckets: int, most: int, bidirectional: bool) -> int:
    """The formula in exact arithmetic: ⌊log(d/e) / log(most/e) · (buckets − e)⌋ by powers."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if distance > 0 else 0
        size = abs(distance)
    else:
        size = max(-distance, 0)
    exact = buckets // 2
    if size < exact:
        return first + size
    unit = max(exact, 1)
    whole = buckets - exact
    step = 0
    # The largest step with (most/unit)^(step/whole) ≤ size/unit.
    while step < whole and Fraction(most, unit) ** (step + 1) <= Fraction(size, unit) ** whole:
        step += 1
    return first + min(exact + step, buckets - 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 64), st.integers(2, 512), st.booleans(), st.data())
def test_buckets_are_those_of_the_formula(
    buckets: int, most: int, bidirectional: bool, data: Any
) -> None:
    exact = (buckets // 2 if bidirectional else buckets) // 2
    if most <= exact:
        return
    bias = T5Bias(buckets=buckets, max_distance=most, bidirectional=bidirectional)
    distance = np.array(data.draw(st.lists(st.integers(-1000, 1000), min_size=1)))
    expected = [bucket(int(d), buckets, most, bidirectional) for d in distance]
    assert t5_buckets(distance, bias).tolist() == expected


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_at_the_edges_of_the_default(bidirectional: bool) -> None:
    """Where the logarithm is a whole number, rounding must not fall short of it."""
    bias = T5Bias(bidirectional=bidirectional)
    distance = np.arange(-300, 301)
    expected = [bucket(int(d), 32, 128, bidirectional) for d in distance]
    assert t5_buckets(distance, bias).tolist() == expected


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_grow_with_the_distance(bidirectional: bool) -> None:
    bias = T5Bias(bidirectional=bidirectional)
    back = t5_buckets(-np.arange(1000), bias)
    assert (np.diff(back) >= 0).all()
    assert back[0] == 0
    assert back.max() == (15 if bidirectional else 31)
    forward = t5_buckets(np.arange(1, 1000), bias)
    if bidirectional:
        assert (forward == back[1:] + 16).all()
    else:
        assert (forward == 0).all()


def test_distances() -> None:
    """With more keys than queries the last query is at the last key."""
    for queries, keys in ((3, 5), (5, 3), (4, 4), (1, 1)):
        pairs = {j - (i + keys - queries) for i in range(queries) for j in range(keys)}
        assert distances(queries, keys).tolist() == sorted(pairs)


def test_a_distance_that_leaves_no_room() -> None:
    with pytest.raises(ValidationError, match="must exceed the 8 exact distances"):
        T5Bias(max_distance=8)
    assert T5Bias(max_distance=9)
    with pytest.raises(ValidationError, match="must exceed the 16 exact distances"):
        T5Bias(max_distance=16, bidirectional=False)
