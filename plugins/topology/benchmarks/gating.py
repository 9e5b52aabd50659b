"""What gating costs over plain flash, where keys change and where they do not."""

from __future__ import annotations

import statistics
import time

import numpy as np

TITLE = "Topology gate: time over plain flash, keys unchanged and changed; mincut; coherence alone"


def _case(tokens: int, rounds: int) -> list[dict[str, object]]:
    import polyattn as pa
    from polyattn_topology import WindowCoherence

    rng = np.random.default_rng(0)
    query, value = rng.standard_normal((2, 1, 8, tokens, 64), np.float32)
    steady, *changing = 2 + rng.standard_normal((3, 1, 8, tokens, 64), np.float32)
    names = ("flash", "topology-gated", "topology-gated", "mincut-gated")
    flash, kept, moved, cut = (pa.create(name, dim=512, heads=8) for name in names)
    coherence = WindowCoherence(sample=256)
    calls = {
        "flash": lambda i: flash.attend(query, changing[i % 2], value),
        "gated, keys as before": lambda i: kept.attend(query, steady, value),
        "gated, keys changed": lambda i: moved.attend(query, changing[i % 2], value),
        "mincut-gated": lambda i: cut.attend(query, changing[i % 2], value),
        "coherence alone": lambda i: coherence(changing[i % 2]),
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(-1, rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call(i)
            if i >= 0:
                found[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(times) for name, times in found.items()}
    return [
        {
            "case": f"{name}, 1 × 8 × {tokens:,} × 64",
            "ms": round(seconds * 1e3, 2),
            "over flash": round(seconds / middle["flash"], 3),
        }
        for name, seconds in middle.items()
    ]


def measure() -> list[dict[str, object]]:
    """A row for each size and case."""
    return _case(1024, 41) + _case(8192, 5)


if __name__ == "__main__":
    print(TITLE)
    for row in measure():
        print(row)
