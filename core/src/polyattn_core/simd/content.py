"""A digest of what a function computes, the same in every process."""

from __future__ import annotations

import hashlib
import types as python_types
from collections.abc import Callable
from typing import Any

import numpy as np


def digest(function: Callable[..., Any]) -> str:
    """Digest of a function's code, constants, and the globals and cells it uses, recursively."""
    return _digest(function, ())


def _digest(function: Any, seen: tuple[int, ...]) -> str:
    function = getattr(function, "py_func", function)
    code = function.__code__
    sha = hashlib.sha256()
    _add_code(sha, code)
    used = {
        name: function.__globals__[name] for name in code.co_names if name in function.__globals__
    }
    if function.__closure__:
        cells = (cell.cell_contents for cell in function.__closure__)
        used.update(zip(code.co_freevars, cells, strict=True))
    sha.update(repr(function.__defaults__).encode())
    for name in sorted(used):
        value = used[name]
        sha.update(name.encode())
        if hasattr(getattr(value, "py_func", value), "__code__"):
            if id(value) not in seen:
                sha.update(_digest(value, (*seen, id(function), id(value))).encode())
        elif isinstance(value, np.ndarray):
            sha.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
        elif isinstance(value, python_types.ModuleType):
            sha.update(value.__name__.encode())
        else:
            sha.update(repr(value).encode())
    return sha.hexdigest()


def _add_code(sha: Any, code: python_types.CodeType) -> None:
    sha.update(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, python_types.CodeType):
            _add_code(sha, constant)
        else:
            sha.update(repr(constant).encode())
