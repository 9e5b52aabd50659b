"""The chunked scan of S_t = diag(a_t) S_{t−1} + k_t u_tᵀ, o_t = S_tᵀ q_t, and its gradient.

Without β, u = v. With β, a delta rule: u_t = β_t (v_t − (diag(a_t) S_{t−1})ᵀ k_t), which writes the
difference between a value and what the state holds for its key.

Within a chunk that starts from S, with cumulative decays G, everything is a product of matrices
(the UT transform of the WY form, arXiv:2406.06484, with decays of channels):

    P = tril(q k, decayed),  A = tril(k k, decayed, −1),  T = (I + diag(β) A)⁻¹
    U = T β(V − (G k) S)          O = (G q) S + P U
    S' = (diag(total) − K̂ᵀ T β (G k)) S + K̂ᵀ T β V,    K̂ = k decayed to the chunk's end

Three passes: summaries of the chunks, in parallel; the scan over their states, one small product a
chunk; the outputs, in parallel. The gradient is the same three passes backwards, with the
transitions transposed, and recomputes everything but T and the states.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.simd import threads

from .decays import Decays, blocks_on_diagonal, decays_of
from .problem import Problem

Array = npt.NDArray[Any]

_PART = 8  # chunks that are computed at once: their arrays stay in the cache


@dataclass(slots=True)
class ScanGradients:
    """Gradients by everything that entered; of the shapes that it had."""

    query: Array
    key: Array
    value: Array
    logarithms: Array | None
    beta: Array | None
    state: Array


@dataclass(slots=True)
class _Part:
    """Some chunks of one unit: (chunks, length, size), the query (group, chunks, length, size)."""

    place: tuple[int, int, slice]
    query: Array
    key: Array
    value: Array
    beta: Array | None
    decays: Decays


class Scan:
    """One scan with its summaries and states; gradients are taken from it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.tokens, size = problem.key.shape[-2:]
        width = problem.value.shape[-1]
        self.length = min(problem.length, 1 << (self.tokens - 1).bit_length())
        self.chunks = -(-self.tokens // self.length)
        self.parts = -(-self.chunks // _PART)
        batch, heads = self.units = problem.units
        self.threads = problem.workers()
        dtype, shape = problem.key.dtype, (batch, heads, self.chunks)
        self.gains = np.empty((*shape, size, width), dtype)
        self.transitions: Array | None = None
        self.inverses: Array | None = None
        if problem.beta is not None:
            self.transitions = np.empty((*shape, size, size), dtype)
            self.inverses = np.empty((*shape, self.length, self.length), dtype)
        elif problem.logarithms is not None:
            self.transitions = np.empty((*shape, problem.logarithms.shape[-1], 1), dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            self._each_part(self._summarise)
            self.states = self._chain(problem.start(), self.transitions, self.gains)
        self.finite = bool(np.isfinite(self.states).all())

    # ---- forward --------------------------------------------------------------------------------

    def _summarise(self, part: _Part) -> None:
        """Gain and transition of each chunk."""
        b, h, chosen = part.place
        to_end = (part.key * part.decays.after).swapaxes(-1, -2)
        update, total = part.value, np.asarray(part.decays.total)
        if part.beta is not None and self.inverses is not None and self.transitions is not None:
            inverse = _inverse(part.beta * part.decays.pairs(part.key, part.key))
            self.inverses[b, h, chosen] = inverse
            update = inverse @ (part.beta * part.value)
            reads = inverse @ (part.beta * part.key * part.decays.before)
            transition = self.transitions[b, h, chosen]
            np.negative(to_end @ reads, out=transition)
            np.einsum("...ii->...i", transition)[...] += total
        elif self.transitions is not None:
            self.transitions[b, h, chosen] = total[..., None]
        np.matmul(to_end, update, out=self.gains[b, h, chosen])

    def outputs(self) -> Array:
        """(batch, heads, group, tokens, value size)."""
        out = self.problem.output()

        def read(part: _Part) -> None:
            b, h, chosen = part.place
            update = self._updates(part)[0]
            found = part.decays.pairs(part.query, part.key) @ update
            found += (part.query * part.decays.before) @ self.states[b, h, chosen]
            self._put(out[b, h], part, found)

        with np.errstate(invalid="ignore", over="ignore"):
            self._each_part(read)
        return out

    def _updates(self, part: _Part) -> tuple[Array, Array]:
        """U, and for a delta rule V − (G k) S."""
        if part.beta is None or self.inverses is None:
            return part.value, part.value
        b, h, chosen = part.place
        missing = part.value - (part.key * part.decays.before) @ self.states[b, h, chosen]
        return self.inverses[b, h, chosen] @ (part.beta * missing), missing

    def _chain(self, start: Array, transitions: Array | None, gains: Array) -> Array:
        """States before each chunk and after the last, (batch, heads, chunks + 1, …)."""
        batch, heads, chunks, size, width = gains.shape
        states = np.empty((batch, heads, chunks + 1, size, width), gains.dtype)
        states[:, :, 0] = start

        def follow(unit: int) -> None:
            b, h = divmod(unit, heads)
            own, gain = states[b, h], gains[b, h]
            for m in range(chunks):
                if transitions is None:
                    np.add(own[m], gain[m], out=own[m + 1])
                    continue
                # One factor for all, one a row, or a matrix.
                apply = np.multiply if transitions.shape[-1] == 1 else np.matmul
                apply(transitions[b, h, m], own[m], out=own[m + 1])
                own[m + 1] += gain[m]

        self._each(batch * heads, follow)
        return states

    # ---- backward -------------------------------------------------------------------------------

    def gradients(self, gradient: Array, at_end: Array | None = None) -> ScanGradients:
        """From the gradients by the output, and by the state at the end where there is one."""
        problem = self.problem
        gains = np.empty_like(self.gains)

        def summarise(part: _Part) -> None:
            b, h, chosen = part.place
            incoming = self._chunked(gradient[b, h], chosen)
            gain = ((part.query * part.decays.before).swapaxes(-1, -2) @ incoming).sum(axis=0)
            if part.beta is not None and self.inverses is not None:
                pairs = part.decays.pairs(part.query, part.key)
                by_update = (pairs.swapaxes(-1, -2) @ incoming).sum(axis=0)
                reads = part.beta * part.key * part.decays.before
                reads = self.inverses[b, h, chosen] @ reads
                gain -= reads.swapaxes(-1, -2) @ by_update
            gains[b, h, chosen] = gain

        self._each_part(summarise)
        transposed = self.transitions
        if transposed is not None:
            transposed = transposed[:, :, ::-1]
            if problem.beta is not None:
                transposed = transposed.swapaxes(-1, -2)
        end = np.zeros_like(gains[:, :, 0]) if at_end is None else at_end
        chain = self._chain(end, transposed, gains[:, :, ::-1])
        by_state = chain[:, :, ::-1]
        found = ScanGradients(
            np.empty(problem.query.shape, end.dtype),
            np.empty(problem.key.shape, end.dtype),
            np.empty(problem.value.shape, end.dtype),
            None if problem.logarithms is None else np.empty(problem.logarithms.shape, end.dtype),
            None if problem.beta is None else np.empty(problem.beta.shape, end.dtype),
            by_state[:, :, 0],
        )
        self._each_part(lambda part: self._differentiate(part, gradient, by_state, found))
        return found

    def _differentiate(
        self, part: _Part, gradient: Array, by_state: Array, found: ScanGradients
    ) -> None:
        b, h, chosen = part.place
        decays, key = part.decays, part.key
        incoming = self._chunked(gradient[b, h], chosen)
        state = self.states[b, h, chosen]
        by_next = by_state[b, h, slice(chosen.start + 1, chosen.stop + 1)]
        update, missing = self._updates(part)

        pairs = decays.pairs(part.query, key)
        by_update = (pairs.swapaxes(-1, -2) @ incoming).sum(axis=0)
        by_update += (key * decays.after) @ by_next
        by_pairs = incoming @ update.swapaxes(-1, -2)
        by_query = decays.before * (incoming @ state.swapaxes(-1, -2))
        by_query += decays.to_left(by_pairs, key)
        # A key writes, as a column of the pairs, and with a delta rule it also reads, as a row.
        to_end = decays.after * (update @ by_next.swapaxes(-1, -2))
        writing = to_end + decays.to_right(by_pairs, part.query).sum(axis=0)
        reading = None
        by_value = by_update
        if part.beta is not None and self.inverses is not None and found.beta is not None:
            by_missing = self.inverses[b, h, chosen].swapaxes(-1, -2) @ by_update
            own = np.tril(decays.pairs(key, key), -1)
            by_beta = (by_missing * (missing - own @ update)).sum(axis=-1, keepdims=True)
            self._put(found.beta[b, h], part, by_beta)
            by_value = part.beta * by_missing
            by_own = np.tril(-by_value @ update.swapaxes(-1, -2), -1)
            reading = decays.to_left(by_own, key)
            reading -= decays.before * (by_value @ state.swapaxes(-1, -2))
            writing += decays.to_right(by_own, key)
        if found.logarithms is not None:
            # By the sum of logarithms up to a token: + where its decays act, − where they are
            # yet to come.
            by_sum = (part.query * by_query).sum(axis=0) - key * writing
            if reading is not None:
                by_sum += key * reading
            by_sum[:, -1] += (key * to_end).sum(axis=-2)
            by_sum[:, -1] += np.asarray(decays.total) * (state * by_next).sum(axis=-1)
            if found.logarithms.shape[-1] == 1:
                by_sum = by_sum.sum(axis=-1, keepdims=True)
            self._put(found.logarithms[b, h], part, _sums_to_end(by_sum))
        self._put(found.query[b, h], part, by_query)
        self._put(found.key[b, h], part, writing if reading is None else writing + reading)
        self._put(found.value[b, h], part, by_value)

    # ---- parts and threads ----------------------------------------------------------------------

    def _each_part(self, work: Callable[[_Part], None]) -> None:
        batch, heads = self.units

        def do(task: int) -> None:
            unit, part = divmod(task, self.parts)
            b, h = divmod(unit, heads)
            work(self._part(b, h, part))

        self._each(batch * heads * self.parts, do)

    def _each(self, tasks: int, work: Callable[[int], None]) -> None:
        """Work on all tasks; NumPy releases the GIL where it takes long."""
        numbers = itertools.count()

        def worker(counter: Array) -> None:
            with np.errstate(invalid="ignore", over="ignore"):
                while (task := next(numbers)) < tasks:
                    work(task)

        threads.run(worker, (), tasks, self.threads)

    def _part(self, b: int, h: int, index: int) -> _Part:
        problem = self.problem
        chosen = slice(index * _PART, min((index + 1) * _PART, self.chunks))
        beta, logarithms = problem.beta, problem.logarithms
        return _Part(
            (b, h, chosen),
            self._chunked(problem.query[b, h], chosen),
            self._chunked(problem.key[b, h], chosen),
            self._chunked(problem.value[b, h], chosen),
            None if beta is None else self._chunked(beta[b, h], chosen),
            decays_of(None if logarithms is None else self._chunked(logarithms[b, h], chosen)),
        )

    def _chunked(self, array: Array, chosen: slice) -> Array:
        """(…, tokens, size) → (…, chosen chunks, length, size); 0 beyond the last token."""
        first, stop = chosen.start * self.length, chosen.stop * self.length
        taken = array[..., first : min(stop, self.tokens), :]
        missing = stop - self.tokens
        if missing > 0:
            taken = np.concatenate(
                (taken, np.zeros((*taken.shape[:-2], missing, taken.shape[-1]), taken.dtype)), -2
            )
        chunks = chosen.stop - chosen.start
        split = taken.reshape(*taken.shape[:-2], chunks, self.length, taken.shape[-1])
        return np.ascontiguousarray(split)

    def _put(self, out: Array, part: _Part, found: Array) -> None:
        """Write chunks of a part where they belong."""
        chosen = part.place[2]
        first, stop = chosen.start * self.length, min(chosen.stop * self.length, self.tokens)
        flat = found.reshape(*found.shape[:-3], -1, found.shape[-1])
        out[..., first:stop, :] = flat[..., : stop - first, :]


def _inverse(lower: Array) -> Array:
    """(I + strictly lower part)⁻¹ of (…, length, length), by doubling blocks on the diagonal.

    The lower left block of the inverse of ((X, 0), (B, Y)) is −Y⁻¹ B X⁻¹.
    """
    length = lower.shape[-1]
    found = np.zeros_like(lower)
    np.einsum("...ii->...i", found)[...] = 1
    half = 1
    while half < length:
        block = blocks_on_diagonal(found, 2 * half)
        corner = blocks_on_diagonal(lower, 2 * half)[..., half:, :half]
        if half > 1:
            corner = block[..., half:, half:] @ corner @ block[..., :half, :half]
        np.negative(corner, out=block[..., half:, :half])
        half *= 2
    return found


def _sums_to_end(array: Array) -> Array:
    """Sums from each token to the chunk's end, of (chunks, length, size)."""
    # By a product of matrices: a running sum waits for itself at each step.
    length = array.shape[-2]
    return np.asarray(np.triu(np.ones((length, length), array.dtype)) @ array)
