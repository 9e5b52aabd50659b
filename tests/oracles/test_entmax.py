"""`sparsemax` and `entmax15` against the package entmax, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn_core import masks
from polyattn_registry import create

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
entmax = pytest.importorskip("entmax", reason="entmax is not installed: make oracles")

FUNCTIONS = {"sparsemax": entmax.sparsemax, "entmax15": entmax.entmax15}
SIZES = [(1, 1, 1), (5, 7, 4), (64, 65, 8), (65, 130, 3), (2, 700, 16)]
HIDDEN = -1e3
"""Stands for −∞, which the package turns into NaN."""


def visible(kind: str, queries: int, keys: int) -> Any:
    rng = np.random.default_rng(3)
    if kind == "none":
        return np.ones((queries, keys), bool)
    if kind == "causal":
        return np.tril(np.ones((queries, keys), bool), keys - queries)
    seen = rng.random((queries, keys)) < 0.5
    seen[::3] = False
    return seen


@pytest.mark.parametrize("scale", [None, 4.0, 0.05], ids=["plain", "sharp", "flat"])
@pytest.mark.parametrize("kind", ["none", "causal", "empty rows"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_agrees_with_entmax(
    name: str,
    sizes: tuple[int, int, int],
    kind: str,
    scale: float | None,
    tensor: Callable[..., Any],
    close: Callable[..., None],
) -> None:
    queries, keys, size = sizes
    rng = np.random.default_rng(queries + keys)
    shapes = ((2, 2, queries, size), (2, 2, keys, size), (2, 2, keys, size + 1))
    arrays = [rng.standard_normal(shape) for shape in shapes]
    incoming = rng.standard_normal((2, 2, queries, size + 1))
    seen = visible(kind, queries, keys)

    query, key, value = (tensor(array, gradient=True) for array in arrays)
    scores = (scale or size**-0.5) * query @ key.transpose(-1, -2)
    scores = torch.where(torch.from_numpy(seen), scores, HIDDEN)
    weights = FUNCTIONS[name](scores, dim=-1)
    # The package shares weight out among the hidden keys of a row that sees nothing. Here it is 0.
    weights = torch.where(torch.from_numpy(seen.any(-1, keepdims=True)), weights, 0.0)
    expected = weights @ value
    expected.backward(tensor(incoming))

    mask = masks.Causal() if kind == "causal" else masks.Dense(seen)
    mechanism = create(name, dim=2 * size, heads=2, scale=scale)
    output, pullback = mechanism.attend_vjp(*arrays, mask=mask)
    found = pullback(incoming)
    close(output, expected, 1e-9, "output")
    close(mechanism.observe(*arrays, "weights", mask=mask).weights, weights, 1e-9, "weights")
    close(found.query, query.grad, 1e-8, "gradient by query")
    close(found.key, key.grad, 1e-8, "gradient by key")
    close(found.value, value.grad, 1e-8, "gradient by value")
