"""`lsh`, `routing`, `clustered`: the pairs they compute, and how much attention these hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.errors import ArgumentError, ConfigError, ShapeError
from polyattn_core.masks import Causal, Padding

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., tuple[Array, Array, Array]]


def unit(x: Array) -> Array:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def groups(tokens: int = 256, seed: int = 0, spread: float = 0.3) -> tuple[Array, Array, Array]:
    """Queries and keys around 16 directions, in one head."""
    rng = np.random.default_rng(seed)
    centres = 6 * unit(rng.standard_normal((16, 16)))
    q, k = (
        centres[rng.integers(0, 16, tokens)] + spread * rng.standard_normal((tokens, 16))
        for _ in range(2)
    )
    return q[None, None], k[None, None], rng.standard_normal((1, 1, tokens, 8))


def exact_weights(q: Array, k: Array) -> Array:
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def pairs(mechanism: Any, q: Array, k: Array, **options: Any) -> Array:
    """Which keys reach which queries."""
    values = np.broadcast_to(np.eye(k.shape[2]), (*k.shape[:3], k.shape[2]))
    return np.asarray(mechanism.attend(q, k, values, **options) > 0)


LIMITS: list[tuple[str, dict[str, int]]] = [
    ("lsh", {"buckets": 1}),
    ("routing", {"clusters": 1}),
    ("clustered", {"clusters": 1, "top": 1000}),
    ("clustered", {"clusters": 1000, "top": 0}),
    ("clustered", {"clusters": 1000, "top": 3}),
]
MASKS = [None, Causal(), Padding([5, 30])]


@pytest.mark.parametrize(
    ("name", "options", "mask"),
    [
        (name, options, mask)
        for name, options in LIMITS
        for mask in MASKS
        # Clusters of queries share weights, whatever their positions.
        if name != "clustered" or not isinstance(mask, Causal)
    ],
)
def test_exact_at_the_limits(
    create: Create, arrays: Arrays, dense: Any, name: str, options: Any, mask: Any
) -> None:
    q, k, v = arrays(40, 40)
    visible: Any = True
    if isinstance(mask, Causal):
        visible = np.tri(40, dtype=bool)
    elif mask is not None:
        visible = (np.arange(40) < np.array([5, 30])[:, None])[:, None, None]
    mechanism = create(name, dim=8, heads=2, **options)
    out, pullback = mechanism.attend_vjp(q, k, v, mask=mask)
    np.testing.assert_allclose(out, dense(q, k, v, visible), rtol=1e-9, atol=1e-9)
    flash_out, flash_pullback = create("flash", dim=8, heads=2).attend_vjp(q, k, v, mask=mask)
    ours, theirs = pullback(flash_out), flash_pullback(flash_out)
    for each in ("query", "key", "value"):
        np.testing.assert_allclose(getattr(ours, each), getattr(theirs, each), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
def test_lsh_computes_each_pair_that_meets_once(
    create: Create, dense: Any, rounds: int, causal: bool
) -> None:
    q, k, v = groups(150)
    lsh = create("lsh", dim=16, buckets=8, rounds=rounds, seed=5, causal=causal)
    # Angular hashing by hand: the nearest of ± directions, round after round from one generator.
    rng = np.random.default_rng(5)
    meets = np.zeros((150, 150), bool)
    for _ in range(rounds):
        directions = rng.standard_normal((16, 4)).T
        directions = np.concatenate((directions, -directions))
        own, theirs = ([int(np.argmax(directions @ row)) for row in x[0, 0]] for x in (q, k))
        meets |= np.equal.outer(own, theirs)
    if causal:
        meets &= np.tri(150, dtype=bool)
    assert (pairs(lsh, q, k)[0, 0] == meets).all()
    np.testing.assert_allclose(lsh.attend(q, k, v), dense(q, k, v, meets), rtol=1e-9, atol=1e-9)


def test_more_rounds_and_fewer_buckets_recall_more(create: Create) -> None:
    q, k, _ = groups()
    weights = exact_weights(q, k)

    def recall(name: str, **options: Any) -> float:
        mechanism = create(name, dim=16, **options)
        found = (weights * pairs(mechanism, q, k)).sum(axis=-1)
        np.testing.assert_allclose(mechanism.recall(q, k), found, rtol=1e-9, atol=1e-12)
        return float(found.mean())

    by_rounds = [recall("lsh", buckets=16, rounds=r) for r in (1, 2, 8)]
    assert by_rounds[0] < by_rounds[1] < by_rounds[2]
    assert by_rounds[2] > 0.9
    assert recall("lsh", buckets=4, rounds=1) > recall("lsh", buckets=32, rounds=1)
    assert recall("lsh", buckets=16, rounds=1, seed=1) != by_rounds[0]


def test_learned_centroids_recall_more(create: Create) -> None:
    """Two groups of directions, of which centroids that are turned by 35° cut one in two."""
    rng = np.random.default_rng(0)
    angles = np.pi / 2 * rng.integers(0, 2, (2, 200)) + 0.2 * rng.standard_normal((2, 200))
    q, k = 6 * np.stack((np.cos(angles), np.sin(angles)), axis=-1)[:, None, None]
    weights = exact_weights(q, k)
    routing = create("routing", dim=2, clusters=2)
    turned = np.deg2rad([35, 125])
    start = np.stack((np.cos(turned), np.sin(turned)), axis=-1)[None]

    def recall(centroids: Array) -> float:
        return float((weights * pairs(routing, q, k, centroids=centroids)).sum() / 200)

    centroids = start
    for _ in range(10):
        centroids = routing.learn(q, k, centroids)
    assert recall(start) < 0.9
    assert recall(centroids) > 0.99
    assert pairs(routing, q, k, centroids=centroids).mean() < 0.6
    # At rest, a centroid is the mean direction of its tokens.
    both = np.concatenate((q, k), axis=2)[0, 0]
    chosen = np.argmax(both @ centroids[0].T, axis=1)
    means = unit(np.stack([both[chosen == c].mean(axis=0) for c in (0, 1)]))
    np.testing.assert_allclose(centroids[0], means, rtol=1e-9, atol=1e-9)
    slowly = routing.learn(q, k, start, rate=0.1)
    assert 0 < abs(slowly - start).max() < abs(routing.learn(q, k, start) - start).max()


def test_routing_uses_the_nearest_centroid(create: Create, dense: Any) -> None:
    q, k, v = groups(100)
    centroids = unit(np.random.default_rng(9).standard_normal((1, 5, 16)))
    own, theirs = (np.argmax(x[0, 0] @ centroids[0].T, axis=1) for x in (q, k))
    routing = create("routing", dim=16, clusters=5)
    expected = dense(q, k, v, np.equal.outer(own, theirs))
    found = routing.attend(q, k, v, centroids=centroids)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    other = create("routing", dim=16, clusters=5, seed=3)
    assert not np.allclose(routing.attend(q, k, v), other.attend(q, k, v))
    with pytest.raises(ShapeError, match="centroids"):
        routing.attend(q, k, v, centroids=centroids[0])
    with pytest.raises(ArgumentError, match="rate"):
        routing.learn(q, k, rate=0)
    with pytest.raises(ShapeError, match="query"):
        routing.learn(q[..., :3], k)


def test_clusters_approach_exact_attention(create: Create, dense: Any) -> None:
    q, k, v = groups(spread=0.6)
    expected = dense(q, k, v)

    def error(**options: Any) -> float:
        return float(abs(create("clustered", dim=16, **options).attend(q, k, v) - expected).mean())

    assert error(clusters=4, top=0) > error(clusters=16, top=0) > error(clusters=64, top=0)
    assert error(clusters=16, top=0) > error(clusters=16, top=16) > error(clusters=16, top=64)
    # Equally spaced queries are not yet clusters.
    assert error(clusters=16, top=0, iterations=0) > error(clusters=16, top=0, iterations=10)
    sharper = create("clustered", dim=16, scale=2.0).attend(q, k, v)
    assert not np.allclose(sharper, create("clustered", dim=16).attend(q, k, v))


def test_decoding_sees_what_the_whole_sequence_saw(create: Create) -> None:
    q, k, v = groups(150)
    for name in ("lsh", "routing"):
        options = {"buckets": 4} if name == "lsh" else {"clusters": 4}
        mechanism = create(name, dim=16, causal=True, **options)
        whole = mechanism.attend(q, k, v)
        np.testing.assert_allclose(mechanism.attend(q[:, :, -3:], k, v), whole[:, :, -3:])


def test_errors(create: Create) -> None:
    with pytest.raises(ConfigError, match="even"):
        create("lsh", dim=16, buckets=3)


def test_recall_under_a_mask(create: Create) -> None:
    q, k, _ = groups(40)
    one = create("lsh", dim=16, buckets=1, causal=True)
    np.testing.assert_allclose(one.recall(q, k, mask=Padding(30)), 1)
    np.testing.assert_allclose(one.recall(q, k, mask=Padding(0)), 1)
    assert create("lsh", dim=16, buckets=8, rounds=1, causal=True).recall(q, k).min() < 1
