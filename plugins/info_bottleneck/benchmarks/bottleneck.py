"""Attention through a bottleneck against plain flash."""

from __future__ import annotations

import statistics
import time

import numpy as np

TITLE = "Information bottleneck: time over plain flash"


def _case(tokens: int, rounds: int) -> list[dict[str, object]]:
    import polyattn as pa

    x = np.random.default_rng(0).standard_normal((1, tokens, 512), np.float32)
    options = {"flash": {}, "vib": {"z_dim": 16}, "ib-compressed": {"iterations": 2}}
    made = {name: pa.create(name, dim=512, heads=8, **extra) for name, extra in options.items()}
    found: dict[str, list[float]] = {name: [] for name in made}
    for i in range(-1, rounds):
        for name, mechanism in made.items():
            start = time.perf_counter()
            mechanism(x)
            if i >= 0:
                found[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(times) for name, times in found.items()}
    return [
        {
            "case": f"{name}, 1 × 8 × {tokens:,} × 64",
            "ms": round(seconds * 1e3, 2),
            "over flash": round(seconds / middle["flash"], 2),
        }
        for name, seconds in middle.items()
    ]


def measure() -> list[dict[str, object]]:
    """A row for each size and mechanism."""
    return _case(1024, 21) + _case(8192, 3)


if __name__ == "__main__":
    print(TITLE)
    for row in measure():
        print(row)
