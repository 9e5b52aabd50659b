"""Mechanisms that differ from the transformer's attention in their score alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call
from polyattn_core.streaming import StreamingMechanism

if TYPE_CHECKING:
    from polyattn_core.simd.rules import ScoreRule

    Rules = Sequence[tuple[ScoreRule, Sequence[Any]]]


class ScaledDotProduct(StreamingMechanism):
    """The attention of the transformer.

        softmax(scale · q·kᵀ) v,   scale = 1/√d

    O(n² d) time, O(n d) memory. Vaswani et al., Attention is all you need, arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).normal(size=(5, 8))
    >>> pa.create("scaled-dot-product", dim=8, heads=2)(x).shape
    (5, 8)
    """


class Cosine(StreamingMechanism):
    """The angle between query and key.

        softmax(g · q̂·k̂) v,   x̂ = x / max(‖x‖, ε)

    where g is a learned gain of each head (parameter `gain`). Scores stay within ±g whatever the
    lengths of the vectors. Henry et al., Query-key normalization, arXiv:2010.04245.
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        gains = np.full(self.config.heads, self.config.scale, np.float64)
        return {**super()._initial_parameters(rng), "gain": gains}

    def _scale(self, call: Call) -> float:
        return 1.0

    def _rules(self, call: Call) -> Rules:
        from .kernels import gain

        return [(gain, (self.parameters["gain"],))]

    def _transform(self, query: Array, key: Array) -> tuple[Array, Array, Any]:
        epsilon = self.config.epsilon
        unit_query, query_length = _unit(query, epsilon)
        unit_key, key_length = _unit(key, epsilon)

        def undo(d_query: Array, d_key: Array) -> tuple[Array, Array]:
            return (
                _unit_pullback(d_query, unit_query, query_length, epsilon),
                _unit_pullback(d_key, unit_key, key_length, epsilon),
            )

        return unit_query, unit_key, undo

    def _parameter_gradients(self, rule_parameters: Array, sink: Array | None) -> dict[str, Array]:
        return {"gain": rule_parameters[:, 0]}


def _unit(array: Array, epsilon: float) -> tuple[Array, Array]:
    length = np.sqrt(np.einsum("...d,...d->...", array, array))[..., None]
    return array / np.maximum(length, epsilon), length


def _unit_pullback(gradient: Array, unit: Array, length: Array, epsilon: float) -> Array:
    along = np.einsum("...d,...d->...", gradient, unit)[..., None]
    tangent = gradient - np.where(length > epsilon, along, 0) * unit
    return np.asarray(tangent / np.maximum(length, epsilon))


class L2(StreamingMechanism):
    """Squared Euclidean distance.

        softmax(−scale · ‖q − k‖²) v,   scale = 1/√d

    Unlike the dot product it is Lipschitz where queries and keys share their projection. Kim et
    al., The Lipschitz constant of self-attention, arXiv:2006.04710.
    """

    def _scale(self, call: Call) -> float:
        return 1.0

    def _sharpness(self, call: Call) -> Any:
        return super()._scale(call)

    def _rules(self, call: Call) -> Rules:
        from .kernels import squared_distance

        return [(squared_distance, (self._sharpness(call),))]


class Gaussian(L2):
    """A Gaussian kernel of a chosen width.

        softmax(−‖q − k‖² / (2σ²)) v

    With σ² = √d / 2 it is `l2`. A width for each head makes heads look near and far.
    """

    def _sharpness(self, call: Call) -> Any:
        width = self.config.bandwidth
        width = math.sqrt(call.query.shape[-1]) if width is None else width
        return 0.5 / np.square(np.asarray(width, np.float64))


class SoftmaxOne(StreamingMechanism):
    """Soft-max with a learned sink.

        eˢ / (e^sink + Σ eˢ) v,   s = scale · q·kᵀ

    The weights of a row sum to less than 1: what is left goes to the sink, which has no value. With
    the initial sink of 0 this is the "soft-max one". The parameter is `sink` (heads). Xiao et al.,
    Efficient streaming language models with attention sinks, arXiv:2309.17453, section 3.3;
    a learned sink score for each head is used by gpt-oss.
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        sinks = np.full(self.config.heads, self.config.sink, np.float64)
        return {**super()._initial_parameters(rng), "sink": sinks}

    def _sink(self) -> Array:
        return self.parameters["sink"]

    def _parameter_gradients(self, rule_parameters: Array, sink: Array | None) -> dict[str, Array]:
        assert sink is not None
        return {"sink": sink}
