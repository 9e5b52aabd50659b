"""Stick-breaking attention: each key takes its part of what nearer keys have left."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.masks import Causal, Mask, MaskShape, Window

from .panels import Panel, PanelMechanism, scaled_products, scaled_products_pullback


class StickBreaking(PanelMechanism):
    """From the last visible key to the first, each takes a share of what is left.

        w_j = σ(s_j) Π_{l > j} (1 − σ(s_l)),   s = scale · q·kᵀ,   output Σ w_j v_j

    where scale is 1/√(head size) unless given and hidden keys take nothing. Near keys come first,
    so that the order of keys matters and no position axis is needed; weights sum to
    1 − Π (1 − σ(s)), less than 1: a query may attend to nothing. With `causal` and
    `diagonal=False` the stick is broken from the key before the query's own on, as in the paper.

    O(n² d) time, O(n) memory for a panel of queries. Products are computed in float64.

    References
    ----------
    Tan et al., Scaling stick-breaking attention, arXiv:2410.17980.

    Examples
    --------
    Scores of 0 take a half each time:

    >>> import numpy as np, polyattn as pa
    >>> attention = pa.create("stick-breaking", dim=1)
    >>> attention([0.0], [[1.0], [1.0], [1.0]], np.eye(3))
    array([0.125, 0.25 , 0.5  ])
    """

    def _own_mask(self, shape: MaskShape) -> Mask | None:
        if self.config.diagonal:
            return super()._own_mask(shape)
        return Causal(offset=-1) if self.config.causal else ~Window(left=0, right=0)

    def _scale(self, panel: Panel) -> float:
        scale = self.config.scale
        return float(scale) if scale is not None else 1 / math.sqrt(panel.query.shape[-1])

    def _scores(self, panel: Panel) -> tuple[Array, Any]:
        return scaled_products(panel, self._scale(panel)), None

    def _scores_pullback(self, panel: Panel, tape: Any, gradient: Array) -> None:
        scaled_products_pullback(panel, self._scale(panel), gradient)

    def _weights(self, panel: Panel, scores: Array) -> tuple[Array, Any]:
        from .kernels.sticks import stick_kernels

        scores = np.ascontiguousarray(scores)
        weights, shares = np.empty_like(scores), np.empty_like(scores)
        stick_kernels(scores.dtype.name)[0](scores, weights, shares)
        return weights, (weights, shares)

    def _weights_pullback(self, panel: Panel, tape: Any, gradient: Array) -> Array:
        from .kernels.sticks import stick_kernels

        gradient = np.ascontiguousarray(gradient)
        by_score = np.empty_like(gradient)
        stick_kernels(gradient.dtype.name)[1](*tape, gradient, by_score)
        return by_score
