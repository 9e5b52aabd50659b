"""`efficient`, `linformer`, `nystrom`, `cosformer`: closed forms, and when they are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

from polyattn_core.errors import ConfigError, ShapeError
from polyattn_core.masks import Causal, Padding

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., tuple[Array, Array, Array]]


def test_efficient_is_its_formula(create: Create, arrays: Arrays) -> None:
    q, k, v = arrays(20, 30)
    mixes = scipy.special.softmax(0.7 * q, axis=-1)
    maps = scipy.special.softmax(0.7 * k, axis=-2)
    found = create("efficient", dim=8, heads=2, scale=0.7).attend(q, k, v)
    np.testing.assert_allclose(found, mixes @ (maps.swapaxes(-1, -2) @ v), rtol=1e-10)
    assert not np.allclose(found, create("efficient", dim=8, heads=2).attend(q, k, v))


def test_linformer_is_its_formula(create: Create, arrays: Arrays, dense: Any) -> None:
    q, k, v = arrays(20, 30)
    linformer = create("linformer", dim=8, heads=2, tokens=40, rank=6)
    e, f = (linformer.parameters[name][:, :30].astype(float) for name in ("keys", "values"))
    expected = dense(q, e @ k, f @ v)
    np.testing.assert_allclose(linformer.attend(q, k, v), expected, rtol=1e-6, atol=1e-6)
    other = create("linformer", dim=8, heads=2, tokens=40, rank=6, scale=2.0)
    np.testing.assert_allclose(other.attend(q, k, v), dense(q, e @ k, f @ v, scale=2.0), atol=1e-6)
    with pytest.raises(ShapeError, match="at most 40 keys"):
        linformer.attend(*arrays(20, 41))
    with pytest.raises(ConfigError, match="rank"):
        create("linformer", dim=8, tokens=5, rank=6)
    assert create("linformer", dim=8, tokens=5).parameters["keys"].shape == (5, 5)


@pytest.mark.parametrize("name", ["linformer", "nystrom"])
def test_exact_with_as_many_rows_as_tokens(
    create: Create, arrays: Arrays, dense: Any, name: str
) -> None:
    q, k, v = arrays(24, 24)
    if name == "linformer":
        mechanism = create(name, dim=8, heads=2, tokens=24, rank=24)
        mechanism.parameters.update({"keys": np.eye(24), "values": np.eye(24)})
    else:
        q, k = 3 * q, 3 * k  # a well conditioned matrix
        mechanism = create(name, dim=8, heads=2, landmarks=24, iterations=40)
    np.testing.assert_allclose(mechanism.attend(q, k, v), dense(q, k, v), rtol=1e-6, atol=1e-6)


def test_nystrom_against_the_pseudo_inverse(create: Create, arrays: Arrays) -> None:
    q, k, v = arrays(40, 32)
    own, theirs = q.reshape(2, 2, 8, 5, 4).mean(3), k.reshape(2, 2, 8, 4, 4).mean(3)

    def weights(a: Array, b: Array) -> Array:
        return scipy.special.softmax(a @ b.swapaxes(-1, -2) / 2, axis=-1)

    inverse = np.linalg.pinv(weights(own, theirs))
    expected = weights(q, theirs) @ (inverse @ (weights(own, k) @ v))
    exact = create("nystrom", dim=8, heads=2, landmarks=8, iterations=60).attend(q, k, v)
    np.testing.assert_allclose(exact, expected, rtol=1e-5, atol=1e-5)
    rough = create("nystrom", dim=8, heads=2, landmarks=8, iterations=1).attend(q, k, v)
    assert abs(rough - expected).max() > 10 * abs(exact - expected).max()


def test_more_landmarks_are_nearer(create: Create, dense: Any) -> None:
    """On tokens that change slowly, as landmarks assume."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((1, 1, 256, 8)) / 8, axis=2)
    v = np.cumsum(rng.standard_normal((1, 1, 256, 8)) / 8, axis=2)
    expected = dense(walk, walk, v)
    errors = [
        abs(
            create("nystrom", dim=8, landmarks=m, iterations=20).attend(walk, walk, v) - expected
        ).mean()
        for m in (4, 16, 64)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05


@pytest.mark.parametrize("name", ["efficient", "linformer", "nystrom", "clustered"])
def test_padding_is_a_shorter_sequence(create: Create, arrays: Arrays, name: str) -> None:
    q, k, v = arrays(10, 20)
    mechanism = create(name, dim=8, heads=2)
    out = mechanism.attend(q, k, v, mask=Padding([13, 0]))
    np.testing.assert_allclose(out[0], mechanism.attend(q[:1], k[:1, :, :13], v[:1, :, :13])[0])
    assert not out[1].any()


def test_cosformer_is_its_formula(create: Create, arrays: Arrays) -> None:
    q, k, v = arrays(20, 30)
    q, k = abs(q), abs(k)
    distance = np.arange(20)[:, None] + 10 - np.arange(30)
    for horizon, causal in ((None, False), (64, True)):
        weights = q @ k.swapaxes(-1, -2) * np.cos(np.pi * distance / (2 * (horizon or 30)))
        if causal:
            weights = np.where(distance >= 0, weights, 0)
        expected = weights @ v / weights.sum(axis=-1, keepdims=True)
        options = {"horizon": horizon, "causal": causal, "epsilon": 0.0}
        found = create("cosformer", dim=8, heads=2, **options).attend(q, k, v)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ConfigError, match="horizon"):
        create("cosformer", dim=8, heads=2, horizon=29).attend(q, k, v)
    plain = create("cosformer", dim=8, heads=2).attend(q, k, v)
    drawn = create("cosformer", dim=8, heads=2, epsilon=10.0).attend(q, k, v)
    assert abs(drawn).sum() < abs(plain).sum()
    prefix = create("cosformer", dim=8, heads=2).attend(q, k, v, mask=Causal() & Padding(25))
    assert prefix.shape == plain.shape
