"""Rotary positions of whole calls, for mechanisms that are not on the streaming engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call
from polyattn_core.positions import Rope, rotate

Back = Callable[[Array, Array], tuple[Array, Array]]
"""From gradients by what was turned to those by queries and keys."""


def turned(call: Call, position: Any) -> tuple[Call, Back]:
    """The call with queries and keys turned to their positions, where these are rotary."""
    if not isinstance(position, Rope):
        return call, lambda query, key: (query, key)
    theirs = np.arange(call.shape.keys)
    own = theirs[-1:] + np.arange(1 - call.shape.queries, 1)

    def back(query: Array, key: Array) -> tuple[Array, Array]:
        return (
            rotate(query, own, position, inverse=True),
            rotate(key, theirs, position, inverse=True),
        )

    query, key = rotate(call.query, own, position), rotate(call.key, theirs, position)
    return replace(call, query=query, key=key), back
