"""Time of the curvature mechanisms relative to plain attention, float32."""

from __future__ import annotations

import numpy as np
from timing import interleaved

import polyattn as pa

TITLE = "Curvature mechanisms relative to flash"
BATCH, HEADS, SIZE = 1, 8, 64
NAMES = (
    "fused-mixed-curvature",
    "spherical",
    "kappa-stereographic",
    "quantised-mixed-curvature",
)


def measure(tokens: tuple[int, ...] = (1024, 8192), rounds: int = 3) -> list[dict[str, object]]:
    """One row a mechanism and length: 1 × 8 × tokens × 64; inputs inside the ball."""
    rows: list[dict[str, object]] = []
    for count in tokens:
        rng = np.random.default_rng(0)
        q, k, v = 0.1 * rng.standard_normal((3, BATCH, HEADS, count, SIZE), dtype=np.float32)
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
