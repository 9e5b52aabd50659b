"""Work sharing between threads, on any threading layer: none of Numba's is used.

Kernels release the GIL and take tasks from a shared atomic counter until none is left. A call runs
in the calling thread and, where there is work for more, in helper threads of one pool. Several
Python threads may call at once; a forked child makes a pool of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def _forget() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def limit() -> int:
    """Threads a call may use by default: NUMBA_NUM_THREADS, or all cores."""
    return int(numba.config.NUMBA_NUM_THREADS)


def _helpers() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(limit() - 1, 1), thread_name_prefix="polyattn")
        return _pool


def run(kernel: Callable[..., Any], arguments: tuple[Any, ...], tasks: int, threads: int) -> None:
    """Call ``kernel(*arguments, counter)`` in up to `threads` threads until all tasks are done."""
    counter = np.zeros(1, np.int64)
    helpers = min(threads, tasks, limit()) - 1
    if helpers < 1:
        kernel(*arguments, counter)
        return
    pool = _helpers()
    futures: list[Future[Any]] = [pool.submit(kernel, *arguments, counter) for _ in range(helpers)]
    try:
        kernel(*arguments, counter)
    finally:
        # A helper that has not started finds no task left: there is no need to wait for it.
        for future in futures:
            if not future.cancel():
                future.result()
