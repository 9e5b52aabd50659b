"""Scores that are sums over slices of the head, against NumPy and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from polyattn_core.errors import CapabilityError, KernelError
from polyattn_core.mechanism import Call
from polyattn_core.simd import engine
from polyattn_core.simd.engine import Component
from polyattn_core.simd.rules import score_rule, squared_norm
from polyattn_core.streaming import StreamingConfig, StreamingMechanism

Build = Callable[..., Any]
Array = Any
SIZES = (3, 17, 8)
SHARPNESS, SCALES, TILT = np.array([0.3, 0.2]), (0.5, 1.0, 0.25), 0.7
TWO = np.float32(2)
both = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@score_rule(row=squared_norm, column=squared_norm)
def negative_distance(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    return -sharpness * (row + column - TWO * dot)


@negative_distance.derivative
def negative_distance_derivative(dot, row, column, sharpness):  # type: ignore[no-untyped-def]
    return (TWO * sharpness, -sharpness, -sharpness, -(row + column - TWO * dot))


@score_rule
def bend(score, tilt):  # type: ignore[no-untyped-def]
    return score + tilt * score * score


@bend.derivative
def bend_derivative(score, tilt):  # type: ignore[no-untyped-def]
    return (1 + TWO * tilt * score, score * score)


@score_rule
def third(score):  # type: ignore[no-untyped-def]
    return score / np.float32(3)


@third.derivative
def third_derivative(score):  # type: ignore[no-untyped-def]
    return (np.float32(1) / np.float32(3),)


@score_rule
def halved(score):  # type: ignore[no-untyped-def]
    """Has no derivative that could be derived."""
    turns = 0
    while turns < 1:
        score = score * np.float32(0.5)
        turns += 1
    return score


@score_rule
def squared(score):  # type: ignore[no-untyped-def]
    return score * score


@squared.derivative
def squared_derivative(score):  # type: ignore[no-untyped-def]
    return (TWO * score,)


def components(sharpness: Array = SHARPNESS, tilt: float = TILT) -> list[Component]:
    """A distance, a bent product, and a plain product."""
    return [
        Component(SIZES[0], SCALES[0], [(negative_distance, (sharpness,))]),
        Component(SIZES[1], SCALES[1], [(third, ()), (bend, (tilt,))]),
        Component(SIZES[2], SCALES[2]),
    ]


class Sum(StreamingMechanism):
    """A sum of components, bent as a whole."""

    def _components(self, call: Call) -> Sequence[Component]:
        return components()

    def _rules(self, call: Call) -> list[Any]:
        return [(bend, (0.1,))]

    def _parameter_gradients(self, rule_parameters: Array, sink: Array | None) -> dict[str, Array]:
        return {"rules": rule_parameters}


class SumSparsemax(Sum):
    normaliser = "sparsemax"


class SumSquared(Sum):
    normaliser = "elementwise"

    def _weight_rule(self, call: Call) -> tuple[Any, tuple[()]]:
        return squared, ()


def scores(query: Array, key: Array, sharpness: Array = SHARPNESS, tilt: float = TILT) -> Array:
    """In double precision; heads of the query in groups of the key's."""
    key = np.repeat(key, query.shape[-3] // key.shape[-3], axis=-3).astype(np.float64)
    query = query.astype(np.float64)
    ends = np.cumsum(SIZES)[:-1]
    (q1, q2, q3), (k1, k2, k3) = (np.split(x, ends, axis=-1) for x in (query, key))
    # The rule sees the scaled product, so that this is a distance only where the scale is 1.
    dot = SCALES[0] * q1 @ k1.swapaxes(-1, -2)
    norms = (q1**2).sum(-1)[..., None] + (k1**2).sum(-1)[..., None, :]
    first = -np.asarray(sharpness)[:, None, None] * (norms - 2 * dot)
    second = SCALES[1] * q2 @ k2.swapaxes(-1, -2) / 3
    third = SCALES[2] * q3 @ k3.swapaxes(-1, -2)
    total = first + second + tilt * second**2 + third
    return total + 0.1 * total**2


def softmax(x: Array) -> Array:
    grown = np.exp(x - x.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


def sparsemax(x: Array) -> Array:
    ordered = -np.sort(-x, axis=-1)
    total = np.cumsum(ordered, axis=-1) - 1
    counts = np.arange(1, x.shape[-1] + 1)
    size = (ordered * counts > total).sum(axis=-1, keepdims=True)
    return np.maximum(x - np.take_along_axis(total, size - 1, axis=-1) / size, 0)


NORMALISERS = {Sum: softmax, SumSparsemax: sparsemax, SumSquared: lambda x: x**2}
kinds = pytest.mark.parametrize("kind", NORMALISERS)


def arrays(seed: int, dtype: Any, queries: int, keys: int, key_heads: int = 2) -> list[Array]:
    rng = np.random.default_rng(seed)
    size = sum(SIZES)
    shapes = [(2, 2, queries, size), (2, key_heads, keys, size), (2, key_heads, keys, 5)]
    return [(0.5 * rng.standard_normal(shape)).astype(dtype) for shape in shapes]


def make(build: Build, kind: type[Sum] = Sum, **options: Any) -> Any:
    return build(kind, StreamingConfig, dim=2 * sum(SIZES), heads=2, **options)


@both
@kinds
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (65, 63), (7, 130), (1, 1500)])
def test_output(build: Build, kind: type[Sum], dtype: Any, queries: int, keys: int) -> None:
    for key_heads in (1, 2):
        query, key, value = arrays(0, dtype, queries, keys, key_heads)
        weights = NORMALISERS[kind](scores(query, key))
        expected = weights @ np.repeat(value, 2 // key_heads, axis=1)
        found = make(build, kind, kv_heads=key_heads).attend(query, key, value)
        tolerance = 3e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(
            found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
        )


@kinds
def test_weights_and_masks(build: Build, kind: type[Sum]) -> None:
    query, key, value = arrays(1, np.float64, 40, 70)
    visible = np.random.default_rng(2).random((40, 70)) < 0.6
    if kind is SumSquared:
        expected = np.where(visible, scores(query, key) ** 2, 0)
    else:
        expected = NORMALISERS[kind](np.where(visible, scores(query, key), -1e300))
    seen = make(build, kind).observe(query, key, value, "weights", mask=visible)
    np.testing.assert_allclose(seen.weights, expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(seen.output, expected @ value, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("keys", [700, 5000])
def test_chunks_of_the_keys(build: Build, keys: int) -> None:
    """A single query, for which a plain soft-max would take the decoding kernel."""
    query, key, value = arrays(3, np.float64, 1, keys)
    mechanism = make(build)
    expected = softmax(scores(query, key)) @ value
    np.testing.assert_allclose(mechanism.attend(query, key, value), expected, rtol=1e-10)
    half = keys // 2
    first = mechanism.attend_partial(query, key[..., :half, :], value[..., :half, :], total=keys)
    rest = mechanism.attend_partial(
        query, key[..., half:, :], value[..., half:, :], start=half, total=keys
    )
    np.testing.assert_allclose(first.merge(rest).finish(), expected, rtol=1e-10)


@kinds
@pytest.mark.parametrize("key_heads", [1, 2])
def test_gradients(build: Build, kind: type[Sum], key_heads: int) -> None:
    query, key, value = arrays(4, np.float64, 9, 70, key_heads)
    incoming = np.random.default_rng(5).standard_normal((2, 2, 9, 5))

    def loss(query: Array, key: Array, value: Array, sharpness: Array, tilt: float) -> float:
        weights = NORMALISERS[kind](scores(query, key, sharpness, tilt))
        return float((weights @ np.repeat(value, 2 // key_heads, axis=1) * incoming).sum())

    _, pull = make(build, kind, kv_heads=key_heads).attend_vjp(query, key, value)
    found = pull(incoming)
    given = [query, key, value, SHARPNESS, TILT]
    by_rules = found.parameters["rules"]
    # Parameters in order: sharpness of the first component, tilt of the second, of the sum.
    assert by_rules.shape == (2, 3)
    gradients = [found.query, found.key, found.value, by_rules[:, 0], by_rules[:, 1].sum()]
    rng = np.random.default_rng(6)
    for place, gradient in enumerate(gradients):
        direction = rng.standard_normal(np.shape(given[place]))
        step = 1e-6
        sides = []
        for sign in (1, -1):
            moved = list(given)
            moved[place] = given[place] + sign * step * direction
            sides.append(loss(*moved))
        slope = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=2e-6, atol=1e-7)


@both
def test_one_component_is_the_plain_product(dtype: Any) -> None:
    query, key, value = arrays(7, dtype, 50, 90)
    plain = engine.Request(query, key, value, 0.3)
    whole = engine.Request(query, key, value, 1.0, components=[Component(28, 0.3)])
    first, second = engine.forward(plain), engine.forward(whole)
    np.testing.assert_array_equal(first.out, second.out)
    gradients = [engine.backward(r, s, s.out) for r, s in ((plain, first), (whole, second))]
    for name in ("query", "key", "value"):
        np.testing.assert_array_equal(*(getattr(g, name) for g in gradients))


def test_masked_numbers_that_are_not_finite_reach_nobody(build: Build) -> None:
    query, key, value = arrays(8, np.float32, 70, 80)
    clean = [key.copy(), value.copy()]
    visible = np.ones((70, 80), bool)
    visible[:, [3, 77]] = False
    key[..., 3, 0], key[..., 77, 20], value[..., 3, :] = np.nan, np.inf, np.nan
    mechanism = make(build)
    expected, pull_clean = mechanism.attend_vjp(query, *clean, mask=visible)
    found, pull = mechanism.attend_vjp(query, key, value, mask=visible)
    np.testing.assert_array_equal(found, expected)
    for one, other in zip(
        (pull(found).query, pull(found).key, pull(found).value),
        (pull_clean(found).query, pull_clean(found).key, pull_clean(found).value),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("sizes", [(3, 17), (28, 1), (20, 8, 0)])
def test_sizes_that_do_not_make_up_the_head_are_refused(sizes: tuple[int, ...]) -> None:
    query, key, value = arrays(9, np.float32, 4, 4)
    parts = [Component(size, 1.0) for size in sizes]
    with pytest.raises(KernelError, match="a head of size 28"):
        engine.forward(engine.Request(query, key, value, 1.0, components=parts))


def test_a_component_rule_without_derivative_has_no_gradient(build: Build) -> None:
    class Flat(Sum):
        def _components(self, call: Call) -> Sequence[Component]:
            return [Component(20, 1.0, [(halved, ())]), Component(8, 1.0)]

    query, key, value = arrays(10, np.float32, 4, 4)
    mechanism = make(build, Flat)
    assert np.isfinite(mechanism.attend(query, key, value)).all()
    with pytest.raises(CapabilityError, match="halved"):
        mechanism.attend_vjp(query, key, value)
