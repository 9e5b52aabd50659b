"""From calls to requests of the engine: rules, masks, positions and biases as kernels take them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Array
from .call import Call
from .errors import ArgumentError
from .positions import Rope, T5Bias, distances, rotate, t5_buckets

if TYPE_CHECKING:
    from .simd.engine import Request
    from .streaming import StreamingMechanism


def build(mechanism: StreamingMechanism, call: Call) -> tuple[Request, Any]:
    """The engine's request, and a pullback of what was done to queries and keys before."""
    from .simd import masking
    from .simd.engine import NORMALISERS, Request

    config = mechanism.config
    query, key, undo = mechanism._transform(call.query, call.key)
    if isinstance(config.position, Rope):
        query, key, undo = mechanism._rotate(call, query, key, undo)
    request = Request(
        query, key, call.value, mechanism._scale(call), NORMALISERS[mechanism.normaliser],
        mechanism._all_rules(call), threads=config.threads,
    )  # fmt: skip
    request.components = mechanism._components(call) or ()
    shape = call.shape
    if call.mask is not None:
        request.mask = mechanism._encoded(call.mask, call, masking)
    request.mask_queries, request.mask_keys = shape.queries, shape.keys
    request.key_start = call.key_start
    request.sink = mechanism._sink()
    request.top = mechanism._top(call)
    request.epsilon = mechanism._epsilon()
    request.block = mechanism._block()
    request.reproducible = mechanism._reproducible
    if call.seed is not None:
        request.seed, request.keep = call.seed, 1 - config.dropout
    if isinstance(config.position, T5Bias):
        if call.bias is not None:
            raise ArgumentError(
                "bias", "an array besides position='t5'", "one of both: add them up yourself"
            )
        table = mechanism.parameters["position.table"].astype(call.dtype)
        buckets = t5_buckets(distances(shape.queries, shape.keys), config.position)
        request.relative = np.ascontiguousarray(table[:, buckets])
    elif call.bias is not None:
        request.bias, request.bias_batch = bias_view(call)
    return request, undo


def turned(call: Call, rope: Rope, query: Array, key: Array, undo: Any) -> tuple[Array, Array, Any]:
    """Queries and keys in their rotary positions, and the pullback that undoes this and `undo`."""
    if call.query_rotation is not None:
        return rotate(query, call.query_rotation, rope), key, undo
    own = np.arange(call.shape.queries) + call.shape.keys - call.shape.queries
    theirs = np.arange(key.shape[-2]) + call.key_start

    def back(d_query: Array, d_key: Array) -> tuple[Array, Array]:
        d_query = rotate(d_query, own, rope, inverse=True)
        d_key = rotate(d_key, theirs, rope, inverse=True)
        return (d_query, d_key) if undo is None else undo(d_query, d_key)

    return rotate(query, own, rope), rotate(key, theirs, rope), back


def table_gradient(call: Call, position: T5Bias, by_distance: Array) -> Array:
    """The gradient of the table of T5's buckets, from that by distance (heads, distances)."""
    buckets = t5_buckets(distances(call.shape.queries, call.shape.keys), position)
    gradient = np.zeros((position.buckets, by_distance.shape[0]), by_distance.dtype)
    np.add.at(gradient, buckets, by_distance.T)
    return np.ascontiguousarray(gradient.T)


def bias_view(call: Call) -> tuple[Array, Array]:
    """The bias as (bias batches, heads, queries, keys) with strides 0 where it is broadcast."""
    bias, shape = call.bias, call.shape
    assert bias is not None
    bias = bias.reshape((1,) * max(0, 3 - bias.ndim) + bias.shape)
    own = bias.shape[:-3]
    flat = bias.reshape((math.prod(own), *bias.shape[-3:]))
    batches = np.broadcast_to(np.arange(len(flat)).reshape(own), shape.lead).reshape(-1)
    full = (len(flat), shape.heads, shape.queries, shape.keys)
    return np.broadcast_to(flat, full), np.ascontiguousarray(batches, np.int64)
