"""From a mechanism on the streaming engine to the decode kernel, which reads caches as they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Array
from .cached import CachedCall
from .masks import Causal
from .mechanism import Call
from .partial import PartialState
from .positions import Rope, T5Bias, distances, rotate, t5_buckets

if TYPE_CHECKING:
    from .streaming import StreamingMechanism

_UNCHANGED = ("_transform", "_partial", "_request")
"""Methods in which a mechanism may change the keys, which are read as they are stored."""
_FEW_ROWS = 8
"""Query rows of a key head up to which each row by itself is faster than a tile."""


def attend_stored(mechanism: StreamingMechanism, cached: CachedCall) -> PartialState | None:
    """The state over a part of a cache; None where the kernel is not made for the call."""
    from .simd import decoding, masking
    from .streaming import StreamingMechanism, bias_view

    query, part = cached.query, cached.part
    batch, heads, queries, _ = query.shape
    shared = heads // part.key.data.shape[1] * queries
    kind = type(mechanism)
    changed = any(getattr(kind, n) is not getattr(StreamingMechanism, n) for n in _UNCHANGED)
    if mechanism.normaliser != "softmax" or changed or shared > _FEW_ROWS:
        return None
    totals = cached.totals
    alike = bool((totals == totals[0]).all())
    key, value = (
        np.zeros((batch, rows.data.shape[1], 0, rows.size), query.dtype)
        for rows in (part.key, part.value)
    )
    calls = [
        Call(query, key, value, cached.shape(total))
        for total in (totals[:1] if alike else totals).tolist()
    ]
    rules = [mechanism._all_rules(call) for call in calls]
    if mechanism._components(calls[0]) is not None or not decoding.supports(rules[0]):
        return None
    if isinstance(mechanism.config.position, Rope):
        query = rotate(query, part.rotations[:, None], mechanism.config.position)
    scores = decoding.Scores(mechanism._scale(calls[0]), rules)
    masks = [mechanism.combined_mask(cached.mask, call.shape) for call in calls]
    if masks[0] is not None and not (queries == 1 and masks[0] == Causal()):
        scores.masks = [
            mechanism._encoded(mask, call, masking)
            for mask, call in zip(masks, calls, strict=True)
            if mask is not None
        ]
    longest = calls[int(totals.argmax()) if len(calls) > 1 else 0]
    if isinstance(mechanism.config.position, T5Bias):
        scores.bias = _relative(mechanism, mechanism.config.position, longest)
        scores.bias_shift = totals.max() - totals
    elif cached.bias is not None:
        longest.bias = cached.bias
        scores.bias, scores.bias_batch = bias_view(longest)
    stored = decoding.Stored(
        part.key.storage, part.key.data, part.value.data, part.runs, part.starts, totals,
        part.key.scales, part.value.scales, part.key.width, part.value.width, part.key.group,
    )  # fmt: skip
    out, logs = decoding.attend(query, stored, scores, mechanism.config.threads)
    return PartialState(out[..., : part.value.size], logs, mechanism._sink())


def _relative(mechanism: Any, position: T5Bias, call: Call) -> Array:
    """T5's biases (1, heads, queries, keys), each distance in memory once."""
    from .simd.arguments import by_distance

    shape = call.shape
    table = mechanism.parameters["position.table"].astype(call.dtype)
    relative = table[:, t5_buckets(distances(shape.queries, shape.keys), position)]
    return by_distance(np.ascontiguousarray(relative)[None], shape.queries, shape.keys)
