"""Information geometry: attention and steps in the Fisher metric.

The names below are imported on first use; the manifest is :mod:`polyattn_info_geometry.plugin`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "FisherConfig": "config",
    "FisherMetric": "fisher",
    "NaturalGradient": "natural_gradient",
    "NaturalGradientConfig": "config",
    "Solution": "solver",
    "conjugate_gradient": "solver",
    "softmax": "fisher",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)
