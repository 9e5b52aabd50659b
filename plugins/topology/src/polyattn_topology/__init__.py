"""Topology of the keys: coherence, persistence, and attention that is gated by it.

The names below are imported on first use; the manifest is :mod:`polyattn_topology.plugin`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AttentionMode": "config",
    "CoherenceMetric": "config",
    "CoherencePolicy": "policy",
    "GateState": "config",
    "MincutGatedConfig": "config",
    "PolicyConfig": "config",
    "TopologyGatedAttention": "gated",
    "TopologyGatedConfig": "config",
    "WindowCoherence": "coherence",
    "persistence_h0": "persistence",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)
