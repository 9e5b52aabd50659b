"""Fisher products and natural-gradient steps against copying; attention against plain flash."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

TITLE = "Information geometry: GB/s of products and steps, time of attention over flash"


def _seconds(calls: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Median seconds, all calls taking turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def measure() -> list[dict[str, object]]:
    """A row for each case."""
    import polyattn as pa
    from polyattn_info_geometry import FisherMetric, NaturalGradient, softmax

    rng = np.random.default_rng(0)
    fisher, natural = FisherMetric(), NaturalGradient()
    rows: list[dict[str, object]] = []
    for shape in ((16_384, 64), (16_384, 1024), (16, 1_048_576)):
        logits = rng.standard_normal(shape, np.float32)
        probs, vector = softmax(logits), rng.standard_normal(shape, np.float32)
        out = np.empty_like(vector)
        took = _seconds(
            {
                "p + v": lambda p=probs, v=vector, o=out: np.add(p, v, out=o),
                "fresh p + v": lambda p=probs, v=vector: p + v,
                "apply": lambda p=probs, v=vector: fisher.apply(p, v),
                "solve": lambda p=probs, v=vector: fisher.solve(p, v),
                "step": lambda p=logits, v=vector: natural.step_logits(p, v),
            }
        )
        for name, seconds in took.items():
            traffic = 3 * vector.nbytes / seconds / 1e9
            rows.append(
                {
                    "case": f"{name}, {shape[0]:,} × {shape[1]:,}",
                    "ms": round(seconds * 1e3, 2),
                    "GB/s": round(traffic, 1),
                    "over fresh p + v": round(seconds / took["fresh p + v"], 2),
                }
            )
    names = ("flash", "fisher-rao", "kl-bregman", "natural-gradient")
    for tokens in (1024, 8192):
        x = rng.standard_normal((1, tokens, 512), np.float32)
        made = {name: pa.create(name, dim=512, heads=8) for name in names}
        calls = {name: (lambda m=m, x=x: m(x)) for name, m in made.items()}
        took = _seconds(calls, rounds=5 if tokens < 4096 else 3)
        for name, seconds in took.items():
            rows.append(
                {
                    "case": f"{name}, 1 × 8 × {tokens:,} × 64",
                    "ms": round(seconds * 1e3, 2),
                    "over flash": round(seconds / took["flash"], 2),
                }
            )
    return rows


if __name__ == "__main__":
    print(TITLE)
    for row in measure():
        print(row)
