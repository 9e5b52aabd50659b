"""The one place that decides how anything is compiled.

Kernels release the GIL, divide like NumPy, and are compiled for one explicit signature on first
use, through the cache of :mod:`polyattn_core.simd.cache`.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from . import notices
from .cache import KernelCache, sources_digest

FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
"""All but `nnan` and `ninf`, with which a masked row turns into NaN and `isnan` lies.

`math.isfinite` still does, as x − x counts as 0: compare with infinity."""

OPTIONS: dict[str, Any] = {"fastmath": FASTMATH, "error_model": "numpy", "nogil": True}

WITHOUT_CALLS: dict[str, Any] = {**OPTIONS, "forceinline": True}
"""For functions of a number: a call that is left in a loop keeps it from being vectorised."""

listeners = notices.listeners
"""Called with (kernel, seconds, from the cache) after each compilation or load."""

_compiling = threading.RLock()


def inline(function: Callable[..., Any]) -> Any:
    """A helper that is compiled by itself and linked into the kernels that call it."""
    return numba.njit(**OPTIONS)(function)


def embed(function: Callable[..., Any]) -> Any:
    """A helper that becomes part of its caller before types are inferred.

    For what a kernel calls once, that halves the time to compile it: nothing is optimised twice,
    and no array is taken apart to be passed.
    """
    return numba.njit(**OPTIONS, inline="always")(function)


def _key(function: Callable[..., Any], tag: str) -> str:
    """Tells apart kernels within a generation; covers the sources of the function's package."""
    file = function.__code__.co_filename
    sources = sources_digest(Path(file).parent) if Path(file).is_file() else ""
    name = f"{function.__module__}.{function.__qualname__}"
    return f"{name} {tag} {hashlib.sha256(sources.encode()).hexdigest()[:16]}"


def _compile(compilable: Any, key: str, compile_now: Callable[[], object]) -> tuple[float, bool]:
    """Compile, or load; returns the seconds that took, and whether it was loaded."""
    cache = KernelCache(key)
    compilable._cache = cache
    start = time.perf_counter()
    compile_now()
    return time.perf_counter() - start, cache.hits > 0


class Kernel:
    """A function compiled for one signature on its first call.

    `tag` tells kernels made from the same source apart: the dtype, the rule.
    """

    def __init__(self, function: Callable[..., Any], signature: Any, tag: str) -> None:
        self.name = f"{function.__module__}.{function.__qualname__}[{tag}]"
        self._function = function
        self._signature = signature
        self._tag = tag
        self._dispatcher: Any = None

    def compile(self) -> Any:
        """The compiled function; compiles it if that has not happened yet."""
        if self._dispatcher is None:
            took = self._compile()
            if took is not None:
                # Not under the lock: a listener may wait for another thread.
                notices.tell(self.name, *took)
        return self._dispatcher

    def _compile(self) -> tuple[float, bool] | None:
        with _compiling:
            if self._dispatcher is not None:  # another thread was faster
                return None
            dispatcher: Any = numba.njit(**OPTIONS)(self._function)
            took = _compile(
                dispatcher,
                _key(self._function, self._tag),
                lambda: dispatcher.compile(self._signature),
            )
            dispatcher.disable_compile()
            self._dispatcher = dispatcher
            return took

    def __call__(self, *args: Any) -> Any:
        dispatcher = self._dispatcher
        return (dispatcher if dispatcher is not None else self.compile())(*args)

    def __repr__(self) -> str:
        return f"<kernel {self.name}>"


def callback(function: Callable[..., Any], signature: Any, tag: str) -> Any:
    """Compile a function to C code with an `.address`."""
    with _compiling:
        compiled: Any = CFunc(function, normalize_signature(signature), {}, OPTIONS)
        took = _compile(compiled, _key(function, tag), compiled.compile)
    notices.tell(f"{function.__module__}.{function.__qualname__}[{tag}]", *took)
    return compiled
