"""Time of mixtures of experts relative to one of their experts, float32."""

from __future__ import annotations

import numpy as np
from timing import interleaved

import polyattn as pa

TITLE = "Mixtures relative to one of their experts"
HEADS, SIZE = 8, 64


def measure(tokens: int = 4096, rounds: int = 5) -> list[dict[str, object]]:
    """One row a mixture: 1 × 8 × tokens × 64, normally distributed inputs."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, HEADS, tokens, SIZE), dtype=np.float32)
    layout = {"dim": HEADS * SIZE, "heads": HEADS}
    eight = ("scaled-dot-product",) * 8
    one = pa.create("scaled-dot-product", **layout)
    projected = pa.create("moe", **layout, experts=8, top_k=2)
    pairs = {
        "moe, top 2 of 8 scaled-dot-product": (
            pa.create("moe", **layout, experts=eight, top_k=2), one,
        ),
        "moe, top 2 of 8": (projected, projected.experts[0]),
        "moe, top 1 of 8": (
            pa.create("moe", **layout, experts=8, top_k=1), projected.experts[0],
        ),
        "expert-choice, 2 of 8": (
            pa.create("expert-choice", **layout, experts=8), projected.experts[0],
        ),
        "mixture-of-heads, 2 + 3 of 8": (
            pa.create("mixture-of-heads", **layout, shared_heads=2, top_k=3), one,
        ),
    }  # fmt: skip
    rows: list[dict[str, object]] = []
    for name, (mixture, expert) in pairs.items():
        candidates = {
            "mixture": lambda m=mixture: m.attend(q, k, v),
            "expert": lambda m=expert: m.attend(q, k, v),
        }
        seconds = interleaved(candidates, rounds, 0.05)
        rows.append(
            {
                "mixture": name,
                "milliseconds": 1e3 * seconds["mixture"],
                "× one expert": seconds["mixture"] / seconds["expert"],
            }
        )
    return rows


if __name__ == "__main__":
    for row in measure():
        print(row)
