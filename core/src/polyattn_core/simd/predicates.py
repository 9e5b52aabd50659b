"""Mask predicates written by users, compiled into functions that fill a tile."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numba
from numba.core import types
from numba.core.errors import NumbaError

from ..errors import KernelError
from .content import digest
from .jit import OPTIONS, callback

_I64 = types.int64
_SIGNATURE = types.void(*[_I64] * 7, types.CPointer(types.uint8))
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
    jitted = function if hasattr(function, "py_func") else numba.njit(**OPTIONS)(function)

    def fill(batch, head, query, queries, key, keys, wide, out):  # type: ignore[no-untyped-def]
        for k in range(keys):
            for j in range(queries):
                seen = jitted(batch, head, query + j, key + k)
                out[k * wide + j] = 1 if seen else 0

    try:
        found = callback(fill, _SIGNATURE, f"predicate {digest(python)}")
    except NumbaError as error:
        name = getattr(python, "__qualname__", repr(python))
        code = getattr(python, "__code__", None)
        place = f"{code.co_filename}:{code.co_firstlineno}" if code else "unknown source"
        raise KernelError(
            f"the mask predicate {name} ({place}) cannot be compiled: {error}"
        ) from error
    return _compiled.setdefault(python, found)
