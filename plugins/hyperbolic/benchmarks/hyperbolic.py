"""Time of the hyperbolic mechanisms relative to plain attention, float32."""

from __future__ import annotations

import numpy as np
from timing import interleaved

import polyattn as pa

TITLE = "Hyperbolic mechanisms relative to flash"
BATCH, HEADS, SIZE = 1, 8, 64
NAMES = ("hyperbolic", "lorentz", "lorentz-cascade", "mixed-curvature")


def measure(tokens: tuple[int, ...] = (1024, 8192), rounds: int = 5) -> list[dict[str, object]]:
    """One row a mechanism and length: 1 × 8 × tokens × 64, normally distributed inputs."""
    rows: list[dict[str, object]] = []
    for count in tokens:
        rng = np.random.default_rng(0)
        q, k, v = rng.standard_normal((3, BATCH, HEADS, count, SIZE), dtype=np.float32)
        mechanisms = {
            name: pa.create(name, dim=HEADS * SIZE, heads=HEADS) for name in ("flash", *NAMES)
        }
        candidates = {
            name: lambda m=mechanism, q=q, k=k, v=v: m.attend(q, k, v)
            for name, mechanism in mechanisms.items()
        }
        seconds = interleaved(candidates, rounds, 0.05)
        rows += [
            {
                "mechanism": name,
                "tokens": count,
                "milliseconds": 1e3 * seconds[name],
                "× flash": seconds[name] / seconds["flash"],
            }
            for name in NAMES
        ]
    return rows


if __name__ == "__main__":
    for row in measure():
        print(row)
