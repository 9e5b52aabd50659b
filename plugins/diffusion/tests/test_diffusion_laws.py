"""What diffusion conserves, whatever the keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyattn_core.masks import Padding

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]

cases = given(
    keys=st.integers(1, 50),
    size=st.integers(1, 6),
    t=st.floats(0, 30),
    kind=st.sampled_from(["unnormalized", "random-walk"]),
    k=st.none() | st.integers(1, 60),
    clusters=st.integers(1, 50),
    seed=st.integers(0, 1 << 30),
)


def inputs(keys: int, size: int, clusters: int, seed: int) -> tuple[Array, Array]:
    """Query and keys, of which some are equal where there are few clusters."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((3, size)), rng.standard_normal((clusters, size))[
        rng.integers(0, clusters, keys)
    ]


@settings(derandomize=True, deadline=None, max_examples=60)
@cases
def test_mass_is_kept_and_never_negative(
    create: Create, keys: int, size: int, t: float, kind: str, k: int | None, clusters: int,
    seed: int,
) -> None:  # fmt: skip
    query, key = inputs(keys, size, clusters, seed)
    graph = {} if k is None else {"use_knn": True, "k": k}
    diffusion = create("diffusion", dim=size, t=t, laplacian_type=kind, **graph)
    weights = diffusion(query, key, np.eye(keys))
    assert (weights >= -1e-10).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-10)
    ppr = create("ppr", dim=size, laplacian_type=kind, **graph)(query, key, np.eye(keys))
    assert (ppr >= -1e-10).all()
    np.testing.assert_allclose(ppr.sum(axis=-1), 1, rtol=1e-10)
    drifting = create("advection-diffusion", dim=size, t=min(t, 5.0), k=k or 3)
    weights = drifting(query, key, np.eye(keys))
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-10)


@settings(derandomize=True, deadline=None, max_examples=40)
@cases
def test_heat_keeps_its_mean_and_loses_energy(
    create: Create, keys: int, size: int, t: float, kind: str, k: int | None, clusters: int,
    seed: int,
) -> None:  # fmt: skip
    """Values under the unnormalised Laplacian: the sum stays, vᵀLv and the range shrink."""
    from polyattn_diffusion.laplacian import GraphLaplacian

    _, key = inputs(keys, size, clusters, seed)
    value = np.random.default_rng(seed + 1).standard_normal((keys, 2))
    graph = {} if k is None else {"use_knn": True, "k": k}
    diffusion = create("diffusion", dim=size, t=t, laplacian_type="unnormalized", **graph)
    # Queries of which each attends to one key see the diffused values themselves.
    bias = np.where(np.eye(keys) > 0, 0.0, -1e9)
    later = diffusion(np.zeros((keys, size)), key, value, bias=bias)
    np.testing.assert_allclose(later.sum(axis=0), value.sum(axis=0), atol=1e-9)
    laplacian = GraphLaplacian.from_keys(key, None, "unnormalized", k=k)

    def energy(x: Array) -> float:
        return float((x * laplacian.apply(x)).sum())

    assert energy(later) <= energy(value) + 1e-9
    assert later.max() <= value.max() + 1e-9
    assert later.min() >= value.min() - 1e-9


@settings(derandomize=True, deadline=None, max_examples=40)
@given(keys=st.integers(2, 40), t=st.floats(0.1, 20), seed=st.integers(0, 1 << 30))
def test_waves_keep_their_energy(create: Create, keys: int, t: float, seed: int) -> None:
    """‖u′‖² + u·L u is constant, with u′ by differences."""
    from polyattn_diffusion.laplacian import GraphLaplacian

    rng = np.random.default_rng(seed)
    key, value = rng.standard_normal((keys, 3)), rng.standard_normal((keys, 2))
    bias = np.where(np.eye(keys) > 0, 0.0, -1e9)

    def at(time: float) -> Array:
        wave = create("wave", dim=3, t=time)
        found: Array = wave(np.zeros((keys, 3)), key, value, bias=bias)
        return found

    slope = (at(t + 1e-4) - at(t - 1e-4)) / 2e-4
    laplacian = GraphLaplacian.from_keys(key)
    energy = (slope**2).sum() + (at(t) * laplacian.apply(at(t))).sum()
    assert energy == pytest.approx((value * laplacian.apply(value)).sum(), rel=1e-6)


def test_time_zero_is_plain_attention(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    outputs = [
        create(name, dim=8, heads=2, **options).attend(query, key, value)
        for name, options in (
            ("diffusion", {"t": 0.0}),
            ("wave", {"t": 0.0}),
            ("ppr", {"alpha": 1.0}),
            ("advection-diffusion", {"t": 0.0}),
            ("multiscale-diffusion", {"t": 0.0}),
        )
    ]
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=1e-10, atol=1e-12)


def test_long_time_forgets_the_query(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(4, 20)
    late = create("diffusion", dim=8, heads=2, t=1e4, laplacian_type="random-walk")
    output = late.attend(query, key, value)
    np.testing.assert_allclose(output, np.broadcast_to(output[:, :, :1], output.shape), atol=1e-8)


def test_hidden_keys_are_not_in_the_graph(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(4, 30)
    short_key, short_value = key[:, :, :20], value[:, :, :20]
    poisoned, spoiled = key.copy(), value.copy()
    poisoned[:, :, 20:], spoiled[:, :, 20:] = np.nan, np.inf
    for options in ({}, {"use_knn": True, "k": 4}):
        diffusion = create("diffusion", dim=8, heads=2, **options)
        found = diffusion.attend(query, poisoned, spoiled, mask=Padding(20))
        expected = diffusion.attend(query, short_key, short_value)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)
