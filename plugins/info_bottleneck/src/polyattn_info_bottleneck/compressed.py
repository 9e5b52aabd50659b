"""Attention weights compressed by the information bottleneck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array, unbroadcast
from polyattn_core.mechanism import Call, Gradients, Pullback
from polyattn_core.streaming import StreamingMechanism

if TYPE_CHECKING:
    from polyattn_core.simd.rules import ScoreRule

    Rules = list[tuple[ScoreRule, Sequence[Any]]]


class IBCompressed(StreamingMechanism):
    """Weights in which query and key share only the information that is worth β.

        minimise over r:   mean over queries i of KL(rᵢ‖pᵢ) + β KL(rᵢ‖r̄),   p = softmax(s)
        r̄ = mean of rᵢ,   rᵢ = softmax((s + β log r̄)/(1 + β))

    with s = scale · q·kᵀ (and biases), scale 1/√(head size) unless given. With r̄ the marginal of r
    the second term is the mutual information I(query; key): the objective is that of rate and
    distortion, and both lines are its exact minimisers with the other one fixed (Blahut and
    Arimoto). r̄ starts uniform and is iterated `iterations` times, each of which lowers
    the objective. With β = 0 this is `flash`; as β grows, rows approach one common distribution.

    Rows meet in r̄, that of their head: a row depends on the queries beside it. So hiding later keys
    does not make this causal, and causal masks are refused. Rows that see nothing do not count.

    O(iterations · n² d) time, O(n d) memory.

    References
    ----------
    Tishby, Pereira and Bialek, The information bottleneck method, arXiv:physics/0004057. Blahut,
    Computation of channel capacity and rate-distortion functions (1972).

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = 3 * np.eye(3)
    >>> for beta in (0.0, 1.0, 10.0):
    ...     print(pa.create("ib-compressed", dim=3, beta=beta)(x, x, np.eye(3))[0].round(2))
    [0.99 0.01 0.01]
    [0.87 0.06 0.06]
    [0.45 0.28 0.28]
    """

    def _all_rules(self, call: Call) -> Rules:
        from .kernels import tempered

        # Last of all rules, so that soft cap and positions are compressed too.
        return [*super()._all_rules(call), (tempered, (1 / (1 + self.config.beta),))]

    def _forward(self, call: Call) -> Array:
        return super()._forward(self._iterated(call)[0])

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        return super()._observe(self._iterated(call)[0], wanted)

    def mutual_information(self, query: Any, key: Any) -> Array:
        """I(query; key) of the weights in nats, (…, heads): the mean of KL(rᵢ‖r̄)."""
        seen = self.observe(query, key, key, "entropy", "column_mass")
        assert seen.column_mass is not None
        assert seen.entropy is not None
        marginal = seen.column_mass / seen.entropy.shape[-1]
        logs = np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
        return np.asarray(-(marginal * logs).sum(axis=-1) - seen.entropy.mean(axis=-1))

    def _iterated(self, call: Call) -> tuple[Call, list[Call], list[Array]]:
        """The last call, those before it, and the column masses that they gave."""
        plain = replace(call, seed=None)
        calls: list[Call] = []
        masses: list[Array] = []
        for _ in range(self.config.iterations):
            current = self._tilted(plain, masses[-1] if masses else None)
            _, found = super()._observe(current, frozenset(("column_mass",)))
            calls.append(current)
            masses.append(found["column_mass"])
        return replace(self._tilted(plain, masses[-1]), seed=call.seed), calls, masses

    def _tilted(self, call: Call, mass: Array | None) -> Call:
        """The call with biases divided, as the rule divides scores, and with the prior added."""
        beta = self.config.beta
        bias = None if call.bias is None else call.bias / (1 + beta)
        if mass is not None:
            prior = beta / (1 + beta) * np.log(_marginal(mass))
            prior = prior.reshape((*call.shape.lead, mass.shape[1], 1, mass.shape[2]))
            bias = prior if bias is None else bias + prior
        return replace(call, bias=None if bias is None else bias.astype(call.dtype, copy=False))

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        last, calls, masses = self._iterated(call)
        output, pull = super()._vjp(last)

        def pullback(gradient: Array) -> Gradients:
            found = pull(gradient)
            after = last
            of_bias = self._user_bias(call, found.bias, after)
            total = found
            for current, mass in zip(reversed(calls), reversed(masses), strict=True):
                assert found.bias is not None
                assert after.bias is not None
                found = self._through(current, mass, found.bias.reshape(after.bias.shape))
                total = replace(total, query=total.query + found.query, key=total.key + found.key)
                if of_bias is not None:
                    of_bias = of_bias + self._user_bias(call, found.bias, current)
                after = current
            return replace(total, bias=of_bias)

        return output, pullback

    def _user_bias(self, call: Call, gradient: Any, tilted: Call) -> Any:
        if call.bias is None:
            return None
        assert tilted.bias is not None
        whole = gradient.reshape(tilted.bias.shape)
        return unbroadcast(whole, call.bias.shape) / (1 + self.config.beta)

    def _through(self, call: Call, mass: Array, by_bias: Array) -> Gradients:
        """Gradients by a call's inputs, from that by the prior that its column mass made.

        The gradient g by the column mass reaches the scores as if the call had attended with the
        values g, and each row of its output had the gradient 1.
        """
        heads, keys = mass.shape[1:]
        prior = unbroadcast(by_bias, (*call.shape.lead, heads, 1, keys)).reshape(mass.shape)
        marginal, whole = _marginal(mass), mass.sum(axis=-1, keepdims=True)
        beta = self.config.beta
        by_log = np.where(mass > 0, beta / (1 + beta) * prior, 0)
        along = by_log.sum(axis=-1, keepdims=True)
        by_mass = (by_log / marginal - along) / np.maximum(whole, _least(mass))
        by_mass = np.where(mass > 0, by_mass, 0).astype(call.dtype, copy=False)
        group = heads // call.key.shape[1]
        key = np.repeat(call.key, group, axis=1) if group > 1 else call.key
        value = np.ascontiguousarray(by_mass)[..., None]
        _, pull = super()._vjp(replace(call, key=key, value=value))
        found = pull(np.ones((*call.query.shape[:-1], 1), call.dtype))
        if group > 1:
            batch, _, _, size = key.shape
            found.key = found.key.reshape(batch, -1, group, keys, size).sum(axis=2)
        return found


def _marginal(mass: Array) -> Array:
    """Column mass as a distribution; keys that nobody sees get the least positive number."""
    least = _least(mass)
    share = mass / np.maximum(mass.sum(axis=-1, keepdims=True), least)
    return np.asarray(np.maximum(share, least))


def _least(array: Array) -> Any:
    return np.finfo(array.dtype).tiny
