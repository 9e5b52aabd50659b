"""Gradients of `linear` and `favor`: finite differences, PyTorch, masks, what is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.masks import Causal, Mask, Padding, Prefix

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {"scale": 0.7}),
    "linear with epsilon": ("linear", {"epsilon": 2.0}),
    "relu": ("linear", {"features": "relu", "epsilon": 0.1}),
    "favor": ("favor", {"features": 20}),
    "hyperbolic": ("favor", {"features": 9, "kind": "hyperbolic", "scale": 0.3}),
}
each = pytest.mark.parametrize("kind", OPTIONS)
MASKS = [
    None,
    Causal(),
    Causal(offset=-3),
    Padding(np.array([40, 3])),
    Causal() & Padding(np.array([0, 60])),
    Causal(align="upper_left") | Prefix(9),
    # Here the keys that a query sees grow, stay as many for a while, and grow again.
    (Causal(align="upper_left") & Prefix(20)) | Causal(align="upper_left", offset=-90),
]


def finite_difference(
    call: Callable[..., Array], inputs: list[Array], place: int, incoming: Array, towards: Array
) -> float:
    """Slope of Σ incoming · output along `towards`, four points, error O(h⁴)."""
    h = 1e-4

    def at(t: float) -> float:
        moved = list(inputs)
        moved[place] = inputs[place] + t * towards
        return float((call(*moved) * incoming).sum())

    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


@each
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_finite_differences(create: Create, arrays: Arrays, kind: str, mask: Mask | None) -> None:
    name, options = OPTIONS[kind]
    for queries, keys, heads, key_heads, size in (
        (5, 7, 2, 1, 3),
        (150, 130, 2, 2, 5),
        (70, 140, 4, 2, 16),
        (67, 65, 4, 1, 2),
    ):
        inputs = list(arrays(queries, keys, heads=heads, key_heads=key_heads, size=size))
        # Away from 0, where relu has a kink and elu its slope: differences would be off there.
        inputs[:2] = [np.where(abs(x) < 0.01, 0.5, x) for x in inputs[:2]]
        mechanism = create(name, dim=heads * size, heads=heads, kv_heads=key_heads, **options)
        output, pull = mechanism.attend_vjp(*inputs, mask=mask)
        rng = np.random.default_rng(1)
        incoming = rng.standard_normal(output.shape)
        found = pull(incoming)
        for place, gradient in enumerate((found.query, found.key, found.value)):
            towards = rng.standard_normal(gradient.shape)
            slope = finite_difference(
                lambda *x, m=mechanism: m.attend(*x, mask=mask), inputs, place, incoming, towards
            )
            np.testing.assert_allclose((gradient * towards).sum(), slope, rtol=1e-7, atol=1e-8)


@each
def test_float32(create: Create, arrays: Arrays, kind: str) -> None:
    name, options = OPTIONS[kind]
    mechanism = create(name, dim=64, heads=4, kv_heads=2, causal=True, **options)
    inputs = arrays(300, 300, heads=4, key_heads=2, size=16)
    gradients = []
    for dtype in (np.float64, np.float32):
        output, pull = mechanism.attend_vjp(*(x.astype(dtype) for x in inputs))
        incoming = np.random.default_rng(0).standard_normal(output.shape).astype(dtype)
        gradients.append(pull(incoming))
        assert gradients[-1].query.dtype == dtype
    for field in ("query", "key", "value"):
        exact, found = (getattr(g, field) for g in gradients)
        np.testing.assert_allclose(found, exact, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ["linear", "favor"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_threads_share_a_head(create: Create, kind: str, is_causal: bool) -> None:
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, 1, 2500, 32))
    incoming = rng.standard_normal(value.shape)
    found = []
    for threads in (1, 2, 3):
        mechanism = create(kind, dim=32, causal=is_causal, threads=threads)
        output, pull = mechanism.attend_vjp(query, key, value)
        found.append((output, pull(incoming)))
    for output, gradients in found[1:]:
        np.testing.assert_allclose(output, found[0][0], rtol=1e-9, atol=1e-12)
        for field in ("query", "key", "value"):
            expected = getattr(found[0][1], field)
            np.testing.assert_allclose(getattr(gradients, field), expected, rtol=1e-8, atol=1e-12)


@each
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_later_tokens_do_not_reach_earlier_gradients(
    create: Create, arrays: Arrays, kind: str, poison: float
) -> None:
    name, options = OPTIONS[kind]
    mechanism = create(name, dim=16, heads=4, kv_heads=2, causal=True, **options)
    inputs = arrays(130, 130, heads=4, key_heads=2)
    output, pull = mechanism.attend_vjp(*inputs)
    incoming = np.random.default_rng(0).standard_normal(output.shape)
    incoming[:, :, 100:] = 0
    expected = pull(incoming)
    for array in inputs:
        array[:, :, 100:] = poison
    spoilt, pull = mechanism.attend_vjp(*inputs)
    np.testing.assert_allclose(spoilt[:, :, :100], output[:, :, :100], rtol=1e-9, atol=1e-12)
    found = pull(incoming)
    # Keys and values are seen by later queries, whose gradients are 0 · NaN; queries are not.
    np.testing.assert_allclose(
        found.query[:, :, :100], expected.query[:, :, :100], rtol=1e-8, atol=1e-10
    )


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["positive", "hyperbolic"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_favor_against_torch(create: Create, arrays: Arrays, kind: str, is_causal: bool) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    inputs = arrays(130, 200, heads=4, key_heads=2, size=16)
    favor = create("favor", dim=64, heads=4, kv_heads=2, kind=kind, features=40, causal=is_causal)
    omega = torch.tensor(favor.projection)
    if kind == "hyperbolic":
        omega = torch.cat((omega, -omega))
    q, k, v = (torch.from_numpy(array).requires_grad_() for array in inputs)

    def features(x: Any) -> Any:
        x = x / 2  # 16^¼
        return torch.exp(x @ omega.T - x.square().sum(-1, keepdim=True) / 2) / len(omega) ** 0.5

    scores = features(q) @ features(k).repeat_interleave(2, 1).transpose(-1, -2)
    if is_causal:
        scores = scores.tril(70)
    expected = scores / scores.sum(-1, keepdim=True) @ v.repeat_interleave(2, 1)
    incoming = torch.from_numpy(np.random.default_rng(5).standard_normal(expected.shape))
    expected.backward(incoming)
    output, pull = favor.attend_vjp(*inputs)
    np.testing.assert_allclose(output, expected.detach().numpy(), rtol=1e-9, atol=1e-12)
    found = pull(incoming.numpy())
    for gradient, tensor in ((found.query, q), (found.key, k), (found.value, v)):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-8, atol=1e-10)
