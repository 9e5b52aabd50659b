"""Which experts a token goes to, with which gates, and the pullbacks of that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyattn_core.arrays import Array


@dataclass(frozen=True, slots=True)
class Routing:
    """Where a call sent its tokens. Leading axes are those of the call."""

    gates: Array
    """(…, tokens, experts): 0 where a token does not go."""
    assigned: Array
    """(…, tokens, experts), boolean."""
    dropped: Array
    """(…, tokens): choices that came to nothing, because experts were full."""
    rerouted: Array
    """(…, tokens): choices that went to another expert, because experts were full."""
    capacity: int | None
    """Tokens of a sequence that an expert takes at most."""
    balance_loss: float
    """experts · Σ (share of choices) · (mean probability), 1 where all are used alike."""

    @property
    def load(self) -> Array:
        """(…, experts): tokens of each expert."""
        return np.asarray(self.assigned.sum(axis=-2))

    def __repr__(self) -> str:
        return (
            f"Routing(load={self.load.tolist()}, dropped={int(self.dropped.sum())}, "
            f"rerouted={int(self.rerouted.sum())}, capacity={self.capacity}, "
            f"balance_loss={self.balance_loss:.3f})"
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """Assignments of the tokens of one sequence."""

    assigned: Array
    """(tokens, experts), after capacity."""
    among: Array
    """(tokens, experts): what the gates of a token are shares among."""
    dropped: Array
    rerouted: Array


def softmax(logits: Array, among: Array | None = None) -> Array:
    """Shares of each token among some experts; 0 for the others."""
    if among is not None:
        logits = np.where(among, logits, -np.inf)
    most = logits.max(axis=-1, keepdims=True)
    grown = np.exp(logits - np.where(np.isneginf(most), 0, most))
    total = grown.sum(axis=-1, keepdims=True)
    return np.asarray(grown / np.where(total == 0, 1, total))


def softmax_pullback(shares: Array, gradient: Array) -> Array:
    """The gradient by logits."""
    return np.asarray(shares * (gradient - (shares * gradient).sum(axis=-1, keepdims=True)))


def choose(logits: Array, top: int, capacity: int | None, reroute: bool) -> Choice:
    """The best `top` experts of each token, as long as experts have room.

    All first choices come before all second ones, earlier tokens before later ones.
    """
    tokens, experts = logits.shape
    order = np.argsort(-logits, axis=-1, kind="stable")
    wanted = np.zeros((tokens, experts), bool)
    np.put_along_axis(wanted, order[:, :top], True, axis=-1)
    none = np.zeros(tokens, np.int64)
    if capacity is None:
        return Choice(wanted, wanted, none, none)
    assigned = np.zeros_like(wanted)
    missing, moved = none.copy(), none.copy()
    for rank in range(experts if reroute else top):
        asking = np.ones(tokens, bool) if rank < top else missing > 0
        ask = np.zeros_like(wanted)
        ask[np.flatnonzero(asking), order[asking, rank]] = True
        place = assigned.sum(axis=0) + np.cumsum(ask, axis=0)
        got = ask & (place <= capacity)
        assigned |= got
        found = got.any(axis=-1)
        if rank < top:
            missing += ~found
        else:
            missing -= found
            moved += found
    return Choice(assigned, assigned if reroute else wanted, missing, moved)


def balance(logits: Array, wanted: Array) -> tuple[float, Array]:
    """The load-balancing loss of choices (…, tokens, experts), and its gradient by logits."""
    experts = logits.shape[-1]
    shares = softmax(logits)
    axes = tuple(range(logits.ndim - 1))
    used = wanted.sum(axis=axes) / max(wanted.sum(), 1)
    tokens = logits.size // experts
    loss = experts * float((used * shares.mean(axis=axes)).sum())
    gradient = np.broadcast_to(experts * used / tokens, shares.shape)
    return loss, softmax_pullback(shares, gradient)
