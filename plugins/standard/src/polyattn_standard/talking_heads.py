"""Heads that talk to each other before and after the soft-max."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Pullback

from .panels import Panel, PanelMechanism, scaled_products, scaled_products_pullback, softmax
from .panels import softmax_pullback as _softmax_pullback
from .turning import turned


class TalkingHeads(PanelMechanism):
    """Heads mix their scores before the soft-max and their weights after it.

        S'_g = Σ_h P_gh · scale · q_h·k_hᵀ,   W_g = Σ_h R_gh softmax(S'_h),   output W_g v_g

    where P and R are the parameters `scores.mix` and `weights.mix` (heads, heads), each row for one
    head that listens. They start at the identity, with which this is the transformer's attention;
    rows need not sum to 1, nor weights be positive. Positions as biases, soft cap, bias and mask
    act on mixed scores; the mask once more on mixed weights, so that a mask may differ between
    heads; dropout on mixed weights.

    O(n² (d + heads)) time for each head, O(n) memory for a panel of queries and all heads.

    References
    ----------
    Shazeer et al., Talking-heads attention, arXiv:2003.02436.

    Examples
    --------
    A head that takes over the weights of another:

    >>> import numpy as np, polyattn as pa
    >>> talking = pa.create("talking-heads", dim=2, heads=2)
    >>> talking.parameters.update({"weights.mix": [[0.0, 1.0], [0.0, 1.0]]}, partial=True)
    >>> query, key = np.array([[0.0, 1.0]]), np.array([[9.0, np.log(3)], [9.0, 0.0]])
    >>> talking(query, key, np.array([[1.0, 1.0], [0.0, 0.0]]))
    array([[0.75, 0.75]])
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        arrays = {name: np.eye(self.config.heads) for name in ("scores.mix", "weights.mix")}
        return {**arrays, **super()._initial_parameters(rng)}

    def _forward(self, call: Call) -> Array:
        return super()._forward(turned(call, self.config.position)[0])

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        return super()._observe(turned(call, self.config.position)[0], wanted)

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        inner, back = turned(call, self.config.position)
        output, pull = super()._vjp(inner)

        def pullback(gradient: Array) -> Gradients:
            found = pull(gradient)
            found.query, found.key = back(found.query, found.key)
            return found

        return output, pullback

    def _scale(self, panel: Panel) -> float:
        scale = self.config.scale
        return float(scale) if scale is not None else 1 / math.sqrt(panel.query.shape[-1])

    def _mix(self, name: str, array: Array) -> Array:
        matrix = self.parameters.cast(name, array.dtype)
        return (matrix @ array.reshape(len(array), -1)).reshape(array.shape)

    def _unmix(self, panel: Panel, name: str, array: Array, gradient: Array) -> Array:
        flat = gradient.reshape(len(gradient), -1)
        panel.sums[name] += flat @ array.reshape(len(array), -1).T
        return (self.parameters.cast(name, array.dtype).T @ flat).reshape(gradient.shape)

    def _scores(self, panel: Panel) -> tuple[Array, Any]:
        products = scaled_products(panel, self._scale(panel))
        if panel.visible is not None:
            # What no head sees must not reach the gradient of the mix as 0 · NaN.
            products = np.where(panel.visible.any(axis=0), products, 0)
        return self._mix("scores.mix", products), products

    def _scores_pullback(self, panel: Panel, tape: Any, gradient: Array) -> None:
        by_product = self._unmix(panel, "scores.mix", tape, gradient)
        scaled_products_pullback(panel, self._scale(panel), by_product)

    def _weights(self, panel: Panel, scores: Array) -> tuple[Array, Any]:
        weights = softmax(scores)
        mixed = self._mix("weights.mix", weights)
        return mixed if panel.visible is None else np.where(panel.visible, mixed, 0), weights

    def _weights_pullback(self, panel: Panel, tape: Any, gradient: Array) -> Array:
        return _softmax_pullback(tape, self._unmix(panel, "weights.mix", tape, gradient))
