"""Experts choose tokens, rather than tokens experts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyattn_core.arrays import Array

from .mixture import RoutePullback
from .moe import RoutedExperts
from .routing import balance, softmax, softmax_pullback


class ExpertChoice(RoutedExperts):
    """Each expert takes the tokens that want it most: loads are equal by construction.

        Σ_{e: x ∈ top_C(S_·e)} S_xe expert_e(q, K, V),   S = softmax over experts of x W_rᵀ

    where each of the experts takes C = ⌈tokens · expert_capacity / experts⌉ queries of a sequence.
    A token may be taken by several experts or by none, whose output then is 0; nothing overflows
    and no loss has to balance. Experts and parameters are those of `moe`.

    Which tokens an expert takes depends on the whole sequence, later ones too: there is no
    `causal`, and a causal mask hides keys, not this choice.

    O(expert_capacity n² d) time for attention, however many experts there are; O(n dim) memory.

    Raises
    ------
    CapabilityError
        By calls with a mask or bias that an expert does not take.

    References
    ----------
    Zhou et al., Mixture-of-experts with expert choice routing, arXiv:2202.09368.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((6, 8))
    >>> mixture = pa.create("expert-choice", dim=8, heads=2, experts=3, expert_capacity=1.0)
    >>> mixture(x).shape, mixture.last_routing.load
    ((6, 8), array([2, 2, 2]))
    """

    def _route(self, tokens: Array, rng: Any) -> tuple[Array, Array, Any, RoutePullback]:
        logits = self._logits(tokens)
        count, experts = logits.shape[1:]
        capacity = min(count, math.ceil(self.config.expert_capacity * count / experts))
        shares = softmax(logits)
        assigned = np.zeros(shares.shape, bool)
        taken = np.argsort(-shares, axis=1, kind="stable")[:, :capacity]
        np.put_along_axis(assigned, taken, True, axis=1)
        none = np.zeros(logits.shape[:2], np.int64)
        loss = balance(logits, assigned)[0]
        others = {"dropped": none, "rerouted": none, "capacity": capacity, "balance_loss": loss}

        def pullback(d_gates: Array) -> tuple[Array, dict[str, Array]]:
            d_logits = softmax_pullback(shares, np.where(assigned, d_gates, 0))
            d_tokens, d_weight = self._logits_pullback(tokens, d_logits)
            return d_tokens, {"router.weight": d_weight}

        return np.where(assigned, shares, 0), assigned, others, pullback
