"""The mechanism `mamba2`."""

from __future__ import annotations

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients

from .config import MambaConfig
from .gates import Gate, Gates, passed, sigmoid
from .mechanism import Recurrence


class Mamba2(Recurrence):
    """Mamba-2's state-space duality: one step size a token sets both how much is kept and added.

        Δ_t = softplus(s_t + bias),   S_t = e^{−Δ_t·e^a} S_{t−1} + Δ_t k_t v_tᵀ
        o_t = scale · S_tᵀ q_t + D v_t

    where queries, keys and values are the paper's C, B and x, and s is the side input `step`
    (…, heads, tokens), 0 where it is not passed. Parameters, of each key head: `log_rate` a, `bias`
    (the step sizes start between 0.001 and 0.1) and `skip` D. `skip=False` leaves out the last
    term. The convolution and the gate before and behind belong to the layer around.

    O(n d²) time for head size d and values alike, O(n d) memory, forward and backward; a step costs
    O(d²). Shapes and errors are those of :meth:`polyattn_core.mechanism.Mechanism.attend`; as many
    keys as queries. Padding is the mask: a hidden token leaves the state as it is. Calls from
    several threads are safe.

    References
    ----------
    Dao and Gu, Transformers are SSMs: generalized models and efficient algorithms through
    structured state space duality, arXiv:2405.21060.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((2, 100, 32), np.float32)
    >>> mamba = pa.create("mamba2", dim=32, heads=2)
    >>> output, pullback = mamba.vjp(x)
    >>> sorted(pullback(output).parameters)
    ['bias', 'log_rate', 'skip']
    """

    config: MambaConfig

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        heads = self.config.key_heads
        sizes = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), heads))
        found = {
            "log_rate": np.log(rng.uniform(1, 16, heads)),
            "bias": sizes + np.log(-np.expm1(-sizes)),  # the inverse of softplus
        }
        if self.config.skip:
            found["skip"] = np.ones(heads)
        return {name: array.astype(np.float32) for name, array in found.items()}

    def _gates(self, call: Call) -> Gates:
        given = passed(call, "step", self.config.key_heads, ())
        log_rate, bias = self.parameters["log_rate"], self.parameters["bias"]
        heads, tokens = len(bias), call.key.shape[2]
        shape = (call.shape.batch, heads if given is None else given.values.shape[1], tokens, 1)

        def by_head(array: Array) -> Array:
            return np.repeat(array.astype(np.float64), shape[1] // heads)[:, None, None]

        raw = by_head(bias) + (0 if given is None else given.values)
        sizes, rate = np.logaddexp(0, raw), np.exp(by_head(log_rate))
        slope = sigmoid(raw)[0]

        def total(array: Array, like: Array) -> Array:
            summed = np.broadcast_to(array, shape).sum(axis=(0, 2, 3)).reshape(heads, -1)
            return np.asarray(summed.sum(axis=1).astype(like.dtype))

        def raw_back(by_raw: Array) -> tuple[dict[str, Array], dict[str, Array]]:
            side = {} if given is None else given.backward(by_raw.astype(call.dtype))[0]
            return side, {"bias": total(by_raw, bias)}

        def decay_back(gradient: Array) -> tuple[dict[str, Array], dict[str, Array]]:
            by_logarithm = gradient.astype(np.float64)
            side, parameters = raw_back(by_logarithm * -rate * slope)
            parameters["log_rate"] = total(by_logarithm * -rate * sizes, log_rate)
            return side, parameters

        def full(array: Array) -> Array:
            return np.broadcast_to(array.astype(call.dtype), shape)

        return Gates(
            Gate(full(-rate * sizes), decay_back),
            None,
            Gate(full(sizes), lambda gradient: raw_back(gradient * slope)),
        )

    def _shown(self, call: Call) -> Array:
        """The values, 0 where a mask hides them, for each query head."""
        hidden = self._hidden(call)
        value = (
            call.value if hidden is None else np.where(hidden, call.value.dtype.type(0), call.value)
        )
        return np.repeat(value, call.query.shape[1] // value.shape[1], axis=1)

    def _skips(self, call: Call) -> Array:
        weights = self.parameters["skip"].astype(call.dtype)
        return np.repeat(weights, call.query.shape[1] // len(weights))[:, None, None]

    def _skip(self, call: Call, out: Array) -> None:
        if self.config.skip:
            out += self._skips(call) * self._shown(call)

    def _skip_gradients(self, call: Call, gradient: Array, found: Gradients) -> None:
        if not self.config.skip:
            return
        batch, heads, tokens, width = call.value.shape
        grouped = (batch, heads, -1, tokens, width)
        by_weight = (
            (gradient * self._shown(call)).sum(axis=(0, 2, 3)).reshape(heads, -1).sum(axis=1)
        )
        found.parameters["skip"] = by_weight.astype(self.parameters["skip"].dtype)
        by_value = (self._skips(call) * gradient).reshape(grouped).sum(axis=2)
        hidden = self._hidden(call)
        found.value = found.value + (
            by_value if hidden is None else np.where(hidden, by_value.dtype.type(0), by_value)
        )
