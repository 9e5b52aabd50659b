"""Soft-max on the streaming engine, for mechanisms that are not on it as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.simd import engine, masking

Array = npt.NDArray[Any]


def soft_max(
    query: Array, key: Array, value: Array, scale: float, limit: int | None
) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    """softmax(scale · q kᵀ) v of (batch, heads, tokens, size), and its pullback."""
    request = request_of(query, key, value, scale, limit)
    state = engine.forward(request)

    def back(gradient: Array) -> tuple[Array, Array, Array]:
        found = engine.backward(request, state, np.ascontiguousarray(gradient))
        return found.query, found.key, found.value

    return state.out, back


def request_of(
    query: Array, key: Array, value: Array, scale: float, limit: int | None, steps: Any = ()
) -> engine.Request:
    """A request under the mask of these steps."""
    query, key, value = (np.ascontiguousarray(x) for x in (query, key, value))
    request = engine.Request(query, key, value, scale, threads=limit)
    if steps:
        request.mask = masking.encode(steps)
        request.mask_queries, request.mask_keys = query.shape[2], key.shape[2]
    return request


def forward(request: engine.Request) -> tuple[Array, Array]:
    """The output and the log-sum-exp."""
    state = engine.forward(request)
    return state.out, state.first


def backward(
    request: engine.Request, out: Array, log_sum_exp: Array, gradient: Array
) -> tuple[Array, Array, Array]:
    """Gradients by query, key and value of a part of a soft-max whose whole came to this."""
    state = engine.State(out, log_sum_exp, np.zeros_like(log_sum_exp))
    found = engine.backward(request, state, gradient)
    return found.query, found.key, found.value


__all__ = ["backward", "forward", "request_of", "soft_max"]
