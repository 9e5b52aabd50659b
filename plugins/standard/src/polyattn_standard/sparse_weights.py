"""Mechanisms whose weights are exactly 0 for keys that matter little."""

from __future__ import annotations

from polyattn_core.streaming import StreamingMechanism


class Softpick(StreamingMechanism):
    """Rectified soft-max: exact zeros, and no key has to take the weight that is left over.

        relu(eˢ − 1) / (Σ |eˢ − 1| + ε) v,   s = scale · q·kᵀ

    where scale is 1/√(head size) and ε is `epsilon`. Keys with a negative score get nothing, yet
    count in the denominator, so that they still have a gradient; the weights of a row sum to at
    most 1.

    O(n² d) time, O(n d) memory. eˢ − 1 is a difference: in float32 that of a score of 10⁻⁴ has
    about three digits.

    References
    ----------
    Zuhri et al., Softpick: no attention sink, no massive activations with rectified softmax,
    arXiv:2504.20966.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> softpick = pa.create("softpick", dim=1)
    >>> softpick([1.0], [[-np.log(2)], [np.log(2)]], np.eye(2)).round(4)
    array([0.    , 0.6667])
    """

    normaliser = "softpick"

    def _epsilon(self) -> float:
        return float(self.config.epsilon)


class Sparsemax(StreamingMechanism):
    """The weights nearest to the scores: their Euclidean projection onto the simplex.

        max(s − τ, 0) v,   τ such that Σ max(s − τ, 0) = 1,   s = scale · q·kᵀ

    where scale is 1/√(head size). Keys whose score is more than 1 below the highest get exactly
    nothing.

    O(n² d) time. τ needs all scores of a row, so those of a block of queries are kept, O(n) a
    thread; it is found exactly by a few Newton steps from the left, without sorting.

    References
    ----------
    Martins and Astudillo, From softmax to sparsemax, arXiv:1602.02068.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> sparsemax = pa.create("sparsemax", dim=1)
    >>> sparsemax([1.0], [[1.2], [1.0], [-2.0]], np.eye(3)).round(6)
    array([0.6, 0.4, 0. ])
    """

    normaliser = "sparsemax"


class Entmax15(StreamingMechanism):
    """Half-way between soft-max and sparsemax: exact zeros, with smooth borders.

        max(s/2 − τ, 0)² v,   τ such that Σ max(s/2 − τ, 0)² = 1,   s = scale · q·kᵀ

    where scale is 1/√(head size). It is α-entmax with α = 1.5; α = 1 is the soft-max and α = 2
    sparsemax. Keys whose score is more than 2 below the highest get exactly nothing.

    O(n² d) time, and memory like :class:`Sparsemax`.

    References
    ----------
    Peters et al., Sparse sequence-to-sequence models, arXiv:1905.05702.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> entmax = pa.create("entmax15", dim=1)
    >>> entmax([1.0], [[2.8], [2.4], [0.0]], np.eye(3)).round(6)
    array([0.64, 0.36, 0.  ])
    """

    normaliser = "entmax15"
