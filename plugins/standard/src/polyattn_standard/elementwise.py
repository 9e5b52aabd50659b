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
    """Each weight by itself.

        σ(scale · q·kᵀ + offset) v,   offset = −ln(number of keys)

    Keys do not compete, so a row's weights need not sum to 1. Ramapuram et al., Theory, analysis,
    and best practices for sigmoid self-attention, arXiv:2409.04431.
    """

    normaliser = "elementwise"

    def _weight_rule(self, call: Call) -> tuple[ScoreRule, Sequence[Any]]:
        from .kernels import sigmoid_weight

        offset = self.config.offset
        return sigmoid_weight, (-math.log(call.shape.keys) if offset is None else offset,)


class ReluSquared(StreamingMechanism):
    """Squared rectified scores.

        relu(scale · q·kᵀ)² / n v

    where n is the number of keys. Hua et al., Transformer quality in linear time,
    arXiv:2202.10447; division by n as in arXiv:2309.08586.
    """

    normaliser = "elementwise"

    def _weight_rule(self, call: Call) -> tuple[ScoreRule, Sequence[Any]]:
        from .kernels import relu_squared_weight

        return relu_squared_weight, (1 / call.shape.keys if self.config.mean else 1.0,)
