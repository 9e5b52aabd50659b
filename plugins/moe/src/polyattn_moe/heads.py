"""Mixture of heads: a token uses the heads that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ConfigError
from polyattn_core.mechanism import Mechanism
from polyattn_core.spec import MechanismSpec

from .config import MixtureOfHeadsConfig
from .mixture import Mixture, RoutePullback
from .routing import balance, choose, softmax, softmax_pullback


class MixtureOfHeads(Mixture):
    """Heads are the experts: some serve every token, of the others each token chooses a few.

        output_h = g_h attention(q_h, K_h, V_h)
        g = α₁ softmax(x W_sᵀ) for shared heads, α₂ softmax(x W_rᵀ) for chosen ones, 0 otherwise
        (α₁, α₂) = softmax(x W_hᵀ)

    where x is the query's token, all heads together. The first `shared_heads` are shared; of the
    others a token uses the best `top_k`. Heads that a token does not use are not computed for it,
    and their part of its output is 0. `attention` is any mechanism that does not look at positions.

    Parameters: `router.shared` (shared, dim), `router.routed` (routed, dim) and `router.kind`
    (2, dim), each where it has something to decide; those of the mechanism of head h are
    `experts.h.…`.

    O((shared + top_k) n² head size) time, O(n dim) memory.

    Raises
    ------
    ConfigError
        Where `shared_heads` and `top_k` are not among `heads`, or `attention` looks at positions.

    References
    ----------
    Jin et al., MoH: Multi-head attention as mixture-of-head attention, arXiv:2410.11842.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((6, 16))
    >>> attention = pa.create("mixture-of-heads", dim=16, heads=4, top_k=1)
    >>> (attention(x).reshape(6, 4, 4) != 0).any(axis=-1).sum(axis=-1)
    array([2, 2, 2, 2, 2, 2])
    """

    def __init__(self, config: MixtureOfHeadsConfig, *, spec: MechanismSpec) -> None:
        super().__init__(config, spec=spec)
        if any(self._whole):
            raise ConfigError(
                "attention", config.attention, "a mechanism that does not look at positions itself"
            )

    def _created(self) -> Iterator[Mechanism]:
        config = self.config
        chosen = config.attention
        options = dict(chosen) if isinstance(chosen, dict) else {"name": chosen}
        for _ in range(config.heads):
            yield self._create(options, dim=config.head_dim, heads=1)

    def _heads(self, expert: int) -> slice:
        return slice(expert, expert + 1)

    def _router_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        sizes = {"shared": config.shared_heads, "routed": config.routed_heads}
        # A choice among one is none.
        chosen = {kind: size for kind, size in sizes.items() if size > 1}
        if all(sizes.values()):
            chosen["kind"] = 2
        bound = config.dim**-0.5
        return {f"router.{k}": rng.normal(0, bound, (n, config.dim)) for k, n in chosen.items()}

    def _logits(self, kind: str, count: int, tokens: Array) -> Array:
        name = f"router.{kind}"
        if name not in self.parameters:
            return np.zeros((*tokens.shape[:-1], count))
        return np.asarray(tokens @ self.parameters.cast(name, tokens.dtype).T)

    def _route(self, tokens: Array, rng: Any) -> tuple[Array, Array, Any, RoutePullback]:
        config = self.config
        shared, routed = config.shared_heads, config.routed_heads
        counts = {"shared": shared, "routed": routed, "kind": 2}
        logits = {kind: self._logits(kind, count, tokens) for kind, count in counts.items()}
        shares = {kind: softmax(x) if x.shape[-1] else x for kind, x in logits.items()}
        if not (shared and routed):
            shares["kind"] = np.ones_like(shares["kind"])
        assigned = np.ones((*tokens.shape[:2], config.heads), bool)
        loss = 1.0
        if routed:
            top = config.chosen_heads
            chosen = [choose(one, top, None, False).assigned for one in logits["routed"]]
            assigned[..., shared:] = np.stack(chosen)
            loss = balance(logits["routed"], assigned[..., shared:])[0]
        own, other = shares["kind"][..., :1], shares["kind"][..., 1:]
        gates = np.concatenate((own * shares["shared"], other * shares["routed"]), axis=-1)
        none = np.zeros(tokens.shape[:2], np.int64)
        others = {"dropped": none, "rerouted": none, "capacity": None, "balance_loss": loss}

        def pullback(d_gates: Array) -> tuple[Array, dict[str, Array]]:
            d_gates = np.where(assigned, d_gates, 0)
            first, second = d_gates[..., :shared], d_gates[..., shared:]
            by_kind = [(first * shares["shared"]).sum(-1), (second * shares["routed"]).sum(-1)]
            d_shares = {
                "shared": own * first, "routed": other * second, "kind": np.stack(by_kind, -1),
            }  # fmt: skip
            d_tokens, learned = np.zeros_like(tokens), {}
            for kind, gradient in d_shares.items():
                name = f"router.{kind}"
                if name in self.parameters:
                    d_logits = softmax_pullback(shares[kind], gradient)
                    d_tokens += d_logits @ self.parameters[name]
                    learned[name] = np.einsum("bne,bnd->ed", d_logits, tokens)
            return d_tokens, learned

        return np.where(assigned, gates, 0), assigned, others, pullback
