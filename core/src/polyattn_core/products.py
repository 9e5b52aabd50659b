"""Products of large matrices, between kernels.

The threads of BLAS wait for work in a loop, for tens of milliseconds after each product, and take
the processors from the kernels that come next: attention after a projection took a third longer.
So BLAS computes blocks of rows here, with one thread for each, in the threads that kernels run in.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

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


@functools.cache
def _blas() -> Any:
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
    blocks = itertools.pairwise(edges)
    turn = threading.Lock()

    def multiply(counter: Array) -> None:
        with np.errstate(all="ignore"):  # for this thread, whatever the caller's is
            while True:
                with turn:
                    found = next(blocks, None)
                if found is None:
                    return
                begin, end = found
                np.matmul(rows[begin:end], right, out=out[begin:end])

    with _one_thread.held():
        threads.run(multiply, (), count, workers)
    return out.reshape(*left.shape[:-1], right.shape[1])
