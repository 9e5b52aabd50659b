"""The mechanisms `delta-rule` and `gated-delta`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call

from .config import DeltaConfig
from .gated import decay_of
from .gates import Gate, Gates, learned, passed, sigmoid
from .mechanism import Recurrence, Undo


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
        return Gates(decay_of(self, call), _beta(self, call))

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        logits = rng.normal(0, 1, (self.config.key_heads, 1)).astype(np.float32)
        return {"log_decay.logit": logits, **super()._initial_parameters(rng)}


def _beta(owner: Recurrence, call: Call) -> Gate:
    """`beta=`, or the learned one."""
    given = passed(call, "beta", owner.config.key_heads, ())
    return given or learned(call, "beta.logit", owner.parameters["beta.logit"], sigmoid)


def _unit(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """x/‖x‖ and its pullback; 0 stays 0."""
    length = np.sqrt(np.einsum("...d,...d->...", x, x))[..., None]
    inverse = 1 / np.where(length == 0, 1, length).astype(x.dtype)
    unit = x * inverse

    def back(gradient: Array) -> Array:
        along = np.einsum("...d,...d->...", gradient, unit)[..., None]
        found = inverse * (gradient - along * unit)
        # What is hidden may be infinite, and has no gradient.
        nothing = ~gradient.any(axis=-1, keepdims=True)
        return np.asarray(np.where(nothing, gradient, found))

    return unit, back
