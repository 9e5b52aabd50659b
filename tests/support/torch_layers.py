"""Layers with parameters that are not their first ones, and PyTorch's gradients to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

Array = npt.NDArray[Any]


def learned(layer: Any, seed: int = 3) -> Any:
    """The layer, with other parameters than its first ones."""
    rng = np.random.default_rng(seed)
    layer.parameters.update({n: rng.standard_normal(a.shape) for n, a in layer.parameters.items()})
    return layer


def softmax(scores: Array) -> Array:
    """Along the last axis."""
    return np.asarray(scipy.special.softmax(scores, axis=-1))


def torch_gradients(
    layer: Any, arrays: tuple[Array, ...], rule: Callable[..., Any], **options: Any
) -> None:
    """Output and all gradients against torch's autograd of a rule written in torch."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    inputs = [torch.tensor(array, requires_grad=True) for array in arrays]
    weights = {
        n: torch.tensor(np.array(a, np.float64), requires_grad=True)
        for n, a in layer.parameters.items()
    }
    expected = rule(torch, *inputs, weights)
    output, pullback = layer.attend_vjp(*arrays, **options)
    np.testing.assert_allclose(output, expected.detach().numpy(), rtol=1e-9, atol=1e-11)
    incoming = np.random.default_rng(1).standard_normal(output.shape)
    expected.backward(torch.from_numpy(incoming))
    found = pullback(incoming)
    for name, tensor in zip(("query", "key", "value"), inputs, strict=True):
        np.testing.assert_allclose(getattr(found, name), tensor.grad, rtol=1e-8, atol=1e-10)
    for name, tensor in weights.items():
        np.testing.assert_allclose(found.parameters[name], tensor.grad, rtol=1e-8, atol=1e-10)
