"""Sinkhorn attention, balanced and unbalanced: marginals, convergence, POT, torch, memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core import masks

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]


def squared_distances(query: Array, key: Array) -> Array:
    return np.asarray(((query[:, None] - key[None]) ** 2).sum(axis=-1))


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (5, 9), (9, 5), (1, 3), (3, 1)])
def test_marginals(create: Create, arrays: Arrays, queries: int, keys: int) -> None:
    attention = create("sinkhorn", dim=8, heads=2, iterations=500)
    weights = attention.observe(*arrays(queries, keys), "weights").weights
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=-2), queries / keys, atol=1e-9)


def test_distances_and_products_have_the_same_plan(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(6, 8)
    plan = create("sinkhorn", dim=8, heads=2, iterations=400).attend(query, key, value)
    options = {"query_penalty": 1e6, "key_penalty": 1e6, "iterations": 400}
    stiff = create("unbalanced-ot", dim=8, heads=2, **options).attend(query, key, value)
    np.testing.assert_allclose(plan, stiff, atol=1e-4)


def test_without_a_price_of_keys_it_is_the_softmax(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    free = create(
        "unbalanced-ot", dim=8, heads=2, query_penalty=1e6, key_penalty=1e-6
    ).attend(query, key, value)  # fmt: skip
    scores = -0.25 * ((query[..., :, None, :] - key[..., None, :, :]) ** 2).sum(axis=-1)
    weights = np.exp(scores)
    expected = weights / weights.sum(axis=-1, keepdims=True) @ value
    np.testing.assert_allclose(free, expected, atol=1e-4)


def test_tolerance_stops_each_head_by_itself(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(7, 7)
    query[:, 1] *= 4  # harder
    attention = create("sinkhorn", dim=8, heads=2, iterations=1000, tolerance=1e-6)
    found = attention.potentials(query, key)
    assert found.converged.all()
    assert (found.error <= 1e-6).all()
    assert (found.iterations[:, 0] < found.iterations[:, 1]).all()
    assert found.iterations.max() < 1000
    alone = create("sinkhorn", dim=4, iterations=1000, tolerance=1e-6)
    one = alone.attend(*(x[:1, :1] for x in (query, key, value)))
    np.testing.assert_allclose(attention.attend(query, key, value)[:1, :1], one, atol=1e-12)
    few = create("sinkhorn", dim=8, heads=2, iterations=2, tolerance=1e-6).potentials(query, key)
    assert not few.converged.any()


def test_potentials_make_the_plan(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    for name in ("sinkhorn", "unbalanced-ot"):
        attention = create(name, dim=8, heads=2, iterations=3, scale=0.7)
        found = attention.potentials(query, key)
        if name == "sinkhorn":
            scores = 0.7 * query @ key.swapaxes(-1, -2)
        else:
            gaps = query[..., :, None, :] - key[..., None, :, :]
            scores = -0.35 * (gaps**2).sum(axis=-1)
        plan = np.exp(scores + found.query[..., None] + found.key[..., None, :])
        weights = attention.observe(query, key, value, "weights").weights
        np.testing.assert_allclose(plan, weights, atol=1e-12)


def test_rows_without_mass_have_no_largest_weights(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(9, 11)
    query[:, :, 4] *= 1e3
    seen = create("unbalanced-ot", dim=8, heads=2).observe(
        query, key, value, "weights", "top_weights", top=2
    )
    assert (seen.weights[:, :, 4] == 0).all()
    assert (seen.top_weights[:, :, 4] == 0).all()
    assert (seen.top_keys[:, :, 4] == -1).all()
    assert (np.delete(seen.top_keys, 4, axis=2) >= 0).all()


def test_transposed_masks(create: Create, arrays: Arrays) -> None:
    """Every kind of mask in either orientation is what the same booleans are."""
    query, key, value = arrays(9, 11)
    attention = create("sinkhorn", dim=8, heads=2)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3, 9)
    for mask in (
        masks.Causal(), masks.Window(2, 3), masks.Padding([4, 9]), masks.Prefix([2, 5]),
        masks.Documents(ids, rng.integers(0, 3, 11)), masks.Dilated(7, 3), masks.Strided(4),
        masks.GlobalTokens(2), masks.Blocks(rng.random((3, 4)) < 0.5, 3),
        masks.Causal() & ~masks.Window(1, 1) | masks.Prefix(2),
    ):  # fmt: skip
        shape = masks.MaskShape((2,), 2, 9, 11)
        dense = attention.attend(query, key, value, mask=mask.dense(shape))
        np.testing.assert_allclose(
            attention.attend(query, key, value, mask=mask), dense, atol=1e-12
        )


def test_memory_is_linear(create: Create) -> None:
    tokens = 2048
    query, key, value = np.random.default_rng(0).standard_normal((3, 1, 1, tokens, 8), np.float32)
    attention = create("sinkhorn", dim=8, iterations=3)
    _, pullback = attention.attend_vjp(query, key, value)  # compiled
    pullback(value)
    tracemalloc.start()
    _, pullback = attention.attend_vjp(query, key, value)
    pullback(value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < tokens * tokens * 4 / 4


# ---- oracles ----


@pytest.mark.oracle
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (5, 9)])
def test_against_pot_sinkhorn(
    create: Create, arrays: Arrays, ot: Any, queries: int, keys: int
) -> None:
    query, key, value = arrays(queries, keys)
    attention = create("sinkhorn", dim=8, heads=2, iterations=2000, scale=0.8)
    weights = attention.observe(query, key, value, "weights").weights
    for b, h in np.ndindex(2, 2):
        cost = squared_distances(query[b, h], key[b, h]) / 2
        a, mass = np.full(queries, 1 / queries), np.full(keys, 1 / keys)
        plan = ot.sinkhorn(a, mass, cost, 1 / 0.8, method="sinkhorn_log", stopThr=1e-12)
        np.testing.assert_allclose(weights[b, h], queries * plan, atol=1e-8)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:If reg_type")
@pytest.mark.parametrize("penalty", [0.3, 2.0])
def test_against_pot_unbalanced(create: Create, arrays: Arrays, ot: Any, penalty: float) -> None:
    query, key, value = arrays(5, 7)
    scale = 0.8
    options = {"query_penalty": penalty, "key_penalty": 1.5 * penalty, "scale": scale}
    attention = create("unbalanced-ot", dim=8, heads=2, iterations=2000, **options)
    weights = attention.observe(query, key, value, "weights").weights
    for b, h in np.ndindex(2, 2):
        cost = squared_distances(query[b, h], key[b, h]) / 2
        # reg_type="entropy" is the plan without reference masses in its entropy.
        plan = ot.unbalanced.sinkhorn_unbalanced(
            np.ones(5), np.full(7, 5 / 7), cost, 1 / scale,
            (penalty / scale, 1.5 * penalty / scale), reg_type="entropy", stopThr=1e-13,
            numItermax=5000,
        )  # fmt: skip
        np.testing.assert_allclose(weights[b, h], plan, atol=1e-8)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["sinkhorn", "unbalanced-ot"])
def test_gradients_against_torch(create: Create, arrays: Arrays, name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
    query, key, value = arrays(6, 5)
    visible = np.random.default_rng(3).random((6, 5)) < 0.7
    visible[2] = False
    attention = create(name, dim=8, heads=2, iterations=4)
    output, pullback = attention.attend_vjp(query, key, value, mask=visible)
    incoming = np.random.default_rng(1).standard_normal(output.shape)
    found = pullback(incoming)

    q, k, v = (torch.from_numpy(x).requires_grad_() for x in (query, key, value))
    if name == "sinkhorn":
        scores, damping = 0.5 * q @ k.mT, 1.0
    else:
        scores = -0.25 * ((q[..., :, None, :] - k[..., None, :, :]) ** 2).sum(-1)
        damping = 0.5
    rows = torch.from_numpy(np.flatnonzero(visible.any(axis=1)))
    hidden = torch.from_numpy(~visible[visible.any(axis=1)])
    scores = scores[..., rows, :].masked_fill(hidden, -torch.inf)
    g = torch.zeros(*scores.shape[:-2], 1, 5, dtype=torch.float64)
    for _ in range(4):
        f = -damping * torch.logsumexp(scores + g, -1, keepdim=True)
        g = damping * (np.log(len(rows) / 5) - torch.logsumexp(scores + f, -2, keepdim=True))
    f = -damping * torch.logsumexp(scores + g, -1, keepdim=True)
    result = torch.exp(scores + f + g) @ v
    np.testing.assert_allclose(output[:, :, rows], result.detach().numpy(), atol=1e-12)
    result.backward(torch.from_numpy(incoming)[:, :, rows])
    for ours, theirs in ((found.query, q), (found.key, k), (found.value, v)):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), atol=1e-10)
