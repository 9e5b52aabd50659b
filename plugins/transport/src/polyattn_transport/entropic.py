"""Sinkhorn attention, balanced and unbalanced."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback

from .config import SinkhornConfig, UnbalancedOTConfig
from .potentials import Potentials, Transport


class _Entropic(Mechanism):
    """Attention by an entropic transport plan between all queries and all keys."""

    config: Any
    _distances = False
    """Are scores squared distances? Else products."""

    def _exponents(self) -> tuple[float, float]:
        return 1.0, 1.0

    def _scale(self) -> float:
        return float(self.config.scale or 1 / math.sqrt(self.config.head_dim))

    def potentials(self, query: Any, key: Any, *, mask: Any = None, bias: Any = None) -> Potentials:
        """The potentials of head-level queries and keys, with iterations, error, convergence."""
        call, lead, _ = self._prepare(query, key, key, mask, bias, False, None, {})
        found = self._solved(call).potentials(self.config.tolerance)
        parts = (found.query, found.key, found.iterations, found.error, found.converged)
        return Potentials(*(part.reshape((*lead, *part.shape[1:])) for part in parts))

    def _solved(self, call: Call) -> Transport:
        scale = self._scale()
        query, key = call.query, call.key
        row = column = None
        if self._distances:
            row = -0.5 * scale * np.einsum("bhqd,bhqd->bhq", query, query)
            column = -0.5 * scale * np.einsum("bhkd,bhkd->bhk", key, key)
            column = np.repeat(column, query.shape[1] // key.shape[1], axis=1)
        problem = Transport(
            call, scale * query, repeated(call, key), row=row, column=column,
            exponents=self._exponents(), threads=self.config.threads,
        )  # fmt: skip
        problem.solve(self.config.iterations, self.config.tolerance)
        return problem

    def _forward(self, call: Call) -> Array:
        return self._solved(call).attend(repeated(call, call.value))[0]

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        problem = self._solved(call)
        output, mass, request, state = problem.attend(repeated(call, call.value))
        scale, size = self._scale(), call.query.shape[3]
        group = call.query.shape[1] // call.key.shape[1]

        def pullback(gradient: Array) -> Gradients:
            found = problem.gradients(request, state, mass, gradient)
            d_query = scale * found.query[..., :size]
            d_key = summed(found.key[..., :size], group)
            if self._distances:
                by_column = summed(found.column[..., None], group)
                d_query = d_query - scale * times(found.row[..., None], call.query)
                d_key = d_key - scale * times(by_column, call.key)
            assert found.value is not None
            return Gradients(d_query, d_key, summed(found.value, group), found.bias)

        return output, pullback

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        from polyattn_core.simd import engine

        output, mass, request, state = self._solved(call).attend(repeated(call, call.value))
        found = engine.gather(request, state, wanted, call.top)
        for name in wanted & {"weights", "top_weights"}:
            found[name] *= mass[..., None]
        if "top_weights" in wanted:
            found["top_keys"][found["top_weights"] <= 0] = -1  # a mass may be 0
        if "entropy" in found:
            # Of weights that sum to m: −Σ m w ln(m w) = m·H − m ln m.
            with np.errstate(divide="ignore", invalid="ignore"):
                loss = np.where(mass > 0, mass * np.log(mass), 0)
            found["entropy"] = mass * found["entropy"] - loss
        return output, found


class SinkhornAttention(_Entropic):
    """Doubly stochastic attention: every query gives 1, and every key gets the same.

        P v,   P_ij = exp(scale·qᵢ·kⱼ + fᵢ + gⱼ),   Σⱼ P_ij = 1,   Σᵢ P_ij → queries ÷ keys

    where scale is 1/√(head size) unless given. P is the plan of least cost ½‖q − k‖² with entropy
    weighted 1/scale: the squared norms in the distance are absorbed by f and g. They alternate in
    the log domain from g = 0,

        f = −LSEⱼ(s_ij + gⱼ),      g = log(queries ÷ keys) − LSEᵢ(s_ij + fᵢ)

    and end with rows, which therefore sum to 1 exactly; columns to within what `potentials`
    reports. One iteration of none would be soft-max attention.

    Rows that see nothing get 0 and give nothing; columns that nobody sees get nothing; the others
    share. A mask may leave no doubly stochastic plan: a causal square one leaves the identity
    alone, which the iterations approach slowly, so that their number decides how far from the
    soft-max one goes.

    O(n² d) time an iteration, about that of plain attention, O(n d) memory: scores are computed
    anew, tile by tile. Gradients are those of the iterations as they were, O(n) memory for each;
    twice as long a pass for each half. Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`. Predicate masks take queries × keys bytes.
    Calls from several threads are safe.

    References
    ----------
    Sander et al., Sinkformers: transformers with doubly stochastic attention, arXiv:2110.11773.
    Cuturi, Sinkhorn distances: lightspeed computation of optimal transport, arXiv:1306.0895.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((1, 2, 50, 8))
    >>> attention = pa.create("sinkhorn", dim=16, heads=2, iterations=100)
    >>> mass = attention.observe(x, x, x, "column_mass").column_mass
    >>> bool(np.allclose(mass, 1))
    True
    """

    config: SinkhornConfig


class UnbalancedOT(_Entropic):
    """Transport whose marginals may deviate at a price: far queries give less, keys get unequally.

        P v,   P = argmin ⟨C, P⟩ + ε KL(P‖11ᵀ) + ε ρ_q KL(P1‖a) + ε ρ_k KL(Pᵀ1‖b)

    where C = ½‖q − k‖², ε = 1/scale (scale 1/√(head size) unless given), a = 1 for each query, b =
    queries ÷ keys for each key, and ρ are `query_penalty` and `key_penalty`. Potentials alternate
    as in `sinkhorn`, damped by λ = ρ/(ρ + 1), and end with rows:

        f = −λ_q LSEⱼ(s_ij + gⱼ),   g = λ_k (log b − LSEᵢ(s_ij + fᵢ)),   P = exp(s + f + g)

    A row of P sums to 1 for ρ_q → ∞ and to less where a query is far from all keys: the output is
    small there, which plain attention cannot say. ρ_k → 0 leaves keys free, as in the soft-max.

    O(n² d) time an iteration, O(n d) memory, gradients of the iterations as they were. Shapes and
    errors are those of :meth:`polyattn_core.mechanism.Mechanism.attend`. Predicate masks take
    queries × keys bytes. Calls from several threads are safe.

    References
    ----------
    Chizat et al., Scaling algorithms for unbalanced transport problems, arXiv:1607.05816.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> near, far = [0.0, 0.0], [9.0, 9.0]
    >>> attention = pa.create("unbalanced-ot", dim=2)
    >>> attention([near, far], [near, near], np.ones((2, 1))).round(2)
    array([[1.59],
           [0.  ]])
    """

    config: UnbalancedOTConfig
    _distances = True

    def _exponents(self) -> tuple[float, float]:
        query, key = self.config.query_penalty, self.config.key_penalty
        return query / (query + 1), key / (key + 1)


def repeated(call: Call, array: Array) -> Array:
    """Keys or values for each query head."""
    group = call.query.shape[1] // array.shape[1]
    return array if group == 1 else np.repeat(array, group, axis=1)


def summed(array: Array, group: int) -> Array:
    """Sum over the query heads that share a key head."""
    if group == 1:
        return array
    batch, heads, *rest = array.shape
    return np.asarray(array.reshape(batch, heads // group, group, *rest).sum(axis=2))


def times(gradient: Array, array: Array) -> Array:
    """0 where there is no gradient, whatever the array holds."""
    with np.errstate(invalid="ignore"):
        return np.where(gradient == 0, array.dtype.type(0), gradient * array)
