"""Who is told when a kernel was compiled. Imports nothing: core may ask before Numba loads."""

from __future__ import annotations

from collections.abc import Callable

listeners: list[Callable[[str, float, bool], None]] = []
"""Called with (kernel, seconds, from the cache) after each compilation or load, in its thread."""


def tell(kernel: str, seconds: float, from_cache: bool) -> None:
    """Tell everybody that a kernel was compiled or loaded."""
    for listener in tuple(listeners):
        listener(kernel, seconds, from_cache)
