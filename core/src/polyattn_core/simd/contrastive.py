"""Cross-entropy over rows of logits and its gradient, in the memory of the logits."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba.core import types

from . import threads
from .jit import Kernel
from .mathematics import exp
from .scores import counter_type, take_task

_ROWS = 8  # of a task


@functools.cache
def _kernel(dtype: str) -> Kernel:
    number = np.dtype(dtype).type
    zero, lowest = number(0), number(-np.inf)

    def cross_entropy(products, targets, scale, weight, losses, counter):  # type: ignore[no-untyped-def]
        rows, columns = products.shape
        while True:
            start = take_task(counter) * _ROWS
            if start >= rows:
                break
            for i in range(start, min(start + _ROWS, rows)):
                row = products[i]
                target = row[targets[i]] * scale
                highest = lowest
                for j in range(columns):
                    highest = max(highest, row[j] * scale)
                total = zero
                for j in range(columns):
                    grown = exp(row[j] * scale - highest)
                    row[j] = grown
                    total += grown
                losses[i] = np.log(total) + highest - target
                factor = weight * scale / total
                for j in range(columns):
                    row[j] *= factor
                row[targets[i]] -= weight * scale

    kind = numba.from_dtype(np.dtype(dtype))
    signature = types.void(
        types.Array(kind, 2, "C"), types.Array(types.int64, 1, "C"), kind, kind,
        types.Array(kind, 1, "C"), counter_type(),
    )  # fmt: skip
    return Kernel(cross_entropy, signature, dtype)


def cross_entropy(products: Any, targets: Any, scale: float, weight: float, losses: Any) -> None:
    """losses[i] = −log softmax(scale · products[i])[targets[i]].

    Overwrites `products`, (rows, columns), with the gradient of `weight` times the losses by them.
    """
    number = products.dtype.type
    arguments = (products, targets, number(scale), number(weight), losses)
    workers = 1 if products.size < 1 << 15 else threads.limit()
    run = _kernel(products.dtype.name).compile()
    threads.run(run, arguments, -(-len(products) // _ROWS), workers)


__all__ = ["cross_entropy"]
