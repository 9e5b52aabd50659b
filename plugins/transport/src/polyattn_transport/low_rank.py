"""Sinkhorn iterations on a kernel of low rank."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.largest import largest_of_blocks
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback
from polyattn_core.products import matmul

from .config import LowRankOTConfig
from .directions import normal_directions
from .entropic import repeated, summed
from .visibility import visible_keys


class LowRankOT(Mechanism):
    """A doubly stochastic plan of low rank, by positive random features: O(n r) an iteration.

        P v,   P = diag(eᶠ) φ(q) φ(k)ᵀ diag(eᵍ),   Σⱼ P_ij = 1,   Σᵢ P_ij → queries ÷ keys
        φ_r(x) = exp(√scale ω_r·x)

    where scale is 1/√(head size) unless given and ω_r are orthogonal random directions with the
    lengths of normal ones. φ(q)·φ(k) exp(−scale (‖q‖² + ‖k‖²)/2)/r has the mean exp(scale·q·k), and
    the norms are absorbed by the potentials: for many features P is that of `sinkhorn`. For few it
    is still a plan with these marginals, of rank r at most. All sums are log-sum-exps,

        f = −LSE_r(log φ_r(q) + LSEⱼ(log φ_r(k) + g))

    and so on in turn from g = 0, so nothing over- or underflows; rows sum to 1 exactly.

    O(n r d + t n r) time for t iterations, O(n (r + d)) memory. Gradients are those of the
    iterations as they were, O(n) memory for each. Masks are padding masks. Shapes and errors are
    those of :meth:`polyattn_core.mechanism.Mechanism.attend`. Calls from several threads are safe.

    References
    ----------
    Scetbon, Cuturi, Linear time Sinkhorn divergences using positive features, arXiv:2006.07057.
    Choromanski et al., Rethinking attention with Performers, arXiv:2009.14794.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((1, 2, 50, 8))
    >>> attention = pa.create("low-rank-ot", dim=16, heads=2, rank=4)
    >>> plan = attention.observe(x, x, x, "weights").weights
    >>> int(np.linalg.matrix_rank(plan[0, 0]))
    4
    """

    config: LowRankOTConfig

    @functools.cached_property
    def directions(self) -> Array:
        """ω (rank, head size), float64 and read-only; they follow from the seed."""
        config = self.config
        rng = np.random.default_rng(config.seed)
        drawn = normal_directions(config.rank, config.head_dim, rng)
        drawn.flags.writeable = False
        return drawn

    def _root(self) -> float:
        return math.sqrt(self.config.scale or 1 / math.sqrt(self.config.head_dim))

    def _plan(self, call: Call) -> _Plan:
        seen = visible_keys(call)[:, None, :, None]
        turned = np.ascontiguousarray(self._root() * self.directions.T, call.dtype)
        lowest = call.dtype.type(-np.inf)
        key = matmul(np.where(seen, call.key, call.dtype.type(0)), turned)
        key = repeated(call, np.where(seen, key, lowest))
        return _Plan(matmul(call.query, turned), key, seen[..., 0], self.config)

    def _forward(self, call: Call) -> Array:
        plan = self._plan(call)
        left, right = plan.factors()
        return np.asarray(
            matmul(left, matmul(right.swapaxes(-1, -2), plan.shown(repeated(call, call.value))))
        )

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        plan = self._plan(call)
        left, right = plan.factors()
        value = plan.shown(repeated(call, call.value))
        latent = matmul(right.swapaxes(-1, -2), value)
        output = matmul(left, latent)
        turned = np.asarray(self._root() * self.directions, call.dtype)
        group = call.query.shape[1] // call.key.shape[1]

        def pullback(gradient: Array) -> Gradients:
            d_latent = matmul(left.swapaxes(-1, -2), gradient)
            d_value = matmul(right, d_latent)
            d_left = matmul(gradient, latent.swapaxes(-1, -2))
            d_query, d_key = plan.pull_back(left, right, d_left, value @ d_latent.swapaxes(-1, -2))
            return Gradients(
                d_query @ turned, summed(d_key @ turned, group), summed(d_value, group)
            )

        return output, pullback

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        plan = self._plan(call)
        left, right = plan.factors()
        output = matmul(
            left, matmul(right.swapaxes(-1, -2), plan.shown(repeated(call, call.value)))
        )
        found: dict[str, Array] = {}
        if "column_mass" in wanted:
            found["column_mass"] = np.einsum("bhr,bhkr->bhk", left.sum(axis=-2), right)
        if "weights" in wanted:
            found["weights"] = left @ right.swapaxes(-1, -2)
        if "top_weights" in wanted:
            found |= largest_of_blocks(
                lambda rows: left[:, :, rows] @ right.swapaxes(-1, -2), call.shape.queries, call.top
            )
        return output, found

    def __getstate__(self) -> dict[str, object]:
        # What follows from the configuration is drawn anew.
        return {name: value for name, value in self.__dict__.items() if name != "directions"}


@dataclass(slots=True)
class _Step:
    before: Array  # g that the step started from
    query: Array  # f
    active: Array


class _Plan:
    """Potentials for log features X (batch, heads, n, rank) and Y (batch, heads, m, rank)."""

    def __init__(self, x: Array, y: Array, seen: Array, config: LowRankOTConfig) -> None:
        self.x, self.y, self.seen = x, y, seen
        self.steps: list[_Step] = []
        count = np.maximum(seen.sum(axis=-1, keepdims=True), 1)
        self._log_mass = np.asarray(np.log(x.shape[2] / count), x.dtype)
        key = np.zeros(y.shape[:3], x.dtype)
        active = np.ones((*x.shape[:2], 1), bool)
        last: Array | None = None
        for _ in range(config.iterations):
            query = -self._over_keys(key)
            if last is not None and config.tolerance > 0:
                change = np.abs(query - last).max(axis=-1, keepdims=True)
                active = active & ~(change <= config.tolerance)
                if not active.any():
                    break
            self.steps.append(_Step(key, query, active))
            found = self._log_mass - self._over_queries(query)
            key = np.where(active & seen, found, key)
            last = query
        self.key = key

    def shown(self, value: Array) -> Array:
        """Values, 0 where hidden."""
        return np.where(self.seen[..., None], value, value.dtype.type(0))

    def factors(self) -> tuple[Array, Array]:
        """P as a product of (n, rank), whose rows sum to 1, and (m, rank), whose columns do."""
        total = _over_rows(self.y, self.key)
        right = _softmax(self.y + self.key[..., None], total[..., None, :])
        # A batch element without visible keys has no plan.
        none = np.isneginf(total)
        left = self._shares(self.x, np.where(none, total.dtype.type(0), total))
        return np.where(none[..., None, :], left.dtype.type(0), left), right

    @staticmethod
    def _shares(array: Array, shift: Array) -> Array:
        """The soft-max over the rank of an array, shifted for each column."""
        return _softmax(array + shift[..., None, :], _over_rank(array, shift)[..., None])

    def _over_keys(self, key: Array) -> Array:
        """LSEⱼ of the kernel and g, (batch, heads, n); 0 where there is no key."""
        found = _over_rank(self.x, _over_rows(self.y, key))
        return np.where(np.isneginf(found), found.dtype.type(0), found)

    def _over_queries(self, query: Array) -> Array:
        """LSEᵢ of the kernel and f, (batch, heads, m)."""
        return _over_rank(self.y, _over_rows(self.x, query))

    def pull_back(
        self, left: Array, right: Array, d_left: Array, d_right: Array
    ) -> tuple[Array, Array]:
        """Gradients by X and Y of the factors, through the iterations."""
        d_inner = _softmax_pullback(left, d_left, -1)
        d_x = d_inner
        # The column totals enter the soft-max of rows; their gradient returns through weights.
        d_inner_y = right * d_inner.sum(axis=-2, keepdims=True)
        d_inner_y += _softmax_pullback(right, d_right, -2)
        d_y = d_inner_y
        d_key = d_inner_y.sum(axis=-1)
        for step in reversed(self.steps):
            live = step.active & self.seen
            passed, d_found = np.where(live, 0, d_key), np.where(live, -d_key, 0)
            # g = log b − LSE_r(Y + LSEᵢ(X + f))
            total = _over_rows(self.x, step.query)
            inner = _softmax(self.x + step.query[..., None], total[..., None, :])
            outer = self._shares(self.y, total) * d_found[..., None]
            part = inner * outer.sum(axis=-2, keepdims=True)
            d_y = d_y + outer
            d_x = d_x + part
            d_query = -part.sum(axis=-1)
            # f = −LSE_r(X + LSEⱼ(Y + g))
            total = _over_rows(self.y, step.before)
            inner = _softmax(self.y + step.before[..., None], total[..., None, :])
            total = np.where(np.isneginf(total), total.dtype.type(0), total)
            outer = self._shares(self.x, total) * d_query[..., None]
            part = inner * outer.sum(axis=-2, keepdims=True)
            d_x = d_x + outer
            d_y = d_y + part
            d_key = part.sum(axis=-1) + passed
        return d_x, d_y


def _over_rows(array: Array, shift: Array) -> Array:
    """ln Σᵢ exp(array + shift) of arrays (batch, heads, n, rank), (batch, heads, n): (…, rank)."""
    return _log_sum_exp(array, shift, 0)


def _over_rank(array: Array, shift: Array) -> Array:
    """ln Σᵣ exp(array + shift) of arrays (batch, heads, n, rank), (batch, heads, rank): (…, n)."""
    return _log_sum_exp(array, shift, 1)


def _log_sum_exp(array: Array, shift: Array, which: int) -> Array:
    from polyattn_core.simd import threads

    from .kernels.factors import BLOCK, factor_kernels

    batch, heads, count, rank = array.shape
    out = np.empty((batch * heads, (rank, count)[which]), array.dtype)
    tasks = batch * heads * (1, -(-count // BLOCK))[which]
    flat = np.ascontiguousarray(array).reshape(-1, count, rank)
    shifts = np.ascontiguousarray(shift, array.dtype).reshape(batch * heads, -1)
    kernel = factor_kernels(array.dtype.name)[which]
    threads.run(kernel, (flat, shifts, out), tasks, threads.limit())
    return out.reshape(batch, heads, -1)


def _softmax(array: Array, total: Array) -> Array:
    """exp(array − total), 0 where nothing is finite."""
    return np.asarray(np.exp(array - np.where(np.isneginf(total), total.dtype.type(0), total)))


def _softmax_pullback(weights: Array, gradient: Array, axis: int) -> Array:
    return np.asarray(weights * (gradient - (weights * gradient).sum(axis=axis, keepdims=True)))
