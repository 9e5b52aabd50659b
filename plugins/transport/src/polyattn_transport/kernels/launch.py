"""What launches the kernels: allocates, and shares work between threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.simd import engine, threads

from .candidates import candidates_kernel
from .gathered import gathered_gradient_kernel, gathered_kernel

Array = npt.NDArray[Any]
_SMALL = 1 << 15  # pairs below which starting another thread costs more than it saves


def _threads(pairs: int, limit: int | None) -> int:
    return 1 if pairs < _SMALL else min(limit or threads.limit(), threads.limit())


def filtered(request: engine.Request, candidates: int) -> Array:
    """Keys with the highest scores (batch, heads, queries, candidates); −1 beyond the last."""
    batch, heads, queries = request.query.shape[:3]
    keys = request.key.shape[2]
    index = np.empty((batch, heads, queries, min(candidates, keys)), np.int32)
    kernel = candidates_kernel(str(request.query.dtype)).compile()
    workers = _threads(batch * heads * queries * keys, request.threads)
    threads.run(kernel, (*engine.arguments(request), index), batch * heads * queries, workers)
    return index


def attend(
    index: Array, x: Any, y: Any, value: Array, sharpness: float, power: float, limit: int | None
) -> tuple[Array, Array, Array]:
    """Output, weights of the candidates and log-sum-exp."""
    batch, heads, queries, _ = index.shape
    dtype = value.dtype
    weights = np.empty(index.shape, dtype)
    logs = np.empty((batch, heads, queries), dtype)
    out = np.empty((batch, heads, queries, value.shape[3]), dtype)
    arguments = (
        index, x.values, _integers(x.lengths), y.values, _integers(y.lengths),
        np.ascontiguousarray(value), x.even and y.even and x.values.shape[4] == y.values.shape[4],
        np.array((sharpness, power), dtype), weights, logs, out,
    )  # fmt: skip
    workers = _threads(index.size, limit)
    threads.run(gathered_kernel(str(dtype)).compile(), arguments, batch * heads * queries, workers)
    return out, weights, logs


def gradients(
    index: Array, x: Any, y: Any, value: Array, sharpness: float, power: float, weights: Array,
    gradient: Array, limit: int | None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Gradients by the sorted numbers of queries and keys, and by values."""
    d_x, d_y = np.zeros_like(x.values), np.zeros_like(y.values)
    d_value = np.zeros(value.shape, value.dtype)
    arguments = (
        index, x.values, _integers(x.lengths), y.values, _integers(y.lengths),
        np.ascontiguousarray(value), x.even and y.even and x.values.shape[4] == y.values.shape[4],
        np.array((sharpness, power), value.dtype), weights, np.ascontiguousarray(gradient),
        d_x, d_y, d_value,
    )  # fmt: skip
    tasks = value.shape[0] * value.shape[1]
    kernel = gathered_gradient_kernel(str(value.dtype)).compile()
    threads.run(kernel, arguments, tasks, _threads(index.size, limit))
    return d_x, d_y, d_value


def _integers(array: Array) -> Array:
    return np.ascontiguousarray(array, np.int64)
