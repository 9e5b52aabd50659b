"""Differential attention: what two soft-max maps have in common cancels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.streaming import StreamingMechanism

_EPSILON = 1e-5  # of the norm, as in the authors' code


class Differential(StreamingMechanism):
    """The difference of two soft-max maps: noise that both have cancels, like in an amplifier.

        (softmax(q₁·k₁ᵀ/√(d/2)) − λ softmax(q₂·k₂ᵀ/√(d/2))) v
        λ = exp(λ_q₁·λ_k₁) − exp(λ_q₂·λ_k₂) + λ_init

    where q₁, q₂ and k₁, k₂ are the halves of each head's queries and keys, so that both maps cost
    as much as one. λ is learned through the parameters `lambda.query` and `lambda.key` (2, d/2),
    which all heads share. Weights of a row sum to 1 − λ and may be negative. With `norm`, each
    head's output is divided by its root mean square and multiplied by 1 − λ_init. Rotary positions
    turn each half by itself.

    O(n² d) time, O(n d) memory: two passes of the streaming engine.

    Raises
    ------
    ConfigError
        Where the size of a head, dim / heads, is odd.

    References
    ----------
    Ye et al., Differential transformer, arXiv:2410.05258.

    Examples
    --------
    With λ_q₁·λ_k₁ = λ_q₂·λ_k₂, λ is λ_init; two maps that agree leave 1 − λ of one:

    >>> import numpy as np, polyattn as pa
    >>> attention = pa.create("differential", dim=2, lambda_init=0.75)
    >>> attention.parameters.update({n: np.zeros((2, 1)) for n in attention.parameters})
    >>> attention([1.0, 1.0], [[0.0, 0.0], [np.log(3), np.log(3)]], np.eye(2))
    array([0.0625, 0.1875])
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        shape = (2, self.config.head_dim // 2)
        return {
            **super()._initial_parameters(rng),
            "lambda.query": rng.normal(0, 0.1, shape),
            "lambda.key": rng.normal(0, 0.1, shape),
        }

    def _exponentials(self) -> tuple[float, float]:
        first, second = np.sum(self.parameters["lambda.query"] * self.parameters["lambda.key"], 1)
        return math.exp(first), math.exp(second)

    def balance(self) -> float:
        """λ: how much of the second map is taken away."""
        first, second = self._exponentials()
        return first - second + float(self.config.lambda_init)

    def _divided(self, call: Call) -> list[Call]:
        size = call.query.shape[-1]
        parts = (slice(None, size // 2), slice(size // 2, None))
        # Each map drops weights of its own.
        seeds = (None, None) if call.seed is None else (call.seed, call.seed + 1)
        return [
            replace(call, query=call.query[..., part], key=call.key[..., part], seed=seed)
            for part, seed in zip(parts, seeds, strict=True)
        ]

    def _forward(self, call: Call) -> Array:
        first, second = (super(Differential, self)._forward(half) for half in self._divided(call))
        return self._normed(self._difference(first, second))[0]

    def _difference(self, first: Array, second: Array) -> Array:
        return np.asarray(first - second * first.dtype.type(self.balance()))

    def _normed(self, difference: Array) -> tuple[Array, Array | None]:
        """The output, and the factor of each row where there is a norm."""
        if not self.config.norm:
            return difference, None
        mean = np.einsum("...d,...d->...", difference, difference) / difference.shape[-1]
        factor = (1 - self.config.lambda_init) / np.sqrt(mean + _EPSILON)[..., None]
        factor = factor.astype(difference.dtype)
        return difference * factor, factor

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        (first, one), (second, two) = (
            super(Differential, self)._observe(half, wanted) for half in self._divided(call)
        )
        found = {name: self._difference(one[name], two[name]) for name in wanted}
        return self._normed(self._difference(first, second))[0], found

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        (first, pull_first), (second, pull_second) = (
            super(Differential, self)._vjp(half) for half in self._divided(call)
        )
        balance = first.dtype.type(self.balance())
        difference = self._difference(first, second)
        output, factor = self._normed(difference)

        def pullback(gradient: Array) -> Gradients:
            if factor is not None:
                # d(x·c/√(mean x² + ε)): c/√… times what is left of the part along x.
                rate = (factor / (1 - self.config.lambda_init)) ** 2 / difference.shape[-1]
                along = np.einsum("...d,...d->...", gradient, difference)[..., None]
                gradient = factor * (gradient - rate * along * difference)
            one, two = pull_first(gradient), pull_second(gradient * -balance)
            parameters = {
                name: array + two.parameters[name] for name, array in one.parameters.items()
            }
            by_balance = -float(np.einsum("bhqd,bhqd->", gradient, second))
            chain = by_balance * np.array(self._exponentials()) * (1, -1)
            for name, other in (("query", "key"), ("key", "query")):
                learned = self.parameters[f"lambda.{other}"]
                parameters[f"lambda.{name}"] = chain[:, None] * learned
            bias = None if one.bias is None or two.bias is None else one.bias + two.bias
            return Gradients(
                np.concatenate((one.query, two.query), axis=-1),
                np.concatenate((one.key, two.key), axis=-1),
                one.value + two.value,
                bias,
                parameters,
            )

        return output, pullback
