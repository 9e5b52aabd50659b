"""Additive attention: a small network compares a query with a key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.products import matmul

from .panels import Panel, PanelMechanism, softmax
from .panels import softmax_pullback as _softmax_pullback


class Additive(PanelMechanism):
    """Scores from a network with one hidden layer, each head with its own.

        softmax(uᵀ tanh(W q + U k)) v

    with the parameters `query.weight` W and `key.weight` U (heads, hidden, head size) and `vector`
    u (heads, hidden), where `hidden` is the head size unless given. Scores stay within ±Σ|u|. W q
    and U k are computed once for each token; only the sum and tanh are computed for each pair. The
    scores are no products, so that rotary positions would not depend on distances: `position` adds
    to the scores.

    O(n² hidden) time for each head, of which each step is half a division: several times a dot
    product. O(n hidden) memory and a panel of scores.

    References
    ----------
    Bahdanau et al., Neural machine translation by jointly learning to align and translate,
    arXiv:1409.0473.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> additive = pa.create("additive", dim=1)
    >>> one = np.ones((1, 1, 1))
    >>> additive.parameters.update({"query.weight": one, "key.weight": -one, "vector": [[2.0]]})
    >>> additive([0.5], [[0.5], [9.0], [-9.0]], np.eye(3)).round(3)
    array([0.117, 0.016, 0.867])
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        heads, size = self.config.heads, self.config.head_dim
        hidden = self.config.hidden or size
        bound = np.sqrt(6 / (size + hidden))  # Glorot
        return {
            "query.weight": rng.uniform(-bound, bound, (heads, hidden, size)),
            "key.weight": rng.uniform(-bound, bound, (heads, hidden, size)),
            "vector": rng.uniform(-1, 1, (heads, hidden)),
            **super()._initial_parameters(rng),
        }

    def _projected(self, call: Call) -> Call:
        """W q and U k in the place of queries and keys, (batch, heads, hidden, keys) of these."""
        heads = self.config.heads
        left, right = (
            self.parameters.cast(f"{name}.weight", call.dtype).swapaxes(1, 2)
            for name in ("query", "key")
        )
        key = matmul(np.repeat(call.key, heads // call.key.shape[1], axis=1), right)
        query = matmul(call.query, left)
        return replace(call, query=query, key=np.ascontiguousarray(key.swapaxes(2, 3)))

    def _forward(self, call: Call) -> Array:
        return super()._forward(self._projected(call))

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        return super()._observe(self._projected(call), wanted)

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        inner = self._projected(call)
        output, pull = super()._vjp(inner)

        def pullback(gradient: Array) -> Gradients:
            found = pull(gradient)
            query, d_query = self._weight_pullback("query", call.query, found.query)
            group = call.query.shape[1] // call.key.shape[1]
            repeated = np.repeat(call.key, group, axis=1)
            key, d_key = self._weight_pullback("key", repeated, found.key.swapaxes(2, 3))
            batch, key_heads, keys, size = call.key.shape
            d_key = d_key.reshape(batch, key_heads, group, keys, size).sum(axis=2)
            learned = {**found.parameters, "query.weight": query, "key.weight": key}
            return Gradients(d_query, d_key, found.value, found.bias, learned)

        return output, pullback

    def _weight_pullback(self, name: str, tokens: Array, gradient: Array) -> tuple[Array, Array]:
        # Hidden tokens have no gradient, and 0 · NaN must not make them one.
        seen = np.where(np.any(gradient, axis=-1, keepdims=True), tokens, 0)
        weight = self.parameters.cast(f"{name}.weight", tokens.dtype)
        by_weight = matmul(gradient.swapaxes(2, 3), seen).sum(axis=0)
        return by_weight, matmul(gradient, weight)

    def _scores(self, panel: Panel) -> tuple[Array, Any]:
        from .kernels.additive import additive_kernels

        vector = self.parameters.cast("vector", panel.query.dtype)
        query = np.ascontiguousarray(panel.query)
        scores = np.empty((*query.shape[:2], panel.keys), query.dtype)
        additive_kernels(scores.dtype.name)[0](query, panel.key, vector, scores)
        return scores, query

    def _scores_pullback(self, panel: Panel, tape: Any, gradient: Array) -> None:
        from .kernels.additive import additive_kernels

        vector = self.parameters.cast("vector", tape.dtype)
        d_query = np.zeros_like(tape)
        additive_kernels(gradient.dtype.name)[1](
            tape, panel.key, vector, np.ascontiguousarray(gradient),
            d_query, panel.sums["key"][panel.batch], panel.sums["vector"],
        )  # fmt: skip
        panel.sums["query"] += d_query

    def _weights(self, panel: Panel, scores: Array) -> tuple[Array, Any]:
        weights = softmax(scores)
        return weights, weights

    def _weights_pullback(self, panel: Panel, tape: Any, gradient: Array) -> Array:
        return _softmax_pullback(tape, gradient)
