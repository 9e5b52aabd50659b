"""Time and memory of a call."""

from __future__ import annotations

import ctypes
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")

RESIDENT = (
    "growth of the process's resident memory during the call, the output included, to about 0.3 MB"
)
TRACED = (
    "what NumPy allocated during the call, the output included; scratch space inside compiled "
    "kernels is not seen on this system"
)


def seconds(call: Callable[[], object], longest: float = 1.0) -> list[float]:
    """Times of up to five calls, fewer where they would take longer than `longest` together."""
    found: list[float] = []
    while len(found) < 5 and (not found or sum(found) + found[-1] < longest):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def memory_method() -> str:
    """How :func:`peak_memory` measures on this system."""
    return RESIDENT if _resident() is not None else TRACED


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes by which memory grew at most during a call: the least of three, as others add noise."""
    return min(_peak(call) for _ in range(3))


def _peak(call: Callable[[], object]) -> int:
    before = _resident()
    if before is not None:
        call()
        return max(0, _status("VmHWM") - before)
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _resident() -> int | None:
    """Resident bytes now, after the peak was reset to them; None where that cannot be done.

    Numba's scratch arrays do not pass through Python's allocator, so that tracemalloc is blind to
    them; the kernel of Linux sees every page.
    """
    try:
        # Pages that were freed but kept would hide what the call allocates.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
        return _status("VmRSS")
    except (OSError, AttributeError, TypeError, StopIteration):
        return None


def _status(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    line = next(line for line in lines if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])
