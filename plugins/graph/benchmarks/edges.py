"""GAT forward and backward on a large graph, against PyTorch Geometric in the same process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import polyattn as pa

TITLE = "graph attention, forward and backward, against PyTorch Geometric"

NODES, EDGES, HEADS, SIZE = 100_000, 1_000_000, 8, 8


def _ours(name: str, x: Any, weight: Any, edges: Any) -> Callable[[], Any]:
    layer = pa.create(name, dim=HEADS * SIZE, heads=HEADS, self_loops=True)

    def run() -> Any:
        projected = x @ weight
        output, pullback = layer.vjp(projected, edges=edges)
        found = pullback(np.ones_like(output))
        return x.T @ found.query, found.query @ weight.T

    return run


def _theirs(kind: str, x: Any, edges: Any) -> Callable[[], Any] | None:
    try:
        import torch
        import torch_geometric.nn as nn
    except ImportError:
        return None
    layer = {
        "gat": lambda: nn.GATConv(x.shape[1], SIZE, HEADS, bias=False),
        "gatv2": lambda: nn.GATv2Conv(x.shape[1], SIZE, HEADS, bias=False, share_weights=True),
    }[kind]()
    index = torch.from_numpy(edges)
    inputs = torch.from_numpy(x).requires_grad_()

    def run() -> Any:
        layer.zero_grad()
        inputs.grad = None
        output = layer(inputs, index)
        output.backward(torch.ones_like(output))
        return inputs.grad

    return run


def measure(nodes: int = NODES, edges: int = EDGES, rounds: int = 3) -> list[dict[str, object]]:
    """A projection, the layer and all gradients: 8 heads of 8, random edges and self-loops."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((nodes, HEADS * SIZE), np.float32)
    weight = rng.standard_normal((HEADS * SIZE, HEADS * SIZE), np.float32) / 8
    index = rng.integers(0, nodes, (2, edges))
    rows: list[dict[str, object]] = []
    for name in ("gat", "gatv2"):
        calls = {"ours": _ours(name, x, weight, index), "PyG": _theirs(name, x, index)}
        seconds: dict[str, list[float]] = {label: [] for label in calls}
        for turn in range(rounds + 1):
            for label, call in calls.items():
                if call is None:
                    continue
                start = time.perf_counter()
                call()
                if turn:
                    seconds[label].append(time.perf_counter() - start)
        ours = statistics.median(seconds["ours"])
        row: dict[str, object] = {"mechanism": name, "milliseconds": 1e3 * ours}
        if seconds["PyG"]:
            row["PyG ÷ ours"] = statistics.median(seconds["PyG"]) / ours
        rows.append(row)
    return rows


if __name__ == "__main__":
    for found in measure():
        print(found)
