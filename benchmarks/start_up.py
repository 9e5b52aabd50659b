"""What it costs to import, list and create; each import in an interpreter of its own."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

TITLE = "Start-up and calls"
_IMPORT = "import time; t = time.perf_counter(); import polyattn; print(time.perf_counter() - t)"
_LISTS = "-m", "polyattn", "list"


def _median(values: list[float]) -> float:
    return statistics.median(values)


def import_seconds(runs: int = 9) -> float:
    """Seconds that `import polyattn` adds to a bare interpreter."""
    command = [sys.executable, "-c", _IMPORT]
    found = [subprocess.run(command, capture_output=True, check=True).stdout for _ in range(runs)]
    return _median([float(text) for text in found])


def list_seconds(runs: int = 7) -> float:
    """Seconds of the whole command `polyattn list`."""
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, *_LISTS], capture_output=True, check=True)
        found.append(time.perf_counter() - start)
    return _median(found)


def create_seconds(runs: int = 500) -> float:
    """Seconds of creating a mechanism that is loaded already."""
    import polyattn as pa

    pa.create("flash", dim=64)
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        pa.create("flash", dim=64)
        found.append(time.perf_counter() - start)
    return _median(found)


def call_seconds(runs: int = 2000) -> float:
    """Seconds of `flash` on 16 tokens × 64 through the public interface."""
    import numpy as np

    import polyattn as pa

    flash = pa.create("flash", dim=64)
    x = np.random.default_rng(0).standard_normal((1, 16, 64), dtype=np.float32)
    flash(x)
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        flash(x)
        found.append(time.perf_counter() - start)
    return _median(found)


def measure() -> list[dict[str, object]]:
    """All of them, in milliseconds."""
    rows = (
        ("import polyattn", import_seconds()),
        ("polyattn list, whole process", list_seconds()),
        ("create('flash', dim=64), loaded", create_seconds()),
        ("flash, 16 tokens × 64", call_seconds()),
    )
    return [{"what": what, "milliseconds": 1e3 * seconds} for what, seconds in rows]
