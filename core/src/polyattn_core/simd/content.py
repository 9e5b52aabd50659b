"""A digest of what a function computes, the same in every process."""

from __future__ import annotations

import hashlib
import types as python_types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# What Numba knows by name: it compiles implementations of its own.
_KNOWN = {"builtins", "cmath", "math", "numba", "numpy", "operator"}


def digest(function: Callable[..., Any]) -> str:
    """Digest of a function's code, constants, and the globals and cells it uses, recursively."""
    return _digest(function, ())


def _digest(function: Any, seen: tuple[int, ...]) -> str:
    function = getattr(function, "py_func", function)
    sha = hashlib.sha256()
    codes = tuple(_codes(function.__code__))
    for code in codes:
        constants = [_constant(c) for c in code.co_consts]
        sha.update(code.co_code + repr((code.co_names, constants)).encode())
    names = {name for code in codes for name in code.co_names}
    used = {name: function.__globals__[name] for name in names if name in function.__globals__}
    if function.__closure__:
        cells = (cell.cell_contents for cell in function.__closure__)
        used.update(zip(function.__code__.co_freevars, cells, strict=True))
    sha.update(repr((function.__defaults__, function.__kwdefaults__)).encode())
    for name in sorted(used):
        sha.update(name.encode())
        sha.update(_value(used[name], names, (*seen, id(function))).encode())
    return sha.hexdigest()


def _codes(code: python_types.CodeType) -> Iterator[python_types.CodeType]:
    """A function's code and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, python_types.CodeType):
            yield from _codes(constant)


def _constant(constant: object) -> str:
    if isinstance(constant, python_types.CodeType):
        return "code"  # repr would tell its address
    if isinstance(constant, frozenset):
        return repr(sorted(map(repr, constant)))
    return repr(constant)


def _value(value: Any, names: set[str], seen: tuple[int, ...]) -> str:
    """What is behind a name; of a module, what the function's code may take from it."""
    inner = getattr(value, "py_func", value)
    if isinstance(inner, python_types.FunctionType):
        return "" if id(inner) in seen else _digest(inner, seen)
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(value.tobytes()).hexdigest()
        return f"{value.dtype} {value.shape} {content}"
    if isinstance(value, python_types.ModuleType):
        text = value.__name__
        if id(value) not in seen and text.partition(".")[0] not in _KNOWN:
            members = vars(value)
            for name in sorted(names & members.keys()):
                text += f" {name} {_value(members[name], names, (*seen, id(value)))}"
        return text
    return repr(value)
