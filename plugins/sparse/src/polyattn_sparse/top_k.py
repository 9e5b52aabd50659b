"""Soft-max over the keys with the highest scores."""

from __future__ import annotations

from polyattn_core.mechanism import Call
from polyattn_core.streaming import StreamingMechanism


class TopK(StreamingMechanism):
    """Soft-max over the k keys with the highest scores.

        softmax(s where s ≥ s₍ₖ₎, else −∞) v,   s = scale · q·kᵀ

    The k-th score is found exactly; keys whose scores equal it are all kept. All scores are computed:
    what is sparse is the result. Gupta et al., Memory-efficient transformers via top-k attention,
    arXiv:2106.06899.
    """

    normaliser = "top-k"

    def _top(self, call: Call) -> int:
        return int(self.config.k)
