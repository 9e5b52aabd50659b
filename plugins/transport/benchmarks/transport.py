"""Time and memory of the transport mechanisms relative to plain attention, and their growth."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
from timing import interleaved

import polyattn as pa

TITLE = "Transport at 1 × 8 heads × n × 64, float32"
SIZES = (1024, 4096, 8192, 16384)
LONGEST = {"sinkhorn": 4096, "unbalanced-ot": 4096}
OPTIONS: dict[str, dict[str, int]] = {
    "sliced-wasserstein": {"projections": 16, "candidates": 64},
    "centroid-ot": {"centroids": 32},
    "low-rank-ot": {"rank": 64},
    "sinkhorn": {"iterations": 5},
    "unbalanced-ot": {"iterations": 5},
}


def measure() -> list[dict[str, object]]:
    """Medians of interleaved calls; memory beyond inputs; growth exponents from 1,024 tokens."""
    mechanisms = {name: pa.create(name, dim=512, heads=8, **more) for name, more in OPTIONS.items()}
    flash = pa.create("flash", dim=512, heads=8)
    rows: list[dict[str, object]] = []
    shortest: dict[str, float] = {}
    for tokens in SIZES:
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((3, 1, 8, tokens, 64), np.float32)
        calls: dict[str, Callable[[], object]] = {"flash": lambda x=inputs: flash.attend(*x)}
        for name, mechanism in mechanisms.items():
            if tokens <= LONGEST.get(name, SIZES[-1]):
                calls[name] = lambda x=inputs, m=mechanism: m.attend(*x)
        seconds = interleaved(calls, 5 if tokens <= 4096 else 3)
        for name, call in calls.items():
            shortest.setdefault(name, seconds[name])
            tracemalloc.start()
            call()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            row: dict[str, object] = {
                "mechanism": name,
                "tokens": tokens,
                "milliseconds": 1e3 * seconds[name],
                "× flash": seconds[name] / seconds["flash"],
                "peak MB": peak / 1e6,
            }
            if tokens > SIZES[0]:
                growth = math.log(seconds[name] / shortest[name])
                row["growth exponent"] = growth / math.log(tokens / SIZES[0])
            rows.append(row)
    return rows


if __name__ == "__main__":
    for each in measure():
        print(each)
