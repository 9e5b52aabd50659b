"""Soft-max over the keys with the highest scores."""

from __future__ import annotations

from polyattn_core.mechanism import Call
from polyattn_core.streaming import StreamingMechanism


class TopK(StreamingMechanism):
    """Soft-max over the k keys with the highest scores; the others get exactly nothing.

        softmax(s where s ≥ s₍ₖ₎, else −∞) v,   s = scale · q·kᵀ

    where s₍ₖ₎ is the k-th highest visible score of the row and scale is 1/√(head size) unless
    given. Keys whose scores equal it are all kept; rows with fewer than k visible keys keep all.

    All scores are computed, so time is O(n² d): what is sparse is the result. Those of a block of
    queries are kept to find s₍ₖ₎, which is done exactly, by bisection over the bits of a float:
    O(n) a thread. Gradients reach the keys that were kept.

    References
    ----------
    Gupta et al., Memory-efficient transformers via top-k attention, arXiv:2106.06899.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> top = pa.create("top-k", dim=1, k=2)
    >>> top([1.0], [[0.0], [np.log(3)], [-5.0]], np.eye(3))
    array([0.25, 0.75, 0.  ])
    """

    normaliser = "top-k"

    def _top(self, call: Call) -> int:
        return int(self.config.k)
