"""Cost against length, in time and memory: what the picture shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import alternatives
import numpy as np
import timing
from memory import megabytes

import polyattn as pa

TITLE = "Cost against length, one head of 64, float32"
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_NAIVE = 4096  # tokens up to which the n × n form takes part

_NUMPY = """
import sys, numpy as np
sys.path.insert(0, sys.argv[2])
import memory
from alternatives import numpy_attention
numpy_attention(*np.ones((3, 1, 1, 64, 64), np.float32))
q, k, v = np.ones((3, 1, 1, int(sys.argv[1]), 64), np.float32)
peak = memory.watch()
before = peak()
out = numpy_attention(q, k, v)
print(max(0, peak() - before - out.nbytes))
"""


def measure() -> list[dict[str, object]]:
    """A row for each length and implementation."""
    from pathlib import Path

    here = str(Path(__file__).parent)
    rows: list[dict[str, object]] = []
    flash = pa.create("flash", dim=64)
    window = pa.create("sliding-window", dim=64, window=256)
    for tokens in LENGTHS[:-2] if timing.quick else LENGTHS:
        timing.say(f"{tokens:,} tokens")
        rng = np.random.default_rng(0)
        q, k, v = rng.standard_normal((3, 1, 1, tokens, 64), dtype=np.float32)
        candidates: dict[str, Callable[[], Any] | None] = {
            "flash": lambda a=(q, k, v): flash.attend(*a),
            "sliding-window": lambda a=(q, k, v): window.attend(*a),
            "torch": alternatives.sdpa(q, k, v),
        }
        peaks: dict[str, float] = {"flash": megabytes(1, 1, tokens, 64)}
        if tokens <= _NAIVE:
            candidates["numpy"] = lambda a=(q, k, v): alternatives.numpy_attention(*a)
            command = [sys.executable, "-c", _NUMPY, str(tokens), here]
            done = subprocess.run(command, capture_output=True, check=True, text=True)
            peaks["numpy"] = float(done.stdout) / 1e6
        present = {n: call for n, call in candidates.items() if call is not None}
        for name, taken in timing.interleaved(present, 5, 0.03).items():
            row: dict[str, object] = {"tokens": tokens, "what": name, "ms": 1e3 * taken}
            if name in peaks:
                row["MB"] = peaks[name]
            rows.append(row)
    return rows
