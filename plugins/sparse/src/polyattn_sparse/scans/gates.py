"""Gates: passed for each token, or one learned number for all tokens; and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from polyattn_core.arrays import Array, as_array, unbroadcast
from polyattn_core.errors import ShapeError
from polyattn_core.mechanism import Call

Forms = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class Gate:
    """Values (batch, key heads or heads, tokens, 1 or size), and where their gradient goes."""

    values: Array
    backward: Callable[[Array], tuple[dict[str, Array], dict[str, Array]]]
    """From the gradient by the values to those by side inputs and by parameters."""


@dataclass(slots=True)
class Gates:
    """Those of one call."""

    logarithms: Gate | None = None
    beta: Gate | None = None
    value_factor: Gate | None = None
    """Multiplies the values before they are written."""
    side: dict[str, Array] = field(default_factory=dict)
    parameters: dict[str, Array] = field(default_factory=dict)


def passed(call: Call, name: str, key_heads: int, sizes: tuple[int, ...]) -> Gate | None:
    """The side input of this name; `sizes` are those that its last axis may have, () for none."""
    given = call.side.get(name)
    if given is None:
        return None
    array = as_array(given, name)
    heads, tokens = call.query.shape[1], call.key.shape[2]
    tail = array.shape[-3:] if sizes else (*array.shape[-2:], 1)
    fits = (
        len(tail) == 3
        and tail[0] in (1, key_heads, heads)
        and tail[1] == tokens
        and (not sizes or tail[2] in sizes)
    )
    lead = call.shape.lead
    own = array.shape[: -3 if sizes else -2]
    try:
        fits = fits and np.broadcast_shapes(own, lead) == lead
    except ValueError:
        fits = False
    if not fits:
        last = f", {' or '.join(map(str, sizes))}" if sizes else ""
        accepted = f"(…, {key_heads} or {heads} heads, {tokens} tokens{last})"
        raise ShapeError(name, array.shape, accepted)
    used = key_heads if tail[0] == 1 else tail[0]
    full = (*lead, used, *tail[1:])
    values = np.broadcast_to(array.reshape(*own, *tail), full).astype(call.dtype)

    def backward(gradient: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        summed = unbroadcast(gradient.reshape(full), (*own, *tail)).reshape(array.shape)
        return {name: summed.astype(array.dtype, copy=False)}, {}

    return Gate(values.reshape(call.shape.batch, *full[len(lead) :]), backward)


def learned(
    call: Call, name: str, parameter: Array, function: Callable[[Array], tuple[Array, Array]]
) -> Gate:
    """A gate that is the same for all tokens; `function` of the parameter, and its slope.

    The parameter has the shape (key heads,) or (key heads, size).
    """
    wide = parameter.astype(np.float64)
    values, slope = function(wide)
    per_head = values.reshape(len(values), 1, -1)
    batch, tokens = call.shape.batch, call.key.shape[2]
    full = np.broadcast_to(
        per_head.astype(call.dtype), (batch, len(values), tokens, per_head.shape[2])
    )

    def backward(gradient: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        total = gradient.astype(np.float64).sum(axis=(0, 2)).reshape(wide.shape)
        return {}, {name: (total * slope).astype(parameter.dtype)}

    return Gate(full, backward)


def sigmoid(x: Array) -> tuple[Array, Array]:
    """σ(x) and its slope."""
    found = 0.5 * (1 + np.tanh(x / 2))
    return found, found * (1 - found)


def log_sigmoid(x: Array) -> tuple[Array, Array]:
    """ln σ(x) and its slope."""
    return -np.logaddexp(0, -x), sigmoid(-x)[0]
