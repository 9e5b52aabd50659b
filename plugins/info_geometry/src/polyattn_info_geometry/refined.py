"""Attention whose queries first descend an energy by the natural gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.streaming import StreamingMechanism


class _Step(NamedTuple):
    """One step of the queries, and what its pullback needs."""

    call: Call
    mean: Array
    variance: Array
    positive: Array
    pull: Pullback | None


class NaturalGradientAttention(StreamingMechanism):
    """Queries move towards the pattern they are near to, by natural gradient; then they attend.

        p = softmax(β q·kᵀ),   m = Σ p k,   s² = Σ p k² − m²
        q ← q − lr (q − m) / (β² s² + λ)          `steps` times
        softmax(β q·kᵀ) v

    where β is `scale`, 1/√(head size) unless given, λ is `damping`, and squares and the quotient
    are taken coordinate by coordinate.

    The family of distributions p over keys is parametrised by q, and its Fisher information is
    β² Cov_p(k), of which the diagonal is β² s². Queries descend the energy of a Hopfield network,
    E(q) = ½‖q‖² − β⁻¹ log Σ exp(β q·kⱼ), whose gradient is q − m, in the metric F + λI: far steps
    along coordinates on which the weights do not depend, short ones where a step would change
    them much. With s = 0 and λ = lr it is the update of `hopfield`. With `steps=0` it is `flash`.

    Masks and biases act on each p, so a query moves by what it sees.

    O((steps + 1) n² d) time, where a step costs as much as attention with values twice as wide;
    O(n d) memory.

    References
    ----------
    The energy: Ramsauer et al., Hopfield networks is all you need, arXiv:2008.02217. The metric:
    Martens, New insights and perspectives on the natural gradient method, arXiv:1412.1193.

    Examples
    --------
    A blurred pattern is recognised more clearly:

    >>> import numpy as np, polyattn as pa
    >>> patterns = 3 * np.eye(4)
    >>> blurred = np.array([[2.0, 1.0, 0.5, 0.0]])
    >>> plain = pa.create("natural-gradient", dim=4, steps=0)
    >>> refined = pa.create("natural-gradient", dim=4, steps=3)
    >>> plain(blurred, patterns, np.eye(4))[0].round(2)
    array([0.73, 0.16, 0.08, 0.04])
    >>> refined(blurred, patterns, np.eye(4))[0].round(2)
    array([0.87, 0.06, 0.04, 0.03])
    """

    def _forward(self, call: Call) -> Array:
        return super()._forward(self._refined(call)[0])

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        return super()._observe(self._refined(call)[0], wanted)

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        moved, steps = self._refined(call, differentiable=True)
        output, pull = super()._vjp(moved)

        def pullback(gradient: Array) -> Gradients:
            found = pull(gradient)
            for step in reversed(steps):
                found = self._through(step, found)
            return found

        return output, pullback

    def _refined(self, call: Call, *, differentiable: bool = False) -> tuple[Call, list[_Step]]:
        """The call with queries that have moved."""
        config = self.config
        steps: list[_Step] = []
        if not config.steps:
            return call, steps
        with np.errstate(invalid="ignore", over="ignore"):  # hidden keys may hold anything
            moments = np.concatenate((call.key, call.key * call.key), axis=-1)
        # Weights are dropped where queries attend, not where they move.
        moving = replace(call, value=moments, seed=None)
        beta = self._scale(call)
        for _ in range(config.steps):
            pull: Pullback | None = None
            if differentiable:
                found, pull = super()._vjp(moving)
            else:
                found = super()._forward(moving)
            mean, square = np.split(found, 2, axis=-1)
            with np.errstate(invalid="ignore", over="ignore"):
                variance = square - mean * mean
                positive = variance > 0
                variance = np.maximum(variance, 0)
                bottom = beta**2 * variance + config.damping
                query = moving.query - config.lr * (moving.query - mean) / bottom
            steps.append(_Step(moving, mean, variance, positive, pull))
            query = query.astype(call.dtype, copy=False)
            moving = replace(moving, query=query)
        return replace(call, query=moving.query), steps

    def _through(self, step: _Step, after: Gradients) -> Gradients:
        """Gradients by the inputs of a step, from those by its outcome and all inputs after it."""
        config, call = self.config, step.call
        beta = self._scale(call)
        bottom = beta**2 * step.variance + config.damping
        distance = call.query - step.mean
        # A row that does not count keeps its gradient of 0, whatever it holds.
        live = np.any(after.query, axis=-1, keepdims=True)
        share = np.where(live, config.lr / bottom, 0)
        by_query = after.query - share * after.query
        by_variance = np.where(
            live & step.positive, after.query * share * distance * beta**2 / bottom, 0
        )
        by_mean = share * after.query - 2 * np.where(live, step.mean, 0) * by_variance
        assert step.pull is not None
        moments = np.concatenate((by_mean, by_variance), axis=-1).astype(call.dtype, copy=False)
        found = step.pull(moments)
        d_mean, d_square = np.split(found.value, 2, axis=-1)
        # Hidden keys have no gradient, and 0 · NaN must not make them one.
        through_square = 2 * np.where(d_square != 0, call.key, 0) * d_square
        return Gradients(
            by_query + found.query,
            after.key + found.key + d_mean + through_square,
            after.value,
            _sum(after.bias, found.bias),
            {name: array + found.parameters[name] for name, array in after.parameters.items()},
        )


def _sum(first: Any, second: Any) -> Any:
    return None if first is None else first + second
