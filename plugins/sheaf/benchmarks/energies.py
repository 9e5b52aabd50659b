"""The sheaf mechanisms against plain attention, in the same process."""

from __future__ import annotations

import statistics
import time

import numpy as np

import polyattn as pa

TITLE = "sheaf energies, against plain attention"


def measure(tokens: int = 1024, heads: int = 8, rounds: int = 5) -> list[dict[str, object]]:
    """At 1 × `heads` × `tokens` × 64 in float32, forward."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, heads, tokens, 64), np.float32)
    options = {"flash": {}, "sheaf": {}, "residual-sparse": {}, "early-exit": {"max_steps": 4}}
    layers = {n: pa.create(n, dim=64 * heads, heads=heads, **o) for n, o in options.items()}
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(rounds + 1):
        for name, layer in layers.items():
            start = time.perf_counter()
            layer.attend(q, k, v)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return [
        {"mechanism": name, "milliseconds": 1e3 * found, "× flash": found / medians["flash"]}
        for name, found in medians.items()
    ]


if __name__ == "__main__":
    for row in measure():
        print(row)
