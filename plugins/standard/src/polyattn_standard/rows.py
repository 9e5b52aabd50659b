"""A mask's rows for a few queries, as booleans: what the streaming kernels ask tile by tile."""

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
    """Answers which keys some consecutive queries see; never holds queries × keys."""

    def __init__(self, mask: Mask, shape: MaskShape) -> None:
        from polyattn_core.simd import masking

        self._code = masking.encode(mask.program(shape))
        self._shape = shape
        steps = self._code.steps
        # Where no table and no predicate tells heads apart, one head speaks for all.
        predicates = any(step[0] == masking.PREDICATE for step in steps)
        self._heads = shape.heads if predicates or steps[:, 5].any() else 1

    def __call__(self, batch: int, first: int, count: int) -> npt.NDArray[np.bool_]:
        """(heads or 1, count, keys) for queries `first` …"""
        code, keys = self._code, self._shape.keys
        found = np.empty((self._heads, max(code.depth, 1), keys, count), np.uint8)
        stack = np.empty(2 * max(len(code.steps), 1), np.int64)
        for head in range(self._heads):
            place = np.array(
                (batch, head, first, count, self._shape.queries, keys, 0, keys, count), np.int64
            )
            _fill()(
                code.steps.ctypes.data, len(code.steps), code.integers.ctypes.data,
                code.octets.ctypes.data, place.ctypes.data, stack.ctypes.data,
                found[head].ctypes.data,
            )  # fmt: skip
        return found[:, 0].swapaxes(1, 2).astype(bool)
