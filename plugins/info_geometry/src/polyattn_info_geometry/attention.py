"""Attention among distributions: queries and keys as points of the probability simplex.

Called and raising errors like :meth:`polyattn_core.mechanism.Mechanism.attend`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call
from polyattn_core.streaming import StreamingMechanism

if TYPE_CHECKING:
    from polyattn_core.simd.rules import ScoreRule

    Rules = Sequence[tuple[ScoreRule, Sequence[Any]]]

Pull = Callable[[Array], Array]


class _OnTheSimplex(StreamingMechanism):
    def _scale(self, call: Call) -> float:
        return 1.0


class FisherRao(_OnTheSimplex):
    """The geodesic distance between distributions decides.

        softmax(−β · 2 arccos Σ √(p r)) v,   p = softmax(q/τ),   r = softmax(k/τ)

    where β is `sharpness` and τ `temperature`. Square roots of probabilities lie on a sphere, and
    the Fisher–Rao metric is that of the sphere of radius 2: so the kernel sees products of √p and
    √r, and the distance is from 0 to π.

    O(n² d) time, O(n d) memory. A product next to 1 has lost digits: in float32 distances below
    10⁻³ are uncertain by about as much. Where p = r, the distance has no derivative and 0 is taken.

    References
    ----------
    Rao, Information and the accuracy attainable in the estimation of statistical parameters (1945);
    the map to the sphere: Miyamoto et al., On closed-form expressions for the Fisher–Rao distance,
    arXiv:2304.14885.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> attention = pa.create("fisher-rao", dim=2)
    >>> attention([5.0, 0.0], [[5.0, 0.0], [0.0, 5.0]], np.eye(2)).round(3)
    array([1., 0.])
    """

    def _rules(self, call: Call) -> Rules:
        from .kernels import fisher_rao_score

        return [(fisher_rao_score, (self.config.sharpness,))]

    def _transform(self, query: Array, key: Array) -> tuple[Array, Array, Any]:
        tau = self.config.temperature
        root_q, pull_q = _root_of_softmax(query, tau)
        root_k, pull_k = _root_of_softmax(key, tau)
        return root_q, root_k, lambda dq, dk: (pull_q(dq), pull_k(dk))


class KLBregman(_OnTheSimplex):
    """The divergence of a key's distribution from the query's decides.

        softmax(−β KL(p‖r)) v,   p = softmax(q/τ),   r = softmax(k/τ)

    where β is `sharpness` and τ `temperature`. KL is the Bregman divergence of the negative
    entropy: −KL(p‖r) = Σ p log r − Σ p log p is a product of p and log r, and a number for each
    query. It is not symmetric: a key that is 0 where the query is not is infinitely far, the
    reverse costs little.

    O(n² d) time, O(n d) memory.

    References
    ----------
    Banerjee et al., Clustering with Bregman divergences, JMLR 6 (2005). In attention-like models:
    Nielsen, An elementary introduction to information geometry, arXiv:1808.08271.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> attention = pa.create("kl-bregman", dim=2)
    >>> attention([5.0, 0.0], [[5.0, 0.0], [0.0, 5.0]], np.eye(2)).round(3)
    array([0.993, 0.007])
    """

    def _rules(self, call: Call) -> Rules:
        from .kernels import kl_score

        return [(kl_score, (self.config.sharpness,))]

    def _transform(self, query: Array, key: Array) -> tuple[Array, Array, Any]:
        tau = self.config.temperature
        p, pull_q = _softmax(query, tau)
        logs, pull_k = _log_softmax(key, tau)
        return p, logs, lambda dq, dk: (pull_q(dq), pull_k(dk))


def _log_softmax(x: Array, tau: float) -> tuple[Array, Pull]:
    # Hidden keys may hold anything; a warning about them would mislead.
    with np.errstate(invalid="ignore", over="ignore"):
        y = np.multiply(x, x.dtype.type(1 / tau), order="C")
        y -= y.max(axis=-1, keepdims=True)
        grown = np.exp(y)
        total = grown.sum(axis=-1, keepdims=True)
        y -= np.log(total)
    grown /= total

    def pull(gradient: Array) -> Array:
        # Hidden vectors have no gradient, and 0 · NaN must not make them one.
        p = np.where(np.any(gradient, axis=-1, keepdims=True), grown, 0)
        return np.asarray((gradient - gradient.sum(axis=-1, keepdims=True) * p) / tau)

    return y, pull


def _softmax(x: Array, tau: float) -> tuple[Array, Pull]:
    logs, _ = _log_softmax(x, tau)
    p = np.exp(logs)

    def pull(gradient: Array) -> Array:
        live = np.where(np.any(gradient, axis=-1, keepdims=True), p, 0)
        along = np.einsum("...d,...d->...", gradient, live)[..., None]
        return np.asarray(live * (gradient - along) / tau)

    return p, pull


def _root_of_softmax(x: Array, tau: float) -> tuple[Array, Pull]:
    logs, _ = _log_softmax(x, tau)
    root = np.exp(logs / 2)

    def pull(gradient: Array) -> Array:
        live = np.where(np.any(gradient, axis=-1, keepdims=True), root, 0)
        along = np.einsum("...d,...d->...", gradient, live)[..., None]
        return np.asarray(live * (gradient - along * live) / (2 * tau))

    return root, pull
