"""Linear attention: against all pairs in memory, PyTorch and the recurrence, token by token."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.errors import ConfigError

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def elu1(x: Array) -> Array:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def dense(
    query: Array, key: Array, value: Array, visible: Any = True, *,
    features: Callable[[Array], Array] = elu1, scale: float = 1.0, epsilon: float = 0.0,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Output, weights and normaliser, with all pairs in memory."""
    group = query.shape[-3] // key.shape[-3]
    key, value = np.repeat(key, group, axis=-3), np.repeat(value, group, axis=-3)
    products = np.einsum("...qd,...kd->...qk", features(scale * query), features(scale * key))
    products = np.where(visible, products, 0)
    total = products.sum(axis=-1) + epsilon
    weights = np.where(total[..., None] > 0, products, 0) / np.where(total > 0, total, 1)[..., None]
    return weights @ value, weights, total


def causal(queries: int, keys: int) -> Array:
    return np.tri(queries, keys, keys - queries, dtype=bool)


SIZES = [(1, 1), (1, 65), (2, 63), (63, 63), (64, 64), (65, 65), (65, 130), (130, 65), (200, 1)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), SIZES)
def test_awkward_sizes(
    create: Create, arrays: Arrays, queries: int, keys: int, is_causal: bool
) -> None:
    for size, heads, key_heads in ((1, 1, 1), (4, 4, 2), (17, 3, 1), (64, 2, 2)):
        query, key, value = arrays(queries, keys, heads=heads, key_heads=key_heads, size=size)
        linear = create(
            "linear", dim=heads * size, heads=heads, kv_heads=key_heads, causal=is_causal
        )
        visible = causal(queries, keys) if is_causal else True
        expected = dense(query, key, value, visible)[0]
        np.testing.assert_allclose(linear.attend(query, key, value), expected, **CLOSE)
        single = (array.astype(np.float32) for array in (query, key, value))
        np.testing.assert_allclose(linear.attend(*single), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", ["elu+1", "relu"])
def test_equals_the_recurrence(create: Create, features: str) -> None:
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 1, 300, 8))
    value = rng.standard_normal((1, 300, 5))
    query[..., 0] = key[..., 0] = 1.0  # so that something is in common from the start
    phi = elu1 if features == "elu+1" else relu
    state, mass, expected = np.zeros((8, 5)), np.zeros(8), []
    for q, k, v in zip(query[0], key[0], value[0], strict=True):
        state += phi(k)[:, None] * v
        mass += phi(k)
        expected.append(phi(q) @ state / (phi(q) @ mass))
    linear = create("linear", dim=8, features=features, causal=True)
    np.testing.assert_allclose(linear.attend(query, key, value)[0], expected, **CLOSE)


@pytest.mark.parametrize("is_causal", [False, True])
def test_threads_share_a_head(create: Create, arrays: Arrays, is_causal: bool) -> None:
    # Large enough for parts of one head to be computed side by side.
    for queries, keys in ((1500, 1500), (1100, 1707), (1300, 1025)):
        query, key, value = arrays(queries, keys, heads=1, size=20)
        visible = causal(queries, keys) if is_causal else True
        expected = dense(query, key, value, visible)[0]
        for threads in (1, 2, 3):
            linear = create("linear", dim=20, causal=is_causal, threads=threads)
            np.testing.assert_allclose(linear.attend(query, key, value), expected, **CLOSE)


@pytest.mark.parametrize("queries", [1, 3, 16])
def test_few_queries_and_many_keys(create: Create, arrays: Arrays, queries: int) -> None:
    key_heads = 4 if queries > 3 else 2
    query, key, value = arrays(queries, 700, heads=4, key_heads=key_heads, size=16)
    for is_causal in (False, True):
        visible = causal(queries, 700) if is_causal else True
        linear = create("linear", dim=64, heads=4, kv_heads=key_heads, causal=is_causal)
        expected = dense(query, key, value, visible)[0]
        np.testing.assert_allclose(linear.attend(query, key, value), expected, **CLOSE)


def test_features(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(70, 90)
    output = create("linear", dim=8, heads=2, features="relu").attend(query, key, value)
    np.testing.assert_allclose(output, dense(query, key, value, features=relu)[0], **CLOSE)
    assert not np.allclose(output, create("linear", dim=8, heads=2).attend(query, key, value))


def test_scale(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(7, 9)
    for scale, features in itertools.product((0.1, 4.0), ("elu+1", "relu")):
        linear = create("linear", dim=8, heads=2, scale=scale, features=features)
        phi = elu1 if features == "elu+1" else relu
        expected = dense(query, key, value, scale=scale, features=phi)[0]
        np.testing.assert_allclose(linear.attend(query, key, value), expected, **CLOSE)


def test_epsilon(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(70, 90)
    for epsilon in (0.5, 100.0):
        linear = create("linear", dim=8, heads=2, epsilon=epsilon, causal=True)
        expected, weights, total = dense(query, key, value, causal(70, 90), epsilon=epsilon)
        np.testing.assert_allclose(linear.attend(query, key, value), expected, **CLOSE)
        seen = linear.observe(query, key, value, "weights", "log_sum_exp")
        np.testing.assert_allclose(seen.weights, weights, **CLOSE)
        np.testing.assert_allclose(seen.log_sum_exp, np.log(total), **CLOSE)
        # Of the parts none has ε; together they have it once.
        parts = [
            linear.attend_partial(query, key[:, :, a:b], value[:, :, a:b], start=a, total=90)
            for a, b in ((0, 30), (30, 31), (31, 90))
        ]
        merged = parts[2].merge(parts[0]).merge(parts[1])
        np.testing.assert_allclose(merged.finish(), expected, **CLOSE)


def test_no_feature_in_common(create: Create) -> None:
    query, key, value = np.array([[1.0, -1.0]]), np.array([[-1.0, 1.0]]), np.array([[3.0]])
    linear = create("linear", dim=2, features="relu")
    assert linear(query, key, value) == 0
    assert np.isneginf(
        linear.observe(*(x[None] for x in (query, key, value)), "log_sum_exp").log_sum_exp
    )
    _, pull = linear.vjp(query, key, value)
    found = pull(np.ones((1, 1)))
    assert not found.query.any()
    assert not found.key.any()
    assert not found.value.any()


def test_statistics(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(70, 300, heads=4, key_heads=2)
    linear = create("linear", dim=16, heads=4, kv_heads=2, causal=True)
    output, weights, total = dense(query, key, value, causal(70, 300))
    seen = linear.observe(query, key, value, "weights", "log_sum_exp", "column_mass")
    np.testing.assert_allclose(seen.output, output, **CLOSE)
    np.testing.assert_allclose(seen.weights, weights, **CLOSE)
    np.testing.assert_allclose(seen.log_sum_exp, np.log(total), **CLOSE)
    np.testing.assert_allclose(seen.column_mass, weights.sum(axis=-2), **CLOSE)


def test_layouts(create: Create, arrays: Arrays) -> None:
    query, key, value = inputs = arrays(70, 90, size=6)
    linear = create("linear", dim=12, heads=2, causal=True)
    expected = linear.attend(query, key, value)
    strided = [np.repeat(array, 2, axis=-1)[..., ::2] for array in inputs]
    np.testing.assert_array_equal(linear.attend(*strided), expected)
    turned = [
        np.ascontiguousarray(array.swapaxes(1, 2)).swapaxes(1, 2) for array in (query, key, value)
    ]
    np.testing.assert_array_equal(linear.attend(*turned), expected)
    backwards = [array[:, :, ::-1].copy()[:, :, ::-1] for array in inputs]
    np.testing.assert_array_equal(linear.attend(*backwards), expected)
    for array in inputs:
        array.flags.writeable = False
    np.testing.assert_array_equal(linear.attend(query, key, value), expected)
    # Leading axes broadcast.
    several = linear.attend(query[:, None], key[None], value[None, :1])
    assert several.shape == (2, 2, 2, 70, 7)
    np.testing.assert_allclose(several[1, 0], linear.attend(query[1], key[0], value[0]), **CLOSE)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_narrow_dtypes(create: Create, arrays: Arrays, kind: str) -> None:
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if kind == "bfloat16" else np.float16
    narrow = [array.astype(dtype) for array in arrays(70, 90)]
    output = create("linear", dim=8, heads=2, causal=True).attend(*narrow)
    assert output.dtype == dtype
    expected = dense(*(array.astype(np.float64) for array in narrow), causal(70, 90))[0]
    tolerance = 1e-2 if kind == "bfloat16" else 1e-3
    np.testing.assert_allclose(output.astype(np.float64), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize("is_causal", [False, True])
def test_against_torch(create: Create, arrays: Arrays, is_causal: bool) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    query, key, value = arrays(130, 200, heads=4, key_heads=2, size=16)
    q, k, v = (torch.from_numpy(array).requires_grad_() for array in (query, key, value))
    phi = torch.nn.functional.elu
    scores = (phi(q) + 1) @ (phi(k) + 1).repeat_interleave(2, 1).transpose(-1, -2)
    if is_causal:
        scores = scores.masked_fill(~torch.from_numpy(causal(130, 200)), 0)
    expected = scores / scores.sum(-1, keepdim=True) @ v.repeat_interleave(2, 1)
    incoming = torch.from_numpy(np.random.default_rng(5).standard_normal(expected.shape))
    expected.backward(incoming)
    linear = create("linear", dim=64, heads=4, kv_heads=2, causal=is_causal)
    output, pull = linear.attend_vjp(query, key, value)
    np.testing.assert_allclose(output, expected.detach().numpy(), **CLOSE)
    found = pull(incoming.numpy())
    for gradient, tensor in ((found.query, q), (found.key, k), (found.value, v)):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    ("option", "value"),
    [("features", "softmax"), ("scale", 0.0), ("epsilon", -1.0), ("causal", "maybe")],
)
def test_wrong_options(create: Create, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{option}: got {value}"):
        create("linear", dim=8, **{option: value})
