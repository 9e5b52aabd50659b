"""Mixture of experts: each token goes to the best few of several mechanisms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Mechanism

from .mixture import Mixture, RoutePullback
from .routing import balance, choose, softmax, softmax_pullback


class RoutedExperts(Mixture):
    """Base of mixtures whose experts are whole mechanisms, with a linear router."""

    def _created(self) -> Iterator[Mechanism]:
        config = self.config
        for options in config.expert_options:
            yield self._create(options, dim=config.dim, heads=config.heads)

    def _router_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        shape = (config.expert_count, config.dim)
        return {"router.weight": rng.normal(0, config.dim**-0.5, shape)}

    def _logits(self, tokens: Array) -> Array:
        return np.asarray(tokens @ self.parameters.cast("router.weight", tokens.dtype).T)

    def _logits_pullback(self, tokens: Array, gradient: Array) -> tuple[Array, Array]:
        """The gradients by tokens and by the router's weights."""
        flat = gradient.reshape(-1, gradient.shape[-1])
        by_weight = flat.T @ tokens.reshape(-1, tokens.shape[-1])
        return gradient @ self.parameters.cast("router.weight", tokens.dtype), by_weight


class MoE(RoutedExperts):
    """A router sends each query to `top_k` of the experts, which attend for their own queries only.

        Σ_{e ∈ top(x)} g_e expert_e(q, K, V),   g = softmax over the chosen of x W_rᵀ

    where x is the query's token, all heads together, and W_r the parameter `router.weight`
    (experts, dim). Experts are any registered mechanisms: `experts=("scaled-dot-product",
    "hyperbolic", {"name": "gaussian", "bandwidth": 2.0})`, or a number, for so many dot-product
    attentions with learned projections of their own, `query.weight` and `output.weight` (dim, dim),
    and common keys and values. Every expert sees all keys. Learned arrays of expert i
    are parameters `experts.i.…`.

    With `expert_capacity`, an expert takes at most ⌈capacity · tokens · top_k / experts⌉ queries of
    a sequence, first choices first, then by position; what it has no room for is dropped (its share
    of the output is missing) or, with `overflow="reroute"`, goes to the next best expert with room.
    `last_routing` says what became of each token and holds the load-balancing loss. With
    `jitter_noise`, training multiplies the router's input by random numbers near 1.

    An expert gets a part of the queries. One that looks at positions by itself computes all of
    them, and its part is picked: correct, but not cheaper.

    O(top_k n² d) time for attention, however many experts there are, and O(n dim experts) to route;
    O(n dim) memory. Under a mask, rows of it are held a few MB at a time.

    Raises
    ------
    ConfigError
        Where there are fewer experts than `top_k`.
    ArgumentError
        Where there is noise and training without a seed.
    CapabilityError
        By calls with a mask or bias that an expert does not take.

    References
    ----------
    Shazeer et al., Outrageously large neural networks, arXiv:1701.06538; capacity, jitter and the
    loss: Fedus et al., Switch transformers, arXiv:2101.03961; common keys: Zhang et al., Mixture of
    attention heads, arXiv:2210.05144.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((6, 8))
    >>> moe = pa.create("moe", dim=8, heads=2, experts=4, top_k=2, expert_capacity=1.0)
    >>> moe(x).shape
    (6, 8)
    >>> moe.last_routing.capacity, moe.last_routing.load.max() <= 3
    (3, True)
    """

    def _route(self, tokens: Array, rng: Any) -> tuple[Array, Array, Any, RoutePullback]:
        config = self.config
        noise: Any = 1.0
        if rng is not None and config.jitter_noise:
            noise = 1 + config.jitter_noise * rng.uniform(-1, 1, tokens.shape)
        seen = tokens * noise
        logits = self._logits(seen)
        count, experts = logits.shape[1:]
        capacity = None
        if config.expert_capacity is not None:
            capacity = math.ceil(config.expert_capacity * count * config.top_k / experts)
        reroute = config.overflow == "reroute"
        choices = [choose(one, config.top_k, capacity, reroute) for one in logits]
        assigned = np.stack([choice.assigned for choice in choices])
        among = np.stack([choice.among for choice in choices]) if config.normalise else None
        shares = softmax(logits, among)
        wanted = [choose(one, config.top_k, None, False).assigned for one in logits]
        loss, loss_gradient = balance(logits, np.stack(wanted))
        others = {
            "dropped": np.stack([choice.dropped for choice in choices]),
            "rerouted": np.stack([choice.rerouted for choice in choices]),
            "capacity": capacity,
            "balance_loss": loss,
        }

        def pullback(d_gates: Array) -> tuple[Array, dict[str, Array]]:
            d_logits = softmax_pullback(shares, np.where(assigned, d_gates, 0))
            d_logits = d_logits + config.balance_weight * loss_gradient
            d_tokens, d_weight = self._logits_pullback(seen, d_logits)
            return d_tokens * noise, {"router.weight": d_weight}

        return np.where(assigned, shares, 0), assigned, others, pullback
