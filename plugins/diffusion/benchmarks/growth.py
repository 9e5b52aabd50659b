"""Time relative to plain attention, and how it grows with the number of keys."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

import polyattn as pa
from polyattn_diffusion.laplacian import GraphLaplacian

TITLE = "diffusion over the graph of the keys, against plain attention"


def _medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def measure(
    sizes: tuple[int, ...] = (1024, 8192), heads: int = 8, rounds: int = 3
) -> list[dict[str, object]]:
    """At 1 × `heads` × tokens × 64 in float32; `again` is a call with the same keys."""
    rows: list[dict[str, object]] = []
    for tokens in sizes:
        calls = _calls(tokens, heads)
        seconds = _medians(calls, rounds)
        for name, found in seconds.items():
            rows.append(
                {
                    "tokens": tokens,
                    "what": name,
                    "milliseconds": 1e3 * found,
                    "× flash": found / seconds["flash"],
                }
            )
    return [*rows, *_growth(rounds)]


def _calls(tokens: int, heads: int) -> dict[str, Callable[[], object]]:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, heads, tokens, 64), np.float32)
    flash = pa.create("flash", dim=64 * heads, heads=heads)
    near = pa.create("diffusion", dim=64 * heads, heads=heads, use_knn=True)

    def anew() -> object:
        near.reset()
        return near.attend(q, k, v)

    calls = {
        "flash": lambda: flash.attend(q, k, v),
        "neighbours": anew,
        "again": lambda: near.attend(q, k, v),
    }
    if tokens <= 2048:
        whole = pa.create("diffusion", dim=64 * heads, heads=heads)
        calls["all pairs"] = lambda: whole.attend(q, k, v)
    return calls


def _growth(rounds: int) -> list[dict[str, object]]:
    """Of the products with a Laplacian of 16 neighbours: the search is done before."""
    rng = np.random.default_rng(0)
    sizes, seconds, edges = (4096, 16384), [], []
    for tokens in sizes:
        keys = rng.standard_normal((tokens, 64), np.float32)
        laplacian = GraphLaplacian.from_keys(keys, k=16)
        edges.append(laplacian.edges or 0)
        x = keys.copy()

        def products(laplacian: GraphLaplacian = laplacian, x: object = x) -> None:
            for _ in range(20):
                laplacian.apply(x)

        seconds.append(_medians({"": products}, rounds)[""])
    exponent = math.log(seconds[1] / seconds[0]) / math.log(edges[1] / edges[0])
    return [{"what": "growth of 20 products in the number of edges", "exponent": exponent}]


if __name__ == "__main__":
    for row in measure():
        print(row)
