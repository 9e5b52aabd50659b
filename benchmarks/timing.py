"""Interleaved timing: all candidates take turns, so that drift of the machine hits them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

quick = False
"""Fewer and shorter rounds; set by run.py."""
PAUSE = 0.2
"""Seconds between candidates: after a call the threads of OpenMP spin for up to 26 milliseconds,
those of OpenBLAS for more than 50, and would take the time of whoever comes next."""
say: Callable[[str], None] = lambda text: None  # noqa: E731
"""Told what is being measured; set by run.py."""


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int = 5, seconds: float = 0.1
) -> dict[str, float]:
    """Median seconds of one call of each candidate.

    In each round every candidate waits until the threads of the one before are asleep, is called
    once untimed, and then often enough to fill `seconds` (at least once).
    """
    if quick:
        rounds, seconds = min(rounds, 3), min(seconds, 0.03)
    repeats = {}
    for name, call in candidates.items():
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        repeats[name] = max(1, int(seconds / max(once, 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            time.sleep(PAUSE)
            call()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            found[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(values) for name, values in found.items()}
