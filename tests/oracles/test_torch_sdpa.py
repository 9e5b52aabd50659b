"""`flash` and `scaled-dot-product` against torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from polyattn_core import masks
from polyattn_core.arrays import named_dtype
from polyattn_registry import create

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")

TOLERANCE = {"float64": 1e-10, "float32": 3e-5, "float16": 4e-3, "bfloat16": 3e-2}
"""Both compute in their own way: of half precision, each may be off by as much as its inputs."""


@dataclass(frozen=True)
class Sizes:
    lead: tuple[int, ...]
    heads: int
    key_heads: int
    queries: int
    keys: int
    size: int
    value_size: int

    def __str__(self) -> str:
        lead = "x".join(map(str, self.lead)) or "none"
        heads = f"{self.heads}on{self.key_heads}"
        return f"{lead}-{heads}-{self.queries}x{self.keys}-{self.size}-{self.value_size}"


SIZES = [
    Sizes((1,), 1, 1, 1, 1, 1, 1),
    Sizes((2,), 2, 2, 1, 130, 8, 8),
    Sizes((2,), 2, 2, 63, 65, 3, 5),
    Sizes((1,), 3, 3, 65, 64, 65, 17),
    Sizes((2,), 4, 2, 33, 66, 16, 16),
    Sizes((1,), 6, 1, 64, 64, 8, 9),
    Sizes((2, 3), 2, 2, 7, 9, 4, 3),
    Sizes((1,), 2, 2, 130, 2, 32, 33),
    Sizes((1,), 1, 1, 200, 257, 64, 64),
]
MASKS = ["none", "causal", "rows and columns", "one for each head", "bias", "empty rows"]


def visibility(kind: str, sizes: Sizes, rng: np.random.Generator) -> dict[str, Any]:
    """The mask and bias of a call to polyattn; what torch gets is made from them."""
    shape = (*sizes.lead, sizes.heads, sizes.queries, sizes.keys)
    if kind == "causal":
        # torch's is_causal puts the first query at the first key.
        return {"mask": masks.Causal(align="upper_left")}
    if kind == "rows and columns":
        seen = rng.random(shape[-2:]) < 0.7
        seen[:, 0] = True
        return {"mask": seen}
    if kind == "one for each head":
        seen = rng.random(shape) < 0.7
        seen[..., 0] = True
        return {"mask": seen}
    if kind == "empty rows":
        seen = rng.random(shape[-2:]) < 0.7
        seen[::2] = False
        return {"mask": seen}
    if kind == "bias":
        return {"bias": rng.standard_normal(shape[-3:])}
    return {}


def case(sizes: Sizes, kind: str, dtype: str) -> tuple[Any, dict[str, Any], Any]:
    # Not hash(), which differs from process to process.
    rng = np.random.default_rng(zlib.crc32(f"{sizes} {kind}".encode()))
    as_dtype = named_dtype(dtype)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(as_dtype)

    arrays = (
        normal(*sizes.lead, sizes.heads, sizes.queries, sizes.size),
        normal(*sizes.lead, sizes.key_heads, sizes.keys, sizes.size),
        normal(*sizes.lead, sizes.key_heads, sizes.keys, sizes.value_size),
    )
    options = visibility(kind, sizes, rng)
    if "bias" in options:
        options["bias"] = options["bias"].astype(as_dtype)
    incoming = normal(*sizes.lead, sizes.heads, sizes.queries, sizes.value_size)
    return arrays, options, incoming


def mechanism(name: str, sizes: Sizes) -> Any:
    return create(name, dim=sizes.heads * sizes.size, heads=sizes.heads, kv_heads=sizes.key_heads)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", ["flash", "scaled-dot-product"])
def test_agrees_with_torch(
    name: str,
    sizes: Sizes,
    kind: str,
    dtype: str,
    tensor: Callable[..., Any],
    close: Callable[..., None],
) -> None:
    arrays, options, incoming = case(sizes, kind, dtype)
    query, key, value = (tensor(array, gradient=True) for array in arrays)
    theirs: dict[str, Any] = {}
    if isinstance(options.get("mask"), masks.Causal):
        theirs["is_causal"] = True
    elif "mask" in options:
        theirs["attn_mask"] = tensor(options["mask"])
    elif "bias" in options:
        theirs["attn_mask"] = tensor(options["bias"], gradient=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(query, key, value, enable_gqa=sizes.heads != sizes.key_heads, **theirs)
    expected.backward(tensor(incoming))

    output, pullback = mechanism(name, sizes).attend_vjp(*arrays, **options)
    found = pullback(incoming)

    tolerance = TOLERANCE[dtype]
    assert output.dtype == arrays[0].dtype
    close(output, expected, tolerance, "output")
    for what, tensor_, gradient in (
        ("query", query, found.query),
        ("key", key, found.key),
        ("value", value, found.value),
    ):
        # Sums of up to 200 terms, each rounded: in half precision torch's own are off by more.
        close(gradient, tensor_.grad, 4 * tolerance, f"gradient by {what}")
    if "bias" in options:
        close(found.bias, theirs["attn_mask"].grad, 4 * tolerance, "gradient by bias")
