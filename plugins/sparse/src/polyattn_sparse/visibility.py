"""The keys that queries see, where these are the first so many."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.masks import Mask, MaskShape
from polyattn_core.masks.program import FAR

Array = npt.NDArray[Any]


def visible_counts(mask: Mask | None, shape: MaskShape, start: int, keys: int) -> Array | None:
    """How many of the keys start … start + keys − 1 each query sees: (batch or 1, queries).

    None where the mask lets a query see a key without all keys before it.
    """
    if mask is None:
        return np.full((1, shape.queries), keys, np.int64)
    stack: list[Array] = []
    for step in mask.program(shape):
        if step.kind == "band" and step.integers[0] <= -FAR:
            stack.append((np.arange(shape.queries, dtype=np.int64) + step.integers[1] + 1)[None])
        elif step.kind == "below" and step.table is not None:
            stack.append(step.table[:, None])
        elif step.kind in ("and", "or"):
            count = step.integers[0]
            # Of several first parts of the keys the shortest lies in all, the longest is their sum.
            merge = np.minimum if step.kind == "and" else np.maximum
            merged = stack[-count]
            for other in stack[len(stack) - count + 1 :]:
                merged = merge(merged, other)
            stack[-count:] = [merged]
        else:
            return None
    counts = np.clip(stack[0] - start, 0, keys)
    return np.broadcast_to(counts, (len(counts), shape.queries))
