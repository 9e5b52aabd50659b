"""Sinkhorn iterations in the log domain, on the streaming engine.

With scores S, potentials f of the queries and g of the keys alternate:

    f = λ_q (log a − LSE_j(S_ij + g_j)),      g = λ_k (log b − LSE_i(S_ij + f_i))

λ = 1 is balanced transport; λ = ρ/(ρ + 1) has marginals that may deviate at the price ρ. Either
half is the log-sum-exp of attention with one coordinate more: of queries (q, 1) on keys (k, g), and
of keys (k, 1) on queries (q, f) under the transposed mask. So a half costs what scores cost,
nothing of size queries × keys is kept, masks and biases are the engine's, and gradients of the
iterations are the engine's gradients of log-sum-exps, in reverse order.

Squared distances are products with terms of rows and columns, S_ij = D_ij + r_i + c_j, which the
potentials absorb: F = f + r and G = g + c are what is kept here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.masks import Dense, Mask, MaskShape, Primitive
from polyattn_core.mechanism import Call
from polyattn_core.streaming import bias_view

if TYPE_CHECKING:
    from polyattn_core.simd.engine import EngineGradients, Request, State


@dataclass(frozen=True, slots=True)
class Potentials:
    """The potentials of a transport plan, and how far the iterations have come."""

    query: Array
    """f (…, heads, queries)."""
    key: Array
    """g (…, heads, keys)."""
    iterations: Array
    """(…, heads): iterations until the head stopped."""
    error: Array
    """(…, heads): the largest change of f in the last of them, which for balanced plans is the
    largest deviation of a logarithmic row sum."""
    converged: Array
    """(…, heads): whether the error is within the tolerance."""


@dataclass(slots=True)
class _Step:
    before: Array  # G that the step started from
    rows: Array  # LSE over keys
    query: Array  # F
    columns: Array  # LSE over queries
    active: Array  # (batch, heads, 1): heads that had not stopped


class Transport:
    """One transport problem: queries (batch, heads, n, d) to keys (batch, heads, m, d).

    `query` holds the scale already. `row` and `column` are r and c, or None for products;
    `masses` (batch, heads, m) those of the keys, which sum to 1, or None for equal ones;
    `exponents` are (λ_q, λ_k). Not for use from several threads at once: a call makes its own.
    """

    def __init__(
        self, call: Call, query: Array, key: Array, *, row: Array | None = None,
        column: Array | None = None, masses: Array | None = None,
        exponents: tuple[float, float] = (1.0, 1.0), threads: int | None = None,
    ) -> None:  # fmt: skip
        dtype = query.dtype
        batch, heads, queries, size = query.shape
        keys = key.shape[2]
        self._left = np.ones((batch, heads, queries, size + 1), dtype)
        self._left[..., :size] = query
        self._right = np.ones((batch, heads, keys, size + 1), dtype)
        self._right[..., :size] = key
        self._row = np.zeros((batch, heads, queries), dtype) if row is None else row
        self._column = np.zeros((batch, heads, keys), dtype) if column is None else column
        self._masses = masses
        self._exponents = exponents
        self._threads = threads
        self._sizes = queries, keys
        self._masks = _encoded(call.mask, call.shape)
        self._bias = None if call.bias is None else bias_view(call)
        self.steps: list[_Step] = []
        self.final = self._column
        """G after the last iteration."""
        self.error = np.full((batch, heads), np.inf, dtype)

    # ---- forward ------------------------------------------------------------------------------

    def solve(self, iterations: int, tolerance: float) -> None:
        """Iterate; each head stops by itself."""
        exponent_q, exponent_k = self._exponents
        key = self._column
        active = np.ones((*key.shape[:2], 1), bool)
        last: Array | None = None
        log_b: Array | None = None
        for _ in range(iterations):
            rows = self._log_sum_exp(key, False)
            query = _potential(rows, 0.0, exponent_q, self._row)
            if last is not None:
                with np.errstate(invalid="ignore"):
                    change = np.abs(query - last).max(axis=-1)
                self.error = np.where(active[..., 0], change, self.error)
                active = active & ~(self.error <= tolerance)[..., None]
                if tolerance > 0 and not active.any():
                    break
            columns = self._log_sum_exp(query, True)
            if log_b is None:
                log_b = self._log_masses(rows, columns)
            found = _potential(columns, log_b, exponent_k, self._column)
            self.steps.append(_Step(key, rows, query, columns, active))
            key = np.where(active, found, key)
            last = query
        self.final = key

    def attend(self, value: Array) -> tuple[Array, Array, Request, State]:
        """Output of the plan, the mass of each row, and the engine's request and state."""
        from polyattn_core.simd import engine

        request = self._request(self.final, False, value)
        state = engine.forward(request)
        mass = self._mass(state.first)
        return state.out * mass[..., None], mass, request, state

    def potentials(self, tolerance: float) -> Potentials:
        """f, g and the state of convergence."""
        rows = self._log_sum_exp(self.final, False)
        query = _potential(rows, 0.0, self._exponents[0], self._row)
        taken = np.sum([step.active[..., 0] for step in self.steps], axis=0)
        error = np.abs(query - self.steps[-1].query).max(axis=-1)
        return Potentials(
            query - self._row, self.final - self._column, taken, error, error <= tolerance
        )

    def _mass(self, rows: Array) -> Array:
        free = 1 - self._exponents[0]
        if free == 0:
            return np.ones_like(rows)
        return np.asarray(np.exp(free * (self._row + rows)))

    def _log_masses(self, rows: Array, columns: Array) -> Array:
        """log b: what the rows that see something bring, shared among the columns that are seen."""
        supply = (~np.isneginf(rows)).sum(axis=-1, keepdims=True).astype(rows.dtype)
        seen = ~np.isneginf(columns)
        if self._masses is None:
            share = seen / np.maximum(seen.sum(axis=-1, keepdims=True), 1)
        else:
            share = np.where(seen, self._masses, 0)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(supply * share), rows.dtype)

    def _log_sum_exp(self, potential: Array, transposed: bool) -> Array:
        from polyattn_core.simd import engine

        return engine.forward(self._request(potential, transposed, None)).first

    def _request(self, potential: Array, transposed: bool, value: Array | None) -> Request:
        """Attention whose scores are D + potential of what is summed over."""
        from polyattn_core.simd.engine import Request

        query, key = (self._right, self._left) if transposed else (self._left, self._right)
        key[..., -1] = potential
        query[..., -1] = 1
        if value is None:
            value = np.broadcast_to(np.zeros(1, key.dtype), (*key.shape[:3], 1))
        request = Request(query, key, value, 1.0, threads=self._threads)
        request.mask = self._masks[transposed]
        request.mask_queries, request.mask_keys = query.shape[2], key.shape[2]
        if self._bias is not None:
            bias, request.bias_batch = self._bias
            request.bias = bias.swapaxes(-1, -2) if transposed else bias
        return request

    # ---- backward -----------------------------------------------------------------------------

    def gradients(
        self, request: Request, state: State, mass: Array, gradient: Array
    ) -> TransportGradients:
        """Gradients of what `attend` returned, through the iterations as they were."""
        from polyattn_core.simd import engine
        from polyattn_core.simd.engine import State as EngineState

        exponent_q, exponent_k = self._exponents
        incoming = gradient * mass[..., None]
        by_mass = (1 - exponent_q) * np.einsum("bhqd,bhqd->bhq", incoming, state.out)
        # The row's mass is exp((1 − λ)(r + LSE)): its part in the gradient by the log-sum-exp is
        # that of the output times (1 − λ), which leaves λ times the usual correction.
        scaled = EngineState(exponent_q * state.out, state.first, state.second)
        request = self._request(_finite(self.final), False, request.value)
        found = TransportGradients(
            np.zeros_like(self._left), np.zeros_like(self._right), by_mass,
            np.zeros_like(self._column), None, None,
        )  # fmt: skip
        ended = engine.backward(request, scaled, np.ascontiguousarray(incoming))
        found.value = ended.value
        found.add(ended, False)
        by_key = ended.key[..., -1]
        for step in reversed(self.steps):
            # G = λ_k (log b − LSE_i(D + F)) + (1 − λ_k) c where the head was active.
            passed = np.where(step.active, 0, by_key)
            by_key = np.where(step.active & ~np.isneginf(step.columns), by_key, 0)
            found.column += (1 - exponent_k) * by_key
            part = self._pull_back(step.query, step.columns, -exponent_k * by_key, True)
            found.add(part, True)
            # F = −λ_q LSE_j(D + G) + (1 − λ_q) r.
            by_query = np.where(np.isneginf(step.rows), 0, part.key[..., -1])
            found.row += (1 - exponent_q) * by_query
            part = self._pull_back(step.before, step.rows, -exponent_q * by_query, False)
            found.add(part, False)
            by_key = part.key[..., -1] + passed
        found.column += by_key
        return found

    def _pull_back(
        self, potential: Array, log_sum_exp: Array, gradient: Array, transposed: bool
    ) -> EngineGradients:
        """Gradients of a log-sum-exp: those of attention to nothing but its correction term."""
        from polyattn_core.simd import engine
        from polyattn_core.simd.engine import State as EngineState

        request = self._request(_finite(potential), transposed, None)
        state = EngineState(-gradient[..., None], log_sum_exp, np.zeros_like(log_sum_exp))
        return engine.backward(request, state, np.ones((*log_sum_exp.shape, 1), gradient.dtype))


@dataclass(slots=True)
class TransportGradients:
    """By (query, ·), (key, ·), r, c, value and bias."""

    query: Array
    key: Array
    row: Array
    column: Array
    value: Array | None
    bias: Array | None

    def add(self, part: EngineGradients, transposed: bool) -> None:
        """Add gradients of one request; their last coordinates are those of potentials."""
        self.query += part.key if transposed else part.query
        self.key += part.query if transposed else part.key
        if part.bias is not None:
            bias = part.bias.swapaxes(-1, -2) if transposed else part.bias
            self.bias = bias.copy() if self.bias is None else self.bias + bias


def _potential(log_sum_exp: Array, log_mass: Any, exponent: float, own: Array) -> Array:
    """λ (log mass − LSE) + (1 − λ) own; 0 where nothing is visible: it meets no visible pair."""
    with np.errstate(invalid="ignore"):  # where nothing is visible, and hidden NaN
        found = exponent * (log_mass - log_sum_exp)
        if exponent < 1:
            found = found + (1 - exponent) * own
    return np.asarray(np.where(np.isneginf(log_sum_exp), 0, found), log_sum_exp.dtype)


def _finite(potential: Array) -> Array:
    """As good as −∞ for exponentials, and 0 where it is multiplied by a gradient of 0."""
    return np.asarray(np.maximum(potential, np.finfo(potential.dtype).min / 8))


def _encoded(mask: Mask | None, shape: MaskShape) -> tuple[Any, Any]:
    """The mask as the engine reads it, and its transpose."""
    from polyattn_core.simd import masking

    if mask is None:
        return masking.NO_MASK, masking.NO_MASK
    program = mask.program(shape)
    across = MaskShape(shape.lead, shape.heads, shape.keys, shape.queries)
    if "predicate" in mask.kinds:
        # Compiled for (query, key): the only kind whose transpose has to be written out.
        seen = mask.dense(shape).swapaxes(-1, -2)
        transposed = Dense(seen.reshape(*shape.lead, *seen.shape[1:])).program(across)
    else:
        transposed = tuple(_transposed(step, shape) for step in program)
    return masking.encode(program), masking.encode(transposed)


def _transposed(step: Primitive, shape: MaskShape) -> Primitive:
    """The primitive with the roles of queries and keys exchanged."""
    kind, numbers, table = step.kind, step.integers, step.table
    if kind == "band":
        return Primitive("band", (-numbers[1], -numbers[0]))
    if kind == "modulo":
        return Primitive("modulo", (numbers[0], -numbers[1] % numbers[0]))
    if table is None:
        return step
    if kind == "below":
        seen = np.arange(shape.keys) < table.reshape(-1, 1)
        return Primitive("queries", (), seen.astype(np.uint8))
    if kind == "equal":
        halves = (table[:, shape.queries :], table[:, : shape.queries])
        return Primitive("equal", (), np.concatenate(halves, axis=1))
    if kind in ("keys", "queries"):
        return Primitive("queries" if kind == "keys" else "keys", (), table)
    return Primitive(kind, numbers[::-1], np.ascontiguousarray(table.swapaxes(-1, -2)))
