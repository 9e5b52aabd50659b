"""Mask predicates written by users, compiled into functions that fill a tile."""

from __future__ import annotations

import itertools
import traceback
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.core.errors import NumbaError

from ..errors import KernelError
from .content import digest
from .jit import WITHOUT_CALLS, callback

_I64 = types.int64
_SIGNATURE = types.void(*[_I64] * 7, types.CPointer(types.uint8))
_tried: weakref.WeakKeyDictionary[Callable[..., Any], set[Any]] = weakref.WeakKeyDictionary()
_compiled: weakref.WeakKeyDictionary[Callable[..., Any], Any] = weakref.WeakKeyDictionary()


def compiled(function: Callable[..., Any]) -> Any:
    """Compile ``(batch, head, query, key) -> bool``; has `.address`.

    Raises
    ------
    KernelError
        Where Numba cannot compile it, with Numba's reason.
    """
    python = getattr(function, "py_func", function)
    found = _compiled.get(python)
    if found is not None:
        return found
    jitted = function if hasattr(function, "py_func") else numba.njit(**WITHOUT_CALLS)(function)

    def fill(batch, head, query, queries, key, keys, wide, out):  # type: ignore[no-untyped-def]
        for k in range(keys):
            for j in range(queries):
                seen = jitted(batch, head, query + j, key + k)
                out[k * wide + j] = 1 if seen else 0

    try:
        found = callback(fill, _SIGNATURE, f"predicate {digest(python)}")
    except NumbaError as error:
        raise KernelError(
            f"the mask predicate {_name(python)} ({_place(python)}) cannot be compiled: {error}"
        ) from error
    return _compiled.setdefault(python, found)


def try_out(function: Callable[..., Any], sizes: Sequence[int]) -> None:
    """Call a predicate, uncompiled, at the corners of (batch, heads, queries, keys), once.

    Raises
    ------
    KernelError
        Where it raises, as by reading outside an array, or returns what is neither true nor false.
    """
    python = getattr(function, "py_func", function)
    done = _tried.setdefault(python, set())
    if tuple(sizes) in done:
        return
    ends = [sorted({0, size // 2, size - 1}) for size in sizes]
    for place in itertools.product(*ends):
        try:
            seen = python(*place)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            line = frames[-1] if len(frames) > 1 else frames[0]
            raise KernelError(
                f"the mask predicate {_name(python)} ({line.filename}:{line.lineno}) raises for "
                f"batch, head, query, key = {place}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(seen, bool | np.bool_ | int | np.integer):
            raise KernelError(
                f"the mask predicate {_name(python)} ({_place(python)}) returns {seen!r}; it must "
                "return True or False"
            )
    done.add(tuple(sizes))


def _name(python: Any) -> str:
    return str(getattr(python, "__qualname__", repr(python)))


def _place(python: Any) -> str:
    code = getattr(python, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else "unknown source"
