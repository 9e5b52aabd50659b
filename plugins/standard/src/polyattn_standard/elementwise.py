"""Mechanisms in which each weight depends on its own score alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from polyattn_core.mechanism import Call
from polyattn_core.streaming import StreamingMechanism

if TYPE_CHECKING:
    from polyattn_core.simd.rules import ScoreRule


class Sigmoid(StreamingMechanism):
    """Each key is let through by itself: keys do not compete.

        σ(scale · q·kᵀ + offset) v

    where scale is 1/√(head size) and offset is −ln(keys) unless given, with which the weights of a
    row first sum to about 1. The number of keys is that of the call, masked ones included. Nothing
    makes the weights of a row sum to 1.

    O(n² d) time, O(n d) memory.

    References
    ----------
    Ramapuram et al., Theory, analysis, and best practices for sigmoid self-attention,
    arXiv:2409.04431.

    Examples
    --------
    With one key the offset is 0:

    >>> import polyattn as pa
    >>> sigmoid = pa.create("sigmoid", dim=1)
    >>> sigmoid([1.0], [[0.0]], [[1.0]])
    array([0.5])
    """

    normaliser = "elementwise"

    def _weight_rule(self, call: Call) -> tuple[ScoreRule, Sequence[Any]]:
        from .kernels.rules import sigmoid_weight

        offset = self.config.offset
        return sigmoid_weight, (-math.log(call.shape.keys) if offset is None else offset,)


class ReluSquared(StreamingMechanism):
    """Squared positive scores: no exponential, and exact zeros.

        relu(scale · q·kᵀ)² / n v

    where scale is 1/√(head size) unless given, and n is the number of keys of the call, masked ones
    included; 1 with `mean=False`.

    O(n² d) time, O(n d) memory.

    References
    ----------
    The square: Hua et al., Transformer quality in linear time, arXiv:2202.10447, who divide by n
    inside of it: `scale=1/n, mean=False`. The division of the weights, which keeps outputs of one
    size at any length: Wortsman et al., Replacing softmax with ReLU in vision transformers,
    arXiv:2309.08586.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> attention = pa.create("relu-squared", dim=1)
    >>> attention([1.0], [[-3.0], [2.0]], np.eye(2))
    array([0., 2.])
    """

    normaliser = "elementwise"

    def _weight_rule(self, call: Call) -> tuple[ScoreRule, Sequence[Any]]:
        from .kernels.rules import relu_squared_weight

        return relu_squared_weight, (1 / call.shape.keys if self.config.mean else 1.0,)
