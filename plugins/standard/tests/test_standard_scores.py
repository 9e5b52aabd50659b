"""Scores: products, angles and distances, against closed forms and other libraries."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.special
from scipy.spatial.distance import cdist

Create = Callable[..., Any]
Arrays = Callable[..., Any]

CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def test_scaled_dot_product(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    expected = scipy.special.softmax(query @ key.swapaxes(-1, -2) / 2.0, axis=-1) @ value
    output = create("scaled-dot-product", dim=12, heads=3).attend(query, key, value)
    np.testing.assert_allclose(output, expected, **CLOSE)


@pytest.mark.parametrize("name", ["scaled-dot-product", "softmax-one", "sparsemax", "l2"])
def test_scale(create: Create, arrays: Arrays, plain: SimpleNamespace, name: str) -> None:
    query, key, value = arrays()
    scores = plain.scores(name, query, key) * 2.0 * 0.3  # the default scale is 1/2
    output = create(name, dim=12, heads=3, scale=0.3).attend(query, key, value)
    np.testing.assert_allclose(output, plain.attend(name, scores, value), **CLOSE)


def test_single_query(create: Create, arrays: Arrays) -> None:
    query, key, value = (array[0, 0] for array in arrays())
    expected = scipy.special.softmax(key @ query[0] / 2.0) @ value
    output = create("scaled-dot-product", dim=4)(query[0], key, value)
    np.testing.assert_allclose(output, expected, **CLOSE)


# ---- cosine ----


def test_cosine(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    cosine = create("cosine", dim=12, heads=3, scale=4.0)
    assert cosine.parameters["gain"].tolist() == [4.0, 4.0, 4.0]
    gains = [0.5, 3.0, 20.0]
    cosine.parameters.update({"gain": gains})
    output = cosine.attend(query, key, value)
    for head, gain in enumerate(gains):
        angles = 1 - cdist(query[1, head], key[1, head], "cosine")
        expected = scipy.special.softmax(gain * angles, axis=-1) @ value[1, head]
        np.testing.assert_allclose(output[1, head], expected, **CLOSE)


def test_cosine_does_not_stretch_short_vectors(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    cosine = create("cosine", dim=12, heads=3, epsilon=0.25)
    # All of length 0.05: a fifth of ε, so the cosine is that times the angle's.
    query *= 0.05 / np.linalg.norm(query, axis=-1, keepdims=True)
    unit = key / np.linalg.norm(key, axis=-1, keepdims=True)
    expected = scipy.special.softmax(10 * (query / 0.25) @ unit.swapaxes(-1, -2), axis=-1) @ value
    np.testing.assert_allclose(cosine.attend(query, key, value), expected, **CLOSE)


def test_cosine_of_nothing_is_zero(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    output = create("cosine", dim=12, heads=3).attend(0 * query, key, value)
    expected = np.broadcast_to(value.mean(axis=-2, keepdims=True), output.shape)
    np.testing.assert_allclose(output, expected, **CLOSE)


@pytest.mark.oracle
def test_cosine_against_torch(create: Create, arrays: Arrays) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    query, key, value = arrays()
    q, k, v = (torch.from_numpy(array) for array in (query, key, value))
    angles = torch.nn.functional.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
    expected = torch.softmax(10 * angles, dim=-1) @ v
    output = create("cosine", dim=12, heads=3).attend(query, key, value)
    np.testing.assert_allclose(output, expected.numpy(), **CLOSE)


# ---- distances ----


def test_l2(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    output = create("l2", dim=12, heads=3).attend(query, key, value)
    for batch in range(2):
        for head in range(3):
            squared = cdist(query[batch, head], key[batch, head], "sqeuclidean")
            expected = scipy.special.softmax(-squared / 2.0, axis=-1) @ value[batch, head]
            np.testing.assert_allclose(output[batch, head], expected, **CLOSE)


def test_gaussian_by_default_is_as_sharp_as_products(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    gaussian = create("gaussian", dim=12, heads=3).attend(query, key, value)
    for head in range(3):
        squared = cdist(query[0, head], key[0, head], "sqeuclidean")
        # σ² = √4
        expected = scipy.special.softmax(-squared / (2 * 2.0), axis=-1) @ value[0, head]
        np.testing.assert_allclose(gaussian[0, head], expected, **CLOSE)

    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    gaussian = create("gaussian", dim=12, heads=3).attend(query, key, value)
    products = create("scaled-dot-product", dim=12, heads=3).attend(query, key, value)
    np.testing.assert_allclose(gaussian, products, **CLOSE)


@pytest.mark.parametrize("bandwidth", [0.5, (0.5, 1.0, 3.0)])
def test_bandwidth(create: Create, arrays: Arrays, bandwidth: Any) -> None:
    query, key, value = arrays()
    output = create("gaussian", dim=12, heads=3, bandwidth=bandwidth).attend(query, key, value)
    for head, width in enumerate(np.broadcast_to(bandwidth, 3)):
        squared = cdist(query[1, head], key[1, head], "sqeuclidean")
        expected = scipy.special.softmax(-squared / (2 * width**2), axis=-1) @ value[1, head]
        np.testing.assert_allclose(output[1, head], expected, **CLOSE)


def test_bandwidths_belong_to_query_heads(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(heads=4, key_heads=2)
    widths = (0.3, 1.0, 2.0, 4.0)
    options: dict[str, Any] = {"dim": 16, "heads": 4, "bandwidth": widths}
    grouped = create("gaussian", **options, kv_heads=2).attend(query, key, value)
    repeated = (np.repeat(array, 2, axis=1) for array in (key, value))
    np.testing.assert_allclose(
        grouped, create("gaussian", **options).attend(query, *repeated), **CLOSE
    )


def test_gaussian_at_one_width_is_l2(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    l2 = create("l2", dim=12, heads=3).attend(query, key, value)
    gaussian = create("gaussian", dim=12, heads=3, bandwidth=1.0)  # σ² = √4 / 2
    np.testing.assert_allclose(gaussian.attend(query, key, value), l2, **CLOSE)


@pytest.mark.oracle
def test_distances_against_torch(create: Create, arrays: Arrays) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    query, key, value = arrays()
    q, k, v = (torch.from_numpy(array).requires_grad_() for array in (query, key, value))
    exact = "donot_use_mm_for_euclid_dist"
    expected = torch.softmax(-(torch.cdist(q, k, compute_mode=exact) ** 2) / 2.0, dim=-1) @ v
    expected.backward(torch.ones_like(expected))
    output, pullback = create("l2", dim=12, heads=3).attend_vjp(query, key, value)
    np.testing.assert_allclose(output, expected.detach().numpy(), **CLOSE)
    found = pullback(np.ones_like(output))
    for gradient, tensor in ((found.query, q), (found.key, k), (found.value, v)):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("key_heads", [4, 2])
def test_distances_far_from_the_origin(create: Create, arrays: Arrays, key_heads: int) -> None:
    """Float32 keeps its digits where points are far away, each head elsewhere."""
    query, key, value = arrays(heads=4, key_heads=key_heads, queries=40)
    places = 1e4 * np.random.default_rng(1).standard_normal((key_heads, 1, 4))
    query += np.repeat(places, 4 // key_heads, axis=0)
    key += places
    l2 = create("l2", dim=16, heads=4, kv_heads=key_heads)
    single = [array.astype(np.float32) for array in (query, key, value)]
    rounded = [array.astype(np.float64) for array in single]
    np.testing.assert_allclose(l2.attend(*single), l2.attend(*rounded), rtol=1e-4, atol=1e-5)
    for head in (0, 3):
        group = head * key_heads // 4
        squared = cdist(rounded[0][0, head], rounded[1][0, group], "sqeuclidean")
        expected = scipy.special.softmax(-squared / 2.0, axis=-1) @ rounded[2][0, group]
        np.testing.assert_allclose(l2.attend(*single)[0, head], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf, 1e30])
def test_a_wild_query_harms_no_other(create: Create, arrays: Arrays, wild: float) -> None:
    query, key, value = (array.astype(np.float32) for array in arrays())
    l2 = create("l2", dim=12, heads=3)
    expected = l2.attend(query, key, value)
    query[:, :, 2] = wild
    with np.errstate(all="ignore"):
        output = l2.attend(query, key, value)
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(output[:, :, others], expected[:, :, others], rtol=1e-5, atol=1e-6)


def test_rotated_distances_are_about_the_origin(
    create: Create, arrays: Arrays, plain: SimpleNamespace
) -> None:
    query, key, value = arrays()
    query, key = query + 3.0, key + 3.0
    l2 = create("l2", dim=12, heads=3, position="rope")
    scores = plain.scores("l2", plain.rope(query, 2), plain.rope(key, 0))
    np.testing.assert_allclose(
        l2.attend(query, key, value), plain.attend("l2", scores, value), **CLOSE
    )
