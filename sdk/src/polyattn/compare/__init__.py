"""Choose an attention mechanism for real data: every candidate acts as a kernel smoother.

Test vectors attend over training vectors, with labels as values. The sharpness of each mechanism
is tuned on a validation part of the training data, and everything is repeated over seeded splits,
so that differences come with their uncertainty.

>>> from polyattn.compare import compare
>>> result = compare("iris", mechanisms=["scaled-dot-product", "l2"])  # doctest: +SKIP
>>> print(result.table())  # doctest: +SKIP
>>> result.recommend().snippet  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._run import Progress, compare
    from .data import Dataset, bundled, load
    from .results import Comparison, Estimate, LeftOut, Metric, Recommendation, Row, Sharpness
    from .settings import Settings

__all__ = [
    "Comparison",
    "Dataset",
    "Estimate",
    "LeftOut",
    "Metric",
    "Progress",
    "Recommendation",
    "Row",
    "Settings",
    "Sharpness",
    "bundled",
    "compare",
    "load",
]

_HOMES = {
    "_run": ("Progress", "compare"),
    "data": ("Dataset", "bundled", "load"),
    "results": (
        "Comparison", "Estimate", "LeftOut", "Metric", "Recommendation", "Row", "Sharpness",
    ),
    "settings": ("Settings",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # The command line imports this package for `--help`: NumPy and pydantic wait for the first use.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
