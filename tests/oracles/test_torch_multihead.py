"""`multi-head` against torch.nn.MultiheadAttention, with its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn_core import masks
from polyattn_registry import create

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")

TOLERANCE = {"float64": 1e-10, "float32": 3e-5}
BATCH, QUERIES, KEYS = 3, 9, 11


def pair(dim: int, heads: int, bias: bool, dtype: str = "float64") -> tuple[Any, Any]:
    """A torch module and our mechanism with the same weights."""
    torch.manual_seed(dim + heads)
    module = torch.nn.MultiheadAttention(
        dim, heads, bias=bias, batch_first=True, dtype=getattr(torch, dtype)
    )
    if bias:
        # torch starts them at 0, which would hide that they are forgotten.
        for name in ("in_proj_bias", "out_proj.bias"):
            torch.nn.init.normal_(module.get_parameter(name))
    ours = create("multi-head", dim=dim, heads=heads, bias=bias)
    ours.load_torch(module.state_dict())
    return module, ours


def inputs(dim: int, dtype: str = "float64") -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    shapes = ((BATCH, QUERIES, dim), (BATCH, KEYS, dim), (BATCH, KEYS, dim))
    query, key, value = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return query, key, value


def visibility(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same mask for torch, where True hides, and for us."""
    rng = np.random.default_rng(1)
    if kind == "mask":
        seen = rng.random((QUERIES, KEYS)) < 0.7
        seen[:, 0] = True
        return {"attn_mask": torch.from_numpy(~seen)}, {"mask": seen}
    if kind == "padding":
        lengths = np.array([KEYS, 4, 1])
        seen = np.arange(KEYS) < lengths[:, None]
        return {"key_padding_mask": torch.from_numpy(~seen)}, {"mask": masks.Padding(lengths)}
    if kind == "causal":
        hidden = np.triu(np.ones((QUERIES, KEYS), bool), 1)
        return {"attn_mask": torch.from_numpy(hidden)}, {"mask": masks.Causal(align="upper_left")}
    if kind == "bias":
        bias = rng.standard_normal((QUERIES, KEYS))
        return {"attn_mask": torch.from_numpy(bias)}, {"bias": bias}
    return {}, {}


@pytest.mark.parametrize("kind", ["none", "mask", "padding", "causal", "bias"])
@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize(("dim", "heads"), [(12, 3), (8, 1), (66, 6), (5, 5)])
def test_output_and_weights(
    dim: int, heads: int, bias: bool, kind: str, close: Callable[..., None]
) -> None:
    module, ours = pair(dim, heads, bias)
    arrays = inputs(dim)
    theirs, options = visibility(kind)
    expected, weights = module(
        *map(torch.from_numpy, arrays), need_weights=True, average_attn_weights=False, **theirs
    )
    close(ours(*arrays, **options), expected, TOLERANCE["float64"], "output")
    split = [array.reshape(*array.shape[:2], heads, -1).swapaxes(1, 2) for array in arrays]
    seen = ours.observe(*split, "weights", **options)
    close(seen.weights, weights, TOLERANCE["float64"], "weights")


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", ["none", "mask", "padding"])
@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
def test_gradients(
    dtype: str, kind: str, bias: bool, tensor: Callable[..., Any], close: Callable[..., None]
) -> None:
    dim, heads = 12, 3
    module, ours = pair(dim, heads, bias, dtype)
    arrays = inputs(dim, dtype)
    theirs, options = visibility(kind)
    tensors = [tensor(array, gradient=True) for array in arrays]
    incoming = np.random.default_rng(2).standard_normal(arrays[0].shape).astype(dtype)
    expected, _ = module(*tensors, **theirs)
    expected.backward(tensor(incoming))

    output, pullback = ours.vjp(*arrays, **options)
    found = pullback(incoming)
    tolerance = 10 * TOLERANCE[dtype]
    close(output, expected, tolerance, "output")
    for name, theirs_ in zip(("query", "key", "value"), tensors, strict=True):
        close(getattr(found, name), theirs_.grad, tolerance, f"gradient by {name}")
    for kind_ in ("weight", "bias") if bias else ("weight",):
        merged = [found.parameters[f"{name}.{kind_}"] for name in ("query", "key", "value")]
        by_input = module.get_parameter(f"in_proj_{kind_}").grad
        close(np.concatenate(merged), by_input, tolerance, f"gradient by in_proj_{kind_}")
        by_output = module.get_parameter(f"out_proj.{kind_}").grad
        ours_ = found.parameters[f"output.{kind_}"]
        close(ours_, by_output, tolerance, f"gradient by out_proj.{kind_}")


def test_self_attention_sums_gradients(
    tensor: Callable[..., Any], close: Callable[..., None]
) -> None:
    module, ours = pair(12, 3, True)
    array = inputs(12)[0]
    theirs = tensor(array, gradient=True)
    module(theirs, theirs, theirs)[0].sum().backward()
    output, pullback = ours.vjp(array)
    found = pullback(np.ones_like(output))
    close(found.query, theirs.grad, 1e-9, "gradient by the one input")
