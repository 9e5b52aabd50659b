"""Every installed mechanism relative to `flash`, and how its cost grows with the length."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import timing
from gradients import round_trip

import polyattn as pa

TITLE = "Each mechanism at 1 × 8 × 1,024 × 64, float32, default options"
BATCH, HEADS, SIZE = 1, 8, 64
LENGTHS = (1024, 2048, 4096, 8192, 16384)
_BUDGET = 1.0  # seconds that a call may take; longer ones are estimated and left out


def created() -> list[tuple[str, Any, str]]:
    """Name, mechanism or None, and why there is none, of all that is installed."""
    found: list[tuple[str, Any, str]] = []
    for name in pa.available():
        if any(side.required for side in pa.spec(name).capabilities.side_inputs):
            found.append((name, None, "needs inputs of its own"))
            continue
        try:
            # Some learn a map of so many tokens.
            fixed = (
                {"tokens": LENGTHS[-1]} if "tokens" in pa.config_schema(name)["properties"] else {}
            )
            mechanism = pa.create(name, dim=HEADS * SIZE, heads=HEADS, **fixed)
            mechanism.attend(*arrays(64))
        except pa.errors.PolyattnError as error:
            found.append((name, None, str(error)))
            continue
        found.append((name, mechanism, ""))
    return found


def arrays(tokens: int) -> Any:
    """Random queries, keys and values of one head size."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((3, BATCH, HEADS, tokens, SIZE), dtype=np.float32)


def measure() -> list[dict[str, object]]:
    """Time relative to `flash`, forward and with gradients, and the exponent of growth."""
    q, k, v = arrays(1024)
    flash = pa.create("flash", dim=HEADS * SIZE, heads=HEADS)
    rows: list[dict[str, object]] = []
    for name, mechanism, problem in created():
        timing.say(name)
        if mechanism is None:
            rows.append({"mechanism": name, "remark": problem})
            continue
        pair: dict[str, Callable[[], object]] = {
            "flash": lambda: flash.attend(q, k, v),
            "this": lambda m=mechanism: m.attend(q, k, v),
        }
        seconds = timing.interleaved(pair, 3, 0.03)
        row: dict[str, object] = {
            "mechanism": name,
            "ms": 1e3 * seconds["this"],
            "÷ flash": seconds["this"] / seconds["flash"],
        }
        if pa.spec(name).capabilities.gradient:
            pair = {
                "flash": lambda: round_trip(flash, q, k, v, v),
                "this": lambda m=mechanism: round_trip(m, q, k, v, v),
            }
            seconds_both = timing.interleaved(pair, 3, 0.03)
            row["with gradients, ÷ flash"] = seconds_both["this"] / seconds_both["flash"]
        exponent, longest = growth(mechanism, seconds["this"])
        row["grows as n^"] = exponent
        row["up to"] = f"{longest:,}"
        if longest < LENGTHS[-1]:
            row["remark"] = f"above {longest:,} tokens a call takes more than {_BUDGET:g} s"
        rows.append(row)
    return rows


def growth(mechanism: Any, seconds: float) -> tuple[float, int]:
    """Exponent of time over length by least squares, and the longest length that was measured."""
    points = [(LENGTHS[0], seconds)]
    for tokens in LENGTHS[1:3] if timing.quick else LENGTHS[1:]:
        # Quadratic at worst.
        if points[-1][1] * (tokens / points[-1][0]) ** 2 > _BUDGET:
            break
        q, k, v = arrays(tokens)
        mechanism.attend(q, k, v)
        start = time.perf_counter()
        mechanism.attend(q, k, v)
        points.append((tokens, time.perf_counter() - start))
    if len(points) < 2:
        return float("nan"), points[-1][0]
    lengths, times = np.log(np.array(points)).T
    return float(np.polyfit(lengths, times, 1)[0]), points[-1][0]
