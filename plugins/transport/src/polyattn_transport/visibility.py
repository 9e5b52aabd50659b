"""Masks of keys alone."""

from __future__ import annotations

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.masks import MaskShape
from polyattn_core.mechanism import Call


def visible_keys(call: Call) -> Array:
    """(batch, keys): what a mask that is the same for all queries and heads shows."""
    keys = call.key.shape[2]
    if call.mask is None:
        return np.ones((call.shape.batch, keys), bool)
    return np.asarray(call.mask.dense(MaskShape(call.shape.lead, 1, 1, keys))[:, 0, 0])
