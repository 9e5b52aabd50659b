"""Attention as optimal transport between queries and keys.

Importing this package imports nothing else; the manifest is :mod:`polyattn_transport.plugin`. The
public classes and functions are imported when they are first asked for:

>>> from polyattn_transport import SlicedWassersteinConfig, sinkhorn
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CachedProjections": "projections",
    "CentroidOT": "centroid_ot",
    "CentroidOTConfig": "config",
    "Centroids": "centroids",
    "LowRankOT": "low_rank",
    "LowRankOTConfig": "config",
    "Potentials": "potentials",
    "SinkhornAttention": "entropic",
    "SinkhornConfig": "config",
    "SinkhornResult": "distances",
    "SlicedWasserstein": "sliced",
    "SlicedWassersteinConfig": "config",
    "UnbalancedOT": "entropic",
    "UnbalancedOTConfig": "config",
    "ot_distance": "distances",
    "cluster": "centroids",
    "sets_from_offsets": "projections",
    "sinkhorn": "distances",
    "sliced_wasserstein_distance": "distances",
    "wasserstein_1d": "distances",
}
"""Public name → the module that it is in."""

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *_PUBLIC))
