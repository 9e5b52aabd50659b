"""The theory families: time and memory relative to `flash`, and how their cost grows."""

from __future__ import annotations

import math
import time
import tracemalloc
from typing import Any

import timing
from mechanisms import BATCH, HEADS, SIZE, arrays

import polyattn as pa

TITLE = f"Theories at {BATCH} × {HEADS} × n × {SIZE}, float32, default options"
FAMILIES = (
    "transport", "curvature", "topology", "info-geometry", "info-bottleneck", "diffusion",
)  # fmt: skip
SHORT, LONG, LONGEST = 1024, 8192, 16384
_PATIENCE = 60.0  # seconds that a call may take


def measure() -> list[dict[str, object]]:
    """A row for each mechanism: time ÷ flash at two lengths, memory at the longer, exponent."""
    flash = pa.create("flash", dim=HEADS * SIZE, heads=HEADS)
    rows: list[dict[str, object]] = []
    for family in FAMILIES:
        for name in pa.available(family=family):
            timing.say(name)
            mechanism = pa.create(name, dim=HEADS * SIZE, heads=HEADS)
            row: dict[str, object] = {"mechanism": name}
            rows.append(row)
            seconds = {SHORT: _pair(row, mechanism, flash, SHORT)}
            if timing.quick:
                continue
            if seconds[SHORT] * (LONG / SHORT) ** 2 < _PATIENCE:
                seconds[LONG] = _pair(row, mechanism, flash, LONG)
                row[f"MB at {LONG:,}"] = _megabytes(mechanism, LONG)
            longest = max(seconds)
            if seconds[longest] * (LONGEST / longest) ** 2 < _PATIENCE:
                longest = LONGEST
                seconds[LONGEST] = _once(mechanism, LONGEST)
            if longest > SHORT:
                growth = math.log(seconds[longest] / seconds[SHORT]) / math.log(longest / SHORT)
                row["grows as n^"] = growth
            row["up to"] = f"{longest:,}"
    return rows


def _pair(row: dict[str, object], mechanism: Any, flash: Any, tokens: int) -> float:
    inputs = arrays(tokens)
    calls = {"flash": lambda: flash.attend(*inputs), "this": lambda: mechanism.attend(*inputs)}
    seconds = timing.interleaved(calls, 5 if tokens == SHORT else 3, 0.03)
    row[f"÷ flash at {tokens:,}"] = seconds["this"] / seconds["flash"]
    return seconds["this"]


def _once(mechanism: Any, tokens: int) -> float:
    inputs = arrays(tokens)
    start = time.perf_counter()
    mechanism.attend(*inputs)
    return time.perf_counter() - start


def _megabytes(mechanism: Any, tokens: int) -> float:
    """The most that NumPy arrays took beyond inputs and output; a thread's scratch is not seen."""
    inputs = arrays(tokens)
    tracemalloc.start()
    output = mechanism.attend(*inputs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return max(0.0, (peak - output.nbytes) / 1e6)
