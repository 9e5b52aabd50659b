"""Energies, thresholds and exits against closed forms, and gradients against torch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.spatial.distance
import scipy.special

from polyattn_core.errors import ConfigError, ShapeError
from polyattn_core.masks import Causal, Padding

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def energies(layer: Any, query: Array, key: Array) -> Array:
    """By SciPy, for heads of their own."""
    maps = {name: np.asarray(array, np.float64) for name, array in layer.parameters.items()}
    batch, heads = query.shape[:2]
    found = np.empty((batch, heads, query.shape[2], key.shape[2]))
    for b in range(batch):
        for h in range(heads):
            left, right = query[b, h] @ maps["query_map"][h].T, key[b, h] @ maps["key_map"][h].T
            found[b, h] = scipy.spatial.distance.cdist(left, right, "sqeuclidean")
    return found


def moved(layer: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    layer.parameters.update({n: rng.standard_normal(a.shape) for n, a in layer.parameters.items()})
    return layer


@pytest.mark.parametrize("shape", [(1, 1), (63, 65), (65, 1), (5, 130)])
@pytest.mark.parametrize("stalk", [None, 1, 6])
def test_sheaf(create: Create, arrays: Arrays, shape: tuple[int, int], stalk: int | None) -> None:
    query, key, value = arrays(*shape)
    layer = moved(create("sheaf", dim=8, heads=2, stalk=stalk, beta=0.3))
    weights = scipy.special.softmax(-0.3 * energies(layer, query, key), axis=-1)
    found = layer.observe(query, key, value, "weights")
    np.testing.assert_allclose(found.weights, weights, **CLOSE)
    np.testing.assert_allclose(found.output, weights @ value, **CLOSE)


def test_default_temperature(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    for stalk, beta in ((None, 0.5), (16, 0.25)):
        plain = moved(create("sheaf", dim=8, heads=2, stalk=stalk))
        given = moved(create("sheaf", dim=8, heads=2, stalk=stalk, beta=beta))
        np.testing.assert_array_equal(
            plain.attend(query, key, value), given.attend(query, key, value)
        )


@pytest.mark.parametrize("threshold", [0.0, 4.0, 30.0, 1e6])
def test_residual_sparse(create: Create, arrays: Arrays, threshold: float) -> None:
    query, key, value = arrays(40, 70)
    layer = moved(create("residual-sparse", dim=8, heads=2, threshold=threshold, beta=0.2))
    energy = energies(layer, query, key)
    apart = energy > threshold
    some = apart.any(axis=-1, keepdims=True)
    scores = np.where(apart | ~some, -0.2 * energy, -np.inf)
    weights = np.where(some, scipy.special.softmax(scores, axis=-1), 0)
    found = layer.observe(query, key, value, "weights")
    np.testing.assert_allclose(found.weights, weights, **CLOSE)
    assert ((found.weights == 0) == ~(apart & some)).all()
    if threshold == 1e6:
        assert not found.output.any()


def test_equal_tokens_exchange_nothing(create: Create) -> None:
    layer = create("residual-sparse", dim=4, threshold=1e-9)
    same = np.stack([np.eye(4), np.eye(4)])
    layer.parameters.update({"query_map": same[:1], "key_map": same[:1]})
    x = np.random.default_rng(0).standard_normal((6, 4))
    weights = layer(x, x, np.eye(6))
    np.testing.assert_array_equal(np.diag(weights), 0)
    np.testing.assert_allclose(weights.sum(axis=1), 1)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["sheaf", "residual-sparse", "early-exit"])
def test_gradients_against_torch(create: Create, arrays: Arrays, name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
    query, key, value = arrays(9, 12)
    value = value[..., :4]
    options: dict[str, Any] = {"sheaf": {}, "residual-sparse": {"threshold": 4.0}}.get(
        name, {"max_steps": 3, "tolerance": 0.0, "step": 0.4}
    )
    layer = moved(create(name, dim=8, heads=2, stalk=3, beta=0.3, **options))
    q, k, v = (torch.from_numpy(x.copy()).requires_grad_() for x in (query, key, value))
    maps = {
        n: torch.from_numpy(np.asarray(a, np.float64)).requires_grad_()
        for n, a in layer.parameters.items()
    }

    def attended(x: Any) -> Any:
        left = torch.einsum("bhnd,hsd->bhns", x, maps["query_map"])
        right = torch.einsum("bhnd,hsd->bhns", k, maps["key_map"])
        energy = ((left[..., :, None, :] - right[..., None, :, :]) ** 2).sum(-1)
        scores = -0.3 * energy
        if name == "residual-sparse":
            scores = scores.masked_fill(energy <= 4.0, -torch.inf)
        return torch.softmax(scores, dim=-1) @ v

    if name == "early-exit":
        expected = q
        for _ in range(3):
            expected = 0.6 * expected + 0.4 * attended(expected)
    else:
        expected = attended(q)
    assert torch.isfinite(expected).all()
    incoming = np.random.default_rng(4).standard_normal((*value.shape[:2], 9, 4))
    expected.backward(torch.from_numpy(incoming))
    output, pullback = layer.attend_vjp(query, key, value)
    np.testing.assert_allclose(output, expected.detach().numpy(), **CLOSE)
    found = pullback(incoming)
    pairs = [(found.query, q), (found.key, k), (found.value, v)]
    pairs += [(found.parameters[n], maps[n]) for n in maps]
    for gradient, tensor in pairs:
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-7, atol=1e-9)


def test_masks(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(12, 12)
    layer = moved(create("sheaf", dim=8, heads=2, causal=True))
    weights = layer.observe(query, key, value, "weights").weights
    assert not np.triu(weights, 1).any()
    loose = moved(create("sheaf", dim=8, heads=2))
    np.testing.assert_array_equal(
        loose.attend(query, key, value, mask=Causal()), layer.attend(query, key, value)
    )


# ---- early exit ----


def test_exits_when_settled(create: Create, arrays: Arrays) -> None:
    """Each query by itself: what it does does not depend on when others exit."""
    query, key, value = arrays(20, 15)
    value = value[..., :4]
    layer = moved(create("early-exit", dim=8, heads=2, tolerance=0.02, max_steps=40))
    steps = layer.steps(query, key, value)
    assert steps.shape == (2, 2, 20)
    assert 1 < steps.min() < steps.max() <= 40
    whole = layer.attend(query, key, value)
    for i in (0, 7):
        alone = layer.attend(query[:, :, i : i + 1], key, value)
        np.testing.assert_allclose(alone[:, :, 0], whole[:, :, i], **CLOSE)
    # A query that exits after s steps is where s steps without exits lead to.
    b, h, i = np.argwhere(steps == steps.min())[0]
    count = int(steps.min())
    plain = moved(create("early-exit", dim=8, heads=2, tolerance=0.0, max_steps=count))
    np.testing.assert_allclose(plain.attend(query, key, value)[b, h, i], whole[b, h, i], **CLOSE)
    assert (plain.steps(query, key, value) == count).all()
    # And one step less moved it by more than the tolerance, the last by less.
    states = [
        moved(create("early-exit", dim=8, heads=2, tolerance=0.0, max_steps=n)).attend(
            query, key, value
        )[b, h, i]
        for n in (count - 2, count - 1, count)
        if n > 0
    ]
    sizes = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in pairwise(states)]
    assert sizes[-1] <= 0.02
    assert len(sizes) < 2 or sizes[0] > 0.02


def test_a_full_step_is_sheaf_attention(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    value = value[..., :4]
    once = moved(create("early-exit", dim=8, heads=2, step=1.0, max_steps=1))
    sheaf = moved(create("sheaf", dim=8, heads=2))
    np.testing.assert_allclose(
        once.attend(query, key, value), sheaf.attend(query, key, value), **CLOSE
    )


def test_fixed_point(create: Create) -> None:
    """Far apart patterns are fixed: a query at one exits at once."""
    patterns = 10 * np.eye(4)
    layer = create("early-exit", dim=4, beta=1.0)
    layer.parameters.update({"query_map": np.eye(4)[None], "key_map": np.eye(4)[None]})
    heads = patterns[None]
    np.testing.assert_array_equal(layer.steps(heads, heads, heads), np.ones((1, 4)))
    np.testing.assert_allclose(layer(patterns), patterns, atol=1e-6)


def test_hidden_keys(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays(5, 9)
    value = value[..., :4].copy()
    layer = moved(create("early-exit", dim=8, heads=2))
    expected = layer.attend(query, key[:, :, :6], value[:, :, :6])
    value[:, :, 6:] = np.nan
    np.testing.assert_allclose(layer.attend(query, key, value, mask=Padding(6)), expected, **CLOSE)


def test_refusals(create: Create, arrays: Arrays) -> None:
    with pytest.raises(ShapeError, match="value: got head size 5; expected 4 like query"):
        create("early-exit", dim=8, heads=2).attend(*arrays())
    for options in ({"step": 0.0}, {"tolerance": -1.0}, {"max_steps": 0}, {"causal": True}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            create("early-exit", dim=8, **options)
    with pytest.raises(ConfigError, match="threshold"):
        create("residual-sparse", dim=8, threshold=-1.0)
    with pytest.raises(ConfigError, match="stalk"):
        create("sheaf", dim=8, stalk=0)
