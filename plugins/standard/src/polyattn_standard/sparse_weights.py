"""Mechanisms whose weights are exactly 0 for keys that matter little."""

from __future__ import annotations

from polyattn_core.streaming import StreamingMechanism


class Softpick(StreamingMechanism):
    """Rectified soft-max.

        relu(eˢ − 1) / (Σ |eˢ − 1| + ε) v,   s = scale · q·kᵀ

    Keys with a negative score get nothing, and no key has to serve as a sink. Zuhri et al.,
    Softpick, arXiv:2504.20966.
    """

    normaliser = "softpick"

    def _epsilon(self) -> float:
        return float(self.config.epsilon)


class Sparsemax(StreamingMechanism):
    """Euclidean projection of the scores onto the simplex.

        max(s − τ, 0) v,   τ such that Σ max(s − τ, 0) = 1,   s = scale · q·kᵀ

    τ is found exactly by Newton steps from the left. Scores of one block of queries against all
    keys are held at a time. Martins and Astudillo, arXiv:1602.02068.
    """

    normaliser = "sparsemax"


class Entmax15(StreamingMechanism):
    """Half-way between soft-max and sparsemax.

        max(s/2 − τ, 0)² v,   τ such that Σ max(s/2 − τ, 0)² = 1,   s = scale · q·kᵀ

    Peters et al., Sparse sequence-to-sequence models, arXiv:1905.05702.
    """

    normaliser = "entmax15"
