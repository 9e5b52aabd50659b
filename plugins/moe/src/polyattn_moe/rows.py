"""A mask's rows for chosen queries, as booleans: what the streaming kernels ask tile by tile."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.masks import Mask, MaskShape


@functools.cache
def _fill() -> Any:
    from polyattn_core.simd import masking

    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    types = (pointer, whole, pointer, pointer, pointer, pointer, pointer)
    return ctypes.CFUNCTYPE(whole, *types)(masking.interpreter().fill.address)


class VisibleRows:
    """Answers which keys some queries see; never holds queries × keys."""

    def __init__(self, mask: Mask, shape: MaskShape) -> None:
        from polyattn_core.simd import masking

        self._code = masking.encode(mask.program(shape))
        self._shape = shape
        steps = self._code.steps
        # Where no table and no predicate tells heads apart, one head speaks for all.
        predicates = any(step[0] == masking.PREDICATE for step in steps)
        self._apart = bool(predicates or steps[:, 5].any())

    def __call__(self, batch: int, heads: range, rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """(heads or 1, rows, keys)."""
        code, keys = self._code, self._shape.keys
        if not self._apart:
            heads = heads[:1]
        found = np.empty((len(heads), len(rows), keys), bool)
        tiles = np.empty((max(code.depth, 1), keys), np.uint8)
        stack = np.empty(2 * max(len(code.steps), 1), np.int64)
        place = np.array((batch, 0, 0, 1, self._shape.queries, keys, 0, keys, 1), np.int64)
        fill, addresses = _fill(), [
            x.ctypes.data for x in (code.integers, code.octets, place, stack, tiles)
        ]  # fmt: skip
        for h, head in enumerate(heads):
            for r, row in enumerate(rows):
                place[1], place[2] = head, row
                fill(code.steps.ctypes.data, len(code.steps), *addresses)
                found[h, r] = tiles[0]
        return found
