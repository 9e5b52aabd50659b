"""Retrieval from a modern Hopfield network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback
from polyattn_core.positions import Rope
from polyattn_core.spec import MechanismSpec

from .config import HopfieldConfig, ScaledDotProductConfig
from .softmax import ScaledDotProduct
from .turning import Back, turned


class Hopfield(Mechanism):
    """Queries settle on stored patterns before they attend: keys are a memory that cleans them.

        ξ₀ = q,   ξₜ₊₁ = softmax(β ξₜ·Kᵀ) K,   output softmax(β ξ·Kᵀ) v

    where β is 1/√(head size) unless given. Each step lowers the energy −lse(β, Kξ) + ½‖ξ‖²; ξ runs
    to a stored pattern where patterns are well apart for β, mostly in a single step, and to an
    average of similar ones otherwise. A query stops once no coordinate moves by more than
    `tolerance`, and all stop after `iterations`; 0 iterations are the transformer's attention.
    Masks, biases and positions act in each step, rotary ones by turning queries and patterns once;
    dropout acts on the last weights alone. A query that sees nothing gets 0.

    O(iterations · n² d) time, O(iterations · n d) memory with gradients, O(n d) without.

    References
    ----------
    Ramsauer et al., Hopfield networks is all you need, arXiv:2008.02217.

    Examples
    --------
    A noisy pattern is recognised, and what is stored with it comes back:

    >>> import numpy as np, polyattn as pa
    >>> patterns = np.array([[1.0, 1, -1, -1], [1, -1, 1, -1], [-1, 1, 1, -1]])
    >>> memory = pa.create("hopfield", dim=4, beta=2.0)
    >>> memory([0.6, 0.9, -0.2, -1.1], patterns, np.eye(3)).round(2)
    array([1., 0., 0.])
    """

    config: HopfieldConfig

    def __init__(self, config: HopfieldConfig, *, spec: MechanismSpec) -> None:
        super().__init__(config, spec=spec)
        inner = ScaledDotProductConfig(
            dim=config.dim, heads=config.heads, kv_heads=config.kv_heads,
            threads=config.threads, scale=config.beta, dropout=config.dropout,
            position=None if isinstance(config.position, Rope) else config.position,
        )  # fmt: skip
        # Masks come with the call, those of the configuration too.
        self._attention = ScaledDotProduct(inner, spec=spec)

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        return self._attention._initial_parameters(rng)

    def _positioned(self, call: Call) -> tuple[Call, Back]:
        self._attention._parameters = self.parameters
        return turned(call, self.config.position)

    def retrieve(self, query: Array, key: Array) -> Array:
        """The states ξ that queries settle on, (…, heads, queries, size) like `attend`'s.

        Rotary positions are turned back: without a step the states are the queries.
        """
        call, lead, dtype = self._prepare(query, key, key, None, None, False, None, {})
        call, back = self._positioned(call)
        state = back(self._settled(call), call.key)[0]
        return state.reshape((*lead, *state.shape[1:])).astype(dtype, copy=False)

    def _settled(self, call: Call) -> Array:
        state, config = call.query, self.config
        active = np.ones((*state.shape[:-1], 1), bool)
        for _ in range(config.iterations):
            step = replace(call, query=state, value=call.key, seed=None)
            moved = self._attention._forward(step)
            state, active = self._step(state, moved, active)
            if not active.any():
                break
        return state

    def _step(self, state: Array, moved: Array, active: Array) -> tuple[Array, Array]:
        """The next states, and which of the queries go on from there."""
        # In C order: kernels take the last axis to be contiguous.
        following = np.where(active, moved, state)
        far = np.abs(following - state).max(axis=-1, keepdims=True) > self.config.tolerance
        return following, active & far

    def _forward(self, call: Call) -> Array:
        call, _ = self._positioned(call)
        return self._attention._forward(replace(call, query=self._settled(call)))

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        call, _ = self._positioned(call)
        return self._attention._observe(replace(call, query=self._settled(call)), wanted)

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        call, back = self._positioned(call)
        state = call.query
        active = np.ones((*state.shape[:-1], 1), bool)
        steps: list[tuple[Array, Pullback]] = []
        for _ in range(self.config.iterations):
            step = replace(call, query=state, value=call.key, seed=None)
            moved, pull = self._attention._vjp(step)
            steps.append((active, pull))
            state, active = self._step(state, moved, active)
            if not active.any():
                break
        output, last = self._attention._vjp(replace(call, query=state))

        def pullback(gradient: Array) -> Gradients:
            found = last(gradient)
            d_state, d_key, d_bias = found.query, found.key, found.bias
            learned = dict(found.parameters)
            for moving, pull in reversed(steps):
                step = pull(np.where(moving, d_state, 0))
                d_state = np.where(moving, step.query, d_state)
                d_key = d_key + step.key + step.value
                if d_bias is not None and step.bias is not None:
                    d_bias = d_bias + step.bias
                for name, array in step.parameters.items():
                    learned[name] = learned[name] + array
            d_query, d_key = back(d_state, d_key)
            return Gradients(d_query, d_key, found.value, d_bias, learned)

        return output, pullback
