"""Products of large matrices, between kernels.

The threads of BLAS wait for work in a loop, for tens of milliseconds after each product, and take
the processors from the kernels that come next: attention after a projection took a third longer.
So BLAS computes blocks of rows here, with one thread for each, in the threads that kernels run in.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .arrays import Array

_SMALL = 1 << 22  # multiply-adds that are not worth another thread
_ROWS = 64  # of a block at least, as each has to arrange the right matrix for itself
_BLOCKS = 4  # a thread, so that one that is held up has less to do


class _OneThread:
    """Keeps BLAS at one thread while anybody is inside. All of the process sees that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._limit = _blas().limit(limits=1)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._limit.restore_original_limits()


_one_thread = _OneThread()


def shared(work: Callable[[int], None], count: int, workers: int) -> None:
    """Call `work` with 0 … count − 1, in up to `workers` threads, in each of which BLAS has one.

    >>> found = [0] * 3
    >>> shared(lambda task: found.__setitem__(task, task * task), 3, 2)
    >>> found
    [0, 1, 4]
    """
    from .simd import threads

    tasks, turn = iter(range(count)), threading.Lock()

    def take(counter: Array) -> None:
        while True:
            with turn:
                task = next(tasks, None)
            if task is None:
                return
            work(task)

    with _one_thread.held() if _blas().lib_controllers else contextlib.nullcontext():
        threads.run(take, (), count, workers)


@functools.cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def matmul(left: Array, right: Array, limit: int | None = None) -> Array:
    """The product of an array of row vectors and a matrix, or its transpose.

    Parameters
    ----------
    left
        (…, n, k), float32 or float64.
    right
        (k, m), of the same dtype.
    limit
        Threads to use at most; by default as many as kernels do.

    Returns
    -------
    (…, n, m): `left @ right`. What is not finite is passed on without a warning.

    Examples
    --------
    >>> matmul(np.ones((3, 2)), np.array([[1.0, 2.0], [3.0, 4.0]]))[0]
    array([4., 6.])
    """
    from .simd import threads

    rows = left.reshape(-1, left.shape[-1]) if left.ndim != 2 else left
    workers = min(limit or threads.limit(), threads.limit(), max(len(rows) // _ROWS, 1))
    if workers == 1 or rows.size * right.shape[1] < _SMALL or not _blas().lib_controllers:
        with np.errstate(all="ignore"):
            return np.asarray(left @ right)
    out = np.empty((len(rows), right.shape[1]), np.result_type(left, right))
    count = min(workers * _BLOCKS, len(rows) // _ROWS)
    edges = [len(rows) * block // count for block in range(count + 1)]

    def multiply(block: int) -> None:
        part = slice(edges[block], edges[block + 1])
        with np.errstate(all="ignore"):  # for this thread, whatever the caller's is
            np.matmul(rows[part], right, out=out[part])

    shared(multiply, count, workers)
    return out.reshape(*left.shape[:-1], right.shape[1])
