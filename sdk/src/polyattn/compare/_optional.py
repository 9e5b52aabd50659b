"""Optional dependencies, imported where they are needed."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from polyattn_core.errors import PolyattnError

INSTALL = 'pip install "polyattn[compare]"'


class DependencyError(PolyattnError, ImportError):
    """A package that only some functions need is not installed."""

    def __init__(self, package: str, purpose: str) -> None:
        super().__init__(package, purpose)
        self.package = package
        self.purpose = purpose

    def __str__(self) -> str:
        return f"{self.purpose} needs {self.package}, which is not installed: {INSTALL}"


def need(module: str, package: str, purpose: str) -> Any:
    """Import an optional module.

    Raises
    ------
    DependencyError
        If it is not installed, saying how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the package is there, but broken: its own message says more
        raise DependencyError(package, purpose) from None


def limited_threads(threads: int | None) -> AbstractContextManager[Any]:
    """Limit the threads of NumPy and scikit-learn; None leaves them alone."""
    if threads is None:
        return nullcontext()
    control = need("threadpoolctl", "threadpoolctl", "limiting threads")
    limits: AbstractContextManager[Any] = control.threadpool_limits(limits=threads)
    return limits
