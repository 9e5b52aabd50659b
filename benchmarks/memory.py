"""Peak memory beyond inputs and outputs; each call in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import timing
from plain_attention import WORK, name

TITLE = "Peak memory beyond inputs and outputs, MB"

_CALL = """
import sys, numpy as np, polyattn as pa
sys.path.insert(0, sys.argv.pop())
import memory
batch, heads, tokens, size, causal, gradients = map(int, sys.argv[1:])
flash = pa.create("flash", dim=heads * size, heads=heads, causal=bool(causal))
def call(q, k, v):
    if not gradients:
        return (flash.attend(q, k, v),)
    output, pull = flash.attend_vjp(q, k, v)
    found = pull(q)
    return output, found.query, found.key, found.value
call(*np.ones((3, 1, heads, 64, size), np.float32))
q, k, v = np.random.default_rng(0).standard_normal((3, batch, heads, tokens, size), np.float32)
peak = memory.watch()
before = peak()
results = call(q, k, v)
print(max(0, peak() - before - sum(x.nbytes for x in results)))
"""


def watch() -> Callable[[], int]:
    """Start anew with the peak of this process; returns what tells it, in bytes.

    A new process begins with its parent's peak: Linux forgets it on request.
    """
    status = Path("/proc/self/status")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if status.exists():
        return lambda: next(
            1024 * int(line.split()[1])
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return lambda: unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def megabytes(*work: int, causal: bool = False, gradients: bool = False) -> float:
    """Of one call."""
    arguments = [*(str(int(x)) for x in (*work, causal, gradients)), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", _CALL, *arguments], capture_output=True, check=True, text=True
    )
    return float(done.stdout) / 1e6


def measure() -> list[dict[str, object]]:
    """The rows of plain attention."""
    rows = []
    for work in WORK:
        timing.say(name(*work))
        rows.append(
            {
                "batch × heads × tokens × size": name(*work),
                "forward": megabytes(*work),
                "causal": megabytes(*work, causal=True),
                "with gradients": megabytes(*work, gradients=True),
            }
        )
    return rows
