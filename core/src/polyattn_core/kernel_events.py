"""Compilations as events: what ties the kernels, which know nothing of core, to the bus."""

from __future__ import annotations

from . import diagnostics


def connect() -> None:
    """Publish `KernelCompiled` from now on, where anybody wants it; once is enough.

    Called when the base class of mechanisms is imported. Loads no Numba.
    """
    from .simd.notices import listeners

    if _publish not in listeners:
        listeners.append(_publish)


def _publish(kernel: str, seconds: float, from_cache: bool) -> None:
    if diagnostics.wanted(diagnostics.KernelCompiled):
        diagnostics.publish(
            diagnostics.KernelCompiled(kernel=kernel, seconds=seconds, from_cache=from_cache)
        )
