"""Work sharing between threads, on any threading layer: none of Numba's is used.

Kernels release the GIL and take tasks from a shared atomic counter until none is left. A call runs
in the calling thread and, where there is work for more, in helper threads of one pool. Several
Python threads may call at once; a forked child makes a pool of its own.

Short calls are what the pool is made for: a caller that runs out of tasks looks for a while
whether its helpers have, before it goes to sleep, and helpers are kept off its processor.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from .jit import Kernel
from .vector import pointer

_LOOKS = 1 << 16  # at whether helpers are done: some 50 µs, about what it takes to be woken


class _Job:
    """A kernel that several threads run at once, and what they tell each other."""

    def __init__(
        self, kernel: Callable[..., Any], arguments: tuple[Any, ...], helpers: int
    ) -> None:
        self.kernel, self.arguments = kernel, arguments
        self.counter = np.zeros(1 + helpers, np.int64)
        """The next task, which is all that kernels look at; then, for each helper, is it done?"""
        self.places = list(range(1, 1 + helpers))
        """Of helpers that have not started. Whoever takes one, helper or caller, fills it."""
        self.errors: list[BaseException] = []
        self.done: SimpleQueue[None] = SimpleQueue()

    def help(self) -> None:
        """Run in a helper, unless the caller was done before it started."""
        try:
            place = self.places.pop()
        except IndexError:
            return
        try:
            self.kernel(*self.arguments, self.counter)
        except BaseException as error:
            self.errors.append(error)
        self.counter[place] = 1
        self.done.put(None)

    def finish(self) -> None:
        """Wait for the helpers that have started; the others would find no task left."""
        running = len(self.counter) - 1
        with contextlib.suppress(IndexError):
            while True:
                self.counter[self.places.pop()] = 1
                running -= 1
        if running and not _all_done()(self.counter):
            for _ in range(running):
                self.done.get()
        if self.errors:
            raise self.errors[0]


class _Pool:
    """As many helper threads as calls may use by default, less the caller's."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.avoided: dict[int, int] = {}
        """The processor that each helper is kept off, by the thread's number."""
        for number in range(max(int(numba.config.NUMBA_NUM_THREADS) - 1, 1)):
            name = f"polyattn_{number}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        self.avoided[threading.get_native_id()] = -1
        while True:
            self.jobs.get().help()

    def keep_clear(self) -> None:
        """Keep helpers off the processor of the caller.

        Linux may wake a helper on it and leave it there while others are idle, for longer than
        most calls take.
        """
        where = _processor()
        if where is None:
            return
        here = where()
        for thread, avoided in list(self.avoided.items()):
            if avoided != here:
                free = os.sched_getaffinity(0) - {here}
                if free:
                    with contextlib.suppress(OSError):  # not allowed to: as good as before
                        os.sched_setaffinity(thread, free)
                self.avoided[thread] = here


_pool: _Pool | None = None
_lock = threading.Lock()


def _forget() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


_most: ContextVar[int | None] = ContextVar("most", default=None)


@contextlib.contextmanager
def limited(most: int) -> Iterator[None]:
    """At most so many threads for what is called inside."""
    before = _most.set(most)
    try:
        yield
    finally:
        _most.reset(before)


def limit() -> int:
    """Threads a call may use: NUMBA_NUM_THREADS, or all cores, unless it is `limited`."""
    most = _most.get()
    cores = int(numba.config.NUMBA_NUM_THREADS)
    return cores if most is None else min(most, cores)


def _helpers() -> _Pool:
    global _pool
    with _lock:
        if _pool is None:
            _pool = _Pool()
        return _pool


@functools.cache
def _processor() -> Callable[[], int] | None:
    """Tells on which processor the caller is; None where threads cannot be kept off it anyway."""
    if sys.platform != "linux":
        return None
    found: Callable[[], int] | None = getattr(ctypes.PyDLL(None), "sched_getcpu", None)
    return found


@intrinsic  # type: ignore[untyped-decorator]
def _now(typing, numbers, at):  # type: ignore[no-untyped-def]
    """A number that another thread may have changed."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        start = pointer(context, builder, signature.args[0], args[0])
        return builder.load_atomic(builder.gep(start, [args[1]]), "monotonic", 8)

    return types.int64(numbers, types.intp), emit


@functools.cache
def _all_done() -> Kernel:
    """Looks until all numbers but the first are set, or for long enough; are they?"""

    def all_done(counter):  # type: ignore[no-untyped-def]
        place = 1
        for _ in range(_LOOKS):
            while place < counter.size and _now(counter, place) != 0:
                place += 1
            if place == counter.size:
                return True
        return False

    return Kernel(all_done, types.boolean(types.Array(types.int64, 1, "C")), "threads")


def run(kernel: Callable[..., Any], arguments: tuple[Any, ...], tasks: int, threads: int) -> None:
    """Call ``kernel(*arguments, counter)`` in up to `threads` threads until all tasks are done."""
    helpers = min(threads, tasks, limit()) - 1
    if helpers < 1:
        kernel(*arguments, np.zeros(1, np.int64))
        return
    pool = _helpers()
    pool.keep_clear()
    job = _Job(kernel, arguments, helpers)
    for _ in range(helpers):
        pool.jobs.put(job)
    try:
        kernel(*arguments, job.counter)
    finally:
        job.finish()
