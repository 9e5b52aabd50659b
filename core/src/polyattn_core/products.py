"""Products of matrices, between kernels.

The threads of BLAS wait for work in a loop, for tens of milliseconds after each product, and take
the processors from the kernels that come next: attention after a projection took a third longer.
So BLAS computes blocks of rows here, with one thread for each, in the threads that kernels run in.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .arrays import Array

_TINY = 1 << 19  # multiply-adds for which BLAS uses no other thread by itself
_SMALL = 1 << 22  # multiply-adds that are not worth another thread
_ROWS = 64  # of a block at least, as each has to arrange the right matrix for itself
_BLOCKS = 4  # a thread, so that one that is held up has less to do


class _OneThread:
    """Keeps BLAS at one thread while anybody is inside. All of the process sees that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[Any, int]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = [(library, library.get_num_threads()) for library in _blas()]
                for library, _ in self._before:
                    library.set_num_threads(1)
            self._inside += 1

    def __exit__(self, *details: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for library, number in self._before:
                    library.set_num_threads(number)


@functools.cache
def _blas() -> list[Any]:
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


one_thread = _OneThread()
"""A context in which BLAS uses the calling thread alone."""


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

    with one_thread:
        threads.run(take, (), count, workers)


def matmul(left: Array, right: Array, limit: int | None = None) -> Array:
    """The product of matrices, like that of NumPy, which a caller does not wait for afterwards.

    Parameters
    ----------
    left
        (…, n, k), float32 or float64.
    right
        (…, k, m), of the same dtype; leading axes broadcast.
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

    lead = left.shape[:-2]
    if right.ndim > 2:
        lead = np.broadcast_shapes(lead, right.shape[:-2])
    elif left.ndim > 2:  # one matrix for all: as rows of one
        rows = matmul(left.reshape(-1, left.shape[-1]), right, limit)
        return rows.reshape(*left.shape[:-1], right.shape[1])
    matrices, steps = math.prod(lead), left.shape[-2] * right.shape[-2] * right.shape[-1]
    blocks = max(left.shape[-2] // _ROWS, 1)
    workers = min(limit or threads.limit(), threads.limit(), matrices * blocks)
    if steps < _TINY and matrices * steps < _SMALL:
        with np.errstate(all="ignore"):
            return np.asarray(left @ right)
    if workers == 1 or matrices * steps < _SMALL:
        with one_thread, np.errstate(all="ignore"):
            return np.asarray(left @ right)
    out = np.empty((*lead, left.shape[-2], right.shape[-1]), np.result_type(left, right))
    lefts = np.broadcast_to(left, (*lead, *left.shape[-2:]))
    rights = np.broadcast_to(right, (*lead, *right.shape[-2:]))
    blocks = min(blocks, -(-workers * _BLOCKS // matrices))
    edges = [left.shape[-2] * block // blocks for block in range(blocks + 1)]

    def multiply(task: int) -> None:
        matrix, block = divmod(task, blocks)
        place = np.unravel_index(matrix, lead)
        part = (*place, slice(edges[block], edges[block + 1]))
        with np.errstate(all="ignore"):  # for this thread, whatever the caller's is
            np.matmul(lefts[part], rights[place], out=out[part])

    shared(multiply, matrices * blocks, workers)
    return out
