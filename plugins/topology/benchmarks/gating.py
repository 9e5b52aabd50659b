"""What gating costs over plain flash, where keys change and where they do not."""

from __future__ import annotations

import itertools

import numpy as np
from timing import interleaved

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
    keys = itertools.cycle(changing)
    seconds = interleaved(
        {
            "flash": lambda: flash.attend(query, next(keys), value),
            "gated, keys as before": lambda: kept.attend(query, steady, value),
            "gated, keys changed": lambda: moved.attend(query, next(keys), value),
            "mincut-gated": lambda: cut.attend(query, next(keys), value),
            "coherence alone": lambda: coherence(next(keys)),
        },
        rounds,
    )
    return [
        {
            "case": f"{name}, 1 × 8 × {tokens:,} × 64",
            "ms": round(each * 1e3, 2),
            "over flash": round(each / seconds["flash"], 3),
        }
        for name, each in seconds.items()
    ]


def measure() -> list[dict[str, object]]:
    """A row for each size and case."""
    return _case(1024, 9) + _case(8192, 5)


if __name__ == "__main__":
    print(TITLE)
    for row in measure():
        print(row)
