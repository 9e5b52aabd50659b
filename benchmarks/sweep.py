"""Head sizes and lengths, odd ones among them: nowhere should torch be faster."""

from __future__ import annotations

import alternatives
import timing
from plain_attention import inputs

import polyattn as pa

TITLE = "Sweep, 2 × 4 heads, float32, forward: time of torch ÷ ours, plain / causal"
SIZES = (32, 40, 64, 80, 96, 128, 256)
LENGTHS = (100, 128, 1000, 1025, 2048)


def measure() -> list[dict[str, object]]:
    """A row for each head size, a column for each length."""
    if alternatives.torch() is None:
        return []
    rows = []
    lengths = LENGTHS[:4] if timing.quick else LENGTHS
    for size in SIZES[::3] if timing.quick else SIZES:
        row: dict[str, object] = {"head size": str(size)}
        least = float("inf")
        for tokens in lengths:
            timing.say(f"head size {size}, {tokens:,} tokens")
            q, k, v = inputs(2, 4, tokens, size)
            ratios = []
            for causal in (False, True):
                flash = pa.create("flash", dim=4 * size, heads=4, causal=causal)
                candidates = {
                    "ours": lambda m=flash, a=(q, k, v): m.attend(*a),
                    "torch": alternatives.sdpa(q, k, v, causal),
                }
                seconds = timing.interleaved(candidates, 5, 0.02)  # type: ignore[arg-type]
                ratios.append(seconds["torch"] / seconds["ours"])
            least = min(least, *ratios)
            row[f"{tokens:,}"] = " / ".join(f"{ratio:.2f}" for ratio in ratios)
        row["least"] = least
        rows.append(row)
    return rows
