"""The recurrences: each says what decays and how strongly it writes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients
from polyattn_core.positions import rotate

from .config import DeltaConfig, GatedLinearConfig, MambaConfig, RetentionConfig
from .gates import Gate, Gates, learned, log_sigmoid, passed, sigmoid
from .mechanism import Recurrence, Undo

_TEMPERATURE = 16  # of learned decays, as in GLA: they start close to 1


class Retention(Recurrence):
    """Retention: a sum over the past that decays by a fixed factor a token.

        S_t = γ S_{t−1} + k_t v_tᵀ,   o_t = scale · S_tᵀ q_t = scale · Σ_{j≤t} γ^{t−j} (q_t·k_j) v_j

    where γ = 1 − 2^{−5−h} for key head h unless `decays` are given, and scale is 1/√(head size)
    unless given. With `position="rope"` queries and keys turn with their positions, as RetNet has
    it; its group normalisation and its gate belong to the layer around.

    O(n d²) time for head size d and values alike, O(n d) memory, forward and backward; a step costs
    O(d²). Shapes and errors are those of :meth:`polyattn_core.mechanism.Mechanism.attend`; as many
    keys as queries. Padding is the mask: a hidden token leaves the state as it is. Calls from
    several threads are safe.

    References
    ----------
    Sun et al., Retentive network: a successor to transformer for large language models,
    arXiv:2307.08621.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((1, 300, 64), np.float32)
    >>> retention = pa.create("retention", dim=64, heads=4)
    >>> heads = x.reshape(1, 300, 4, 16).swapaxes(1, 2)
    >>> whole = retention.attend(heads, heads, heads)
    >>> start, state = retention.scan(*[heads[:, :, :200]] * 3)
    >>> rest, state = retention.scan(*[heads[:, :, 200:]] * 3, state=state)
    >>> np.allclose(np.concatenate((start, rest), axis=2), whole, atol=1e-5)
    True
    """

    config: RetentionConfig

    def _scale(self) -> float:
        return float(self.config.scale or self.config.head_dim**-0.5)

    def _gates(self, call: Call) -> Gates:
        decays = self.config.decays
        logs = np.log(decays or default_decays(self.config.key_heads)).astype(call.dtype)
        shape = (call.shape.batch, len(logs), call.key.shape[2], 1)
        return Gates(Gate(np.broadcast_to(logs[:, None, None], shape), lambda gradient: ({}, {})))

    def _prepared(self, call: Call, first: int) -> tuple[Array, Array, Undo | None]:
        rope = self.config.position
        if rope is None:
            return call.query, call.key, None
        places = first + np.arange(call.key.shape[2])

        def back(d_query: Array, d_key: Array) -> tuple[Array, Array]:
            return (
                rotate(d_query, places, rope, inverse=True),
                rotate(d_key, places, rope, inverse=True),
            )

        return rotate(call.query, places, rope), rotate(call.key, places, rope), back


def default_decays(heads: int) -> list[float]:
    """1 − 2^(−5 − head)."""
    return [1 - 2.0 ** (-5 - head) for head in range(heads)]


class GatedLinear(Recurrence):
    """Gated linear attention: each channel of the keys decays at its own pace, token by token.

        S_t = diag(α_t) S_{t−1} + k_t v_tᵀ,   o_t = scale · S_tᵀ q_t

    where ln α is the side input `log_decay` (…, heads, tokens, head size), or with 1 as its last
    axis for one decay a token; it should be at most 0, and may be −∞, which forgets everything.
    Without it, α = σ(a)^{1/16} with the parameter `log_decay.logit` a (key heads, head size).
    Heads may be those of the keys, or those of the queries, which then have a state each.

    O(n d²) time for head size d and values alike, O(n d) memory, forward and backward; a step costs
    O(d²). Shapes and errors are those of :meth:`polyattn_core.mechanism.Mechanism.attend`; as many
    keys as queries. Padding is the mask: a hidden token leaves the state as it is. Calls from
    several threads are safe.

    References
    ----------
    Yang et al., Gated linear attention transformers with hardware-efficient training,
    arXiv:2312.06635.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> query, key, value = np.ones((3, 1, 4, 2))  # 1 head, 4 tokens of size 2
    >>> gates = np.log([1.0, 0.5]) * np.ones((1, 4, 1))
    >>> gated = pa.create("gated-linear", dim=2)
    >>> gated.attend(query, key, value, log_decay=gates)[0, :, 0]  # 1 + 1, 2 + 1.5, …
    array([2.   , 3.5  , 4.75 , 5.875])
    """

    config: GatedLinearConfig

    def _gates(self, call: Call) -> Gates:
        return Gates(_decay(self, call))

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        return _decay_parameters(self, rng)


def _decay(owner: Recurrence, call: Call) -> Gate:
    """`log_decay=`, or the learned one."""
    heads, size = owner.config.key_heads, owner.config.head_dim
    given = passed(call, "log_decay", heads, (1, size) if size > 1 else (1,))
    if given is not None:
        return given

    def logarithm(logit: Array) -> tuple[Array, Array]:
        found, slope = log_sigmoid(logit)
        return found / _TEMPERATURE, slope / _TEMPERATURE

    return learned(call, "log_decay.logit", owner.parameters["log_decay.logit"], logarithm)


def _decay_parameters(owner: Recurrence, rng: np.random.Generator) -> dict[str, Array]:
    shape = (owner.config.key_heads, owner.config.head_dim)
    return {"log_decay.logit": rng.normal(0, 1, shape).astype(np.float32)}


class DeltaRule(Recurrence):
    """The delta rule: writes the difference between a value and what is stored under its key.

        S_t = S_{t−1} + β_t k_t (v_t − S_{t−1}ᵀ k_t)ᵀ,   o_t = scale · S_tᵀ q_t

    where β is the side input `beta` (…, heads, tokens), between 0 and 1 (up to 2 for negative
    eigenvalues), or else σ(b) with the parameter `beta.logit` b (key heads,). Queries and keys are
    divided by their length unless `normalise=False`. β = 1 replaces what was stored under a key: as
    many pairs as keys are orthogonal are recalled exactly, where a sum confuses them.

    In chunks by the UT transform of the WY form: each chunk's corrections are the solution of one
    triangular system. O(n d (d + chunk)) time for head size d and values alike, O(n (d + chunk))
    memory, forward and backward; a step costs O(d²). Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`; as many keys as queries. Padding is the mask:
    a hidden token leaves the state as it is. Calls from several threads are safe.

    References
    ----------
    Yang et al., Parallelizing linear transformers with the delta rule over sequence length,
    arXiv:2406.06484.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> key = np.eye(2)[[0, 1, 0, 0]][None]  # the same key again and again
    >>> value = np.array([[1.0], [2.0], [3.0], [5.0]])[None]
    >>> delta = pa.create("delta-rule", dim=2)
    >>> delta.attend(key, key, value, beta=np.ones((1, 4)))[0, :, 0]  # the last value written
    array([1., 2., 3., 5.])
    """

    config: DeltaConfig

    def _gates(self, call: Call) -> Gates:
        return Gates(None, _beta(self, call))

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        return {"beta.logit": rng.normal(1, 0.5, self.config.key_heads).astype(np.float32)}

    def _prepared(self, call: Call, first: int) -> tuple[Array, Array, Undo | None]:
        if not self.config.normalise:
            return call.query, call.key, None
        query, query_back = _unit(call.query)
        key, key_back = _unit(call.key)
        return query, key, lambda d_query, d_key: (query_back(d_query), key_back(d_key))


def _beta(owner: Recurrence, call: Call) -> Gate:
    """`beta=`, or the learned one."""
    given = passed(call, "beta", owner.config.key_heads, ())
    return given or learned(call, "beta.logit", owner.parameters["beta.logit"], sigmoid)


def _unit(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """x/‖x‖ and its pullback; 0 stays 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.sqrt(np.einsum("...d,...d->...", x, x))[..., None]
        inverse = 1 / np.where(length == 0, 1, length).astype(x.dtype)
        unit = x * inverse

    def back(gradient: Array) -> Array:
        along = np.einsum("...d,...d->...", gradient, unit)[..., None]
        with np.errstate(invalid="ignore"):
            found = inverse * (gradient - along * unit)
        # What is hidden may be infinite, and has no gradient.
        nothing = ~gradient.any(axis=-1, keepdims=True)
        return np.asarray(np.where(nothing, gradient, found))

    return unit, back


class GatedDelta(DeltaRule):
    """The gated delta rule: forgets everything a little, and replaces what it writes again.

        S' = diag(α_t) S_{t−1},   S_t = S' + β_t k_t (v_t − S'ᵀ k_t)ᵀ,   o_t = scale · S_tᵀ q_t

    where ln α is the side input `log_decay` (…, heads, tokens, 1), as in the paper, or with the
    head size as its last axis for a decay of each channel; it should be at most 0. Without it,
    α = σ(a)^{1/16} with the parameter `log_decay.logit` a (key heads, 1). β and `normalise` are
    those of `delta-rule`.

    O(n d (d + chunk)) time for head size d and values alike, O(n (d + chunk)) memory, forward and
    backward; a step costs O(d²). Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`; as many keys as queries. Padding is the mask:
    a hidden token leaves the state as it is. Calls from several threads are safe.

    References
    ----------
    Yang et al., Gated delta networks: improving Mamba2 with delta rule, arXiv:2412.06464.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> key = np.ones((1, 3, 1))
    >>> value = np.array([[8.0], [0.0], [0.0]])[None]
    >>> gated = pa.create("gated-delta", dim=1)
    >>> half = np.full((1, 3, 1), np.log(0.5))
    >>> gated.attend(key, key, value, log_decay=half, beta=np.array([[1.0, 0.0, 0.5]]))[0, :, 0]
    array([8., 4., 1.])
    """

    def _gates(self, call: Call) -> Gates:
        return Gates(_decay(self, call), _beta(self, call))

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        logits = rng.normal(0, 1, (self.config.key_heads, 1)).astype(np.float32)
        return {"log_decay.logit": logits, **super()._initial_parameters(rng)}


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
