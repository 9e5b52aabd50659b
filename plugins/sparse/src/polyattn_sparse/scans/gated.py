"""The mechanism `gated-linear`, and the decay that it shares with `gated-delta`."""

from __future__ import annotations

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call

from .config import GatedLinearConfig
from .gates import Gate, Gates, learned, log_sigmoid, passed
from .mechanism import Recurrence

_TEMPERATURE = 16  # of learned decays, as in GLA: they start close to 1


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
        return Gates(decay_of(self, call))

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        shape = (self.config.key_heads, self.config.head_dim)
        return {"log_decay.logit": rng.normal(0, 1, shape).astype(np.float32)}


def decay_of(owner: Recurrence, call: Call) -> Gate:
    """`log_decay=`, or the learned one."""
    heads, size = owner.config.key_heads, owner.config.head_dim
    given = passed(call, "log_decay", heads, (1, size) if size > 1 else (1,))
    if given is not None:
        return given

    def logarithm(logit: Array) -> tuple[Array, Array]:
        found, slope = log_sigmoid(logit)
        return found / _TEMPERATURE, slope / _TEMPERATURE

    return learned(call, "log_decay.logit", owner.parameters["log_decay.logit"], logarithm)
