"""Kernels of optimisers: parameters and moments change where they lie, in one pass over memory."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba.core import types

from . import threads
from .jit import Kernel
from .scores import counter_type, take_task

_BLOCK = 1 << 16  # numbers of a task
_SMALL = 1 << 15  # numbers below which another thread costs more than it saves


def _vector(dtype: str, *, written: bool) -> Any:
    return types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C", readonly=not written)


@functools.cache
def _adam_kernel(dtype: str) -> Kernel:
    number = np.dtype(dtype).type
    one = number(1)

    def adam(
        x, gradient, first, second, keep, coupled, b1, b2, rate, root, epsilon, block, counter
    ):  # type: ignore[no-untyped-def]
        rest1, rest2 = one - b1, one - b2
        size = x.shape[0]
        while True:
            start = take_task(counter) * block
            if start >= size:
                break
            end = min(start + block, size)
            # Indices from 0 on, or the loop does not vectorise: they might be negative.
            a, b, c, d = x[start:end], gradient[start:end], first[start:end], second[start:end]
            for i in range(a.shape[0]):
                g = b[i] + coupled * a[i]
                m = c[i] + rest1 * (g - c[i])
                v = b2 * d[i] + rest2 * g * g
                c[i], d[i] = m, v
                a[i] = keep * a[i] - rate * m / (np.sqrt(v) * root + epsilon)

    kind, write = numba.from_dtype(np.dtype(dtype)), _vector(dtype, written=True)
    signature = types.void(
        write, _vector(dtype, written=False), write, write, *(7 * (kind,)), types.int64,
        counter_type(),
    )  # fmt: skip
    return Kernel(adam, signature, dtype)


@functools.cache
def _sgd_kernel(dtype: str) -> Kernel:
    def sgd(x, gradient, velocity, rate, momentum, coupled, nesterov, block, counter):  # type: ignore[no-untyped-def]
        size = x.shape[0]
        moving = velocity.shape[0] > 0
        while True:
            start = take_task(counter) * block
            if start >= size:
                break
            end = min(start + block, size)
            a, b, c = x[start:end], gradient[start:end], velocity[start:end]
            if not moving:
                for i in range(a.shape[0]):
                    a[i] -= rate * (b[i] + coupled * a[i])
            elif nesterov:
                for i in range(a.shape[0]):
                    g = b[i] + coupled * a[i]
                    v = momentum * c[i] + g
                    c[i] = v
                    a[i] -= rate * (g + momentum * v)
            else:
                for i in range(a.shape[0]):
                    v = momentum * c[i] + b[i] + coupled * a[i]
                    c[i] = v
                    a[i] -= rate * v

    kind, write = numba.from_dtype(np.dtype(dtype)), _vector(dtype, written=True)
    signature = types.void(
        write, _vector(dtype, written=False), write, kind, kind, kind, types.boolean, types.int64,
        counter_type(),
    )  # fmt: skip
    return Kernel(sgd, signature, dtype)


def _run(kernel: Kernel, arguments: tuple[Any, ...], size: int) -> None:
    workers = 1 if size < _SMALL else threads.limit()
    threads.run(kernel.compile(), (*arguments, _BLOCK), -(-size // _BLOCK), workers)


def _frozen(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view


def adam(
    x: Any, gradient: Any, first: Any, second: Any, *, rate: float, betas: tuple[float, float],
    epsilon: float, step: int, coupled: float = 0.0, decoupled: float = 0.0,
) -> None:  # fmt: skip
    """One step of Adam on flat arrays of one dtype; all but the gradient are written.

    `step` counts from 1. A weight decay is `coupled` if it is added to the gradient (Adam) and
    `decoupled` if the parameters shrink by it beside the step (AdamW).
    """
    number = x.dtype.type
    b1, b2 = betas
    numbers = (
        1 - rate * decoupled, coupled, b1, b2, rate / (1 - b1**step), (1 - b2**step) ** -0.5,
        epsilon,
    )  # fmt: skip
    arguments = (x, _frozen(gradient), first, second, *map(number, numbers))
    _run(_adam_kernel(x.dtype.name), arguments, x.size)


def sgd(
    x: Any, gradient: Any, velocity: Any, *, rate: float, momentum: float, coupled: float,
    nesterov: bool,
) -> None:  # fmt: skip
    """One step of gradient descent on flat arrays of one dtype; no momentum: velocity is None."""
    number = x.dtype.type
    moving = np.empty(0, x.dtype) if velocity is None else velocity
    arguments = (
        x, _frozen(gradient), moving, number(rate), number(momentum), number(coupled), nesterov
    )  # fmt: skip
    _run(_sgd_kernel(x.dtype.name), arguments, x.size)


__all__ = ["adam", "sgd"]
