"""The mechanism `early-exit`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ShapeError
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback

from .mechanisms import initial_maps, inverse_temperature, pull_restricted, restrict


@dataclass(slots=True)
class _Step:
    """One step of those queries that have not settled: (batch, heads, most of any head)."""

    rows: Array
    """Which queries, by their place among all of the call."""
    live: Array
    """Heads with fewer repeat queries, which do not count."""
    state: Array
    request: Any
    attended: Any


class EarlyExit(Mechanism):
    """States relax towards what they agree with, and each query stops once it has settled.

        xᵢ ← (1 − step) xᵢ + step · Σⱼ softmaxⱼ(−β ‖ρ_q xᵢ − ρ_k kⱼ‖²) vⱼ,   from xᵢ = qᵢ

    until a step moves xᵢ by at most tolerance · ‖xᵢ‖, or `max_steps`. Queries that have settled are
    no longer computed: :meth:`steps` says after how many steps each did. Values are as wide as
    queries. The maps are parameters as in :class:`polyattn_sheaf.mechanisms.Sheaf`.

    O(Σ steps · n (stalk + d)) time, in tiles; O(n d) memory, and for gradients as much for each
    step. Gradients are by query, key, value and maps, through the steps that were taken; where a
    query exits is not differentiated through. Masks are padding masks.

    References
    ----------
    Sheaf diffusion as relaxation: Hansen and Gebhart, Sheaf neural networks, arXiv:2012.06333.
    Halting by token: Graves, Adaptive computation time for recurrent neural networks,
    arXiv:1603.08983.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> layer = pa.create("early-exit", dim=2, beta=50.0, max_steps=30, step=0.9)
    >>> patterns = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> layer(np.array([[0.8, 0.1], [1.0, 0.0]]), patterns).round(2)
    array([[1., 0.],
           [1., 0.]])
    """

    config: Any

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        return initial_maps(self.config, rng)

    def steps(self, query: Any, key: Any, value: Any, *, mask: Any = None) -> Array:
        """After how many steps each query exits, (…, heads, queries), from head-level arrays."""
        call, lead, _ = self._prepare(query, key, value, mask, None, False, None, {})
        taken = self._run(call)[1]
        found: Array = taken.reshape(*lead, *taken.shape[1:])
        return found

    def _run(self, call: Call, tape: list[_Step] | None = None) -> tuple[Array, Array]:
        """States and numbers of steps of all queries; steps are noted on the tape."""
        from polyattn_core.simd import engine

        config = self.config
        if call.value.shape[-1] != call.query.shape[-1]:
            raise ShapeError(
                "value", f"head size {call.value.shape[-1]}",
                f"{call.query.shape[-1]} like query, as states move towards values",
            )  # fmt: skip
        keys = restrict(call.key, self.parameters["key_map"])
        sees = self._sees(call)[:, :, None]
        out = np.ascontiguousarray(np.where(sees[..., None], call.query, call.dtype.type(0)))
        taken = np.zeros(out.shape[:3], np.int64)
        states, counts = out.reshape(-1, out.shape[-1]), taken.reshape(-1)
        active = np.broadcast_to(sees, taken.shape).copy()
        for _ in range(config.max_steps):
            rows, live = _gathered(active)
            if not rows.size:
                break
            x = states[rows]
            request = self._request(call, restrict(x, self.parameters["query_map"]), keys)
            attended = engine.forward(request)
            moved = (1 - config.step) * x + config.step * attended.out
            if tape is not None:
                tape.append(_Step(rows, live, x, request, attended))
            states[rows[live]] = moved[live]
            counts[rows[live]] += 1
            settled = _lengths(moved - x) <= config.tolerance * _lengths(x)
            active.reshape(-1)[rows[live & settled]] = False
        return out, taken

    def _sees(self, call: Call) -> Array:
        """Which heads (batch, heads) see any key."""
        shape = call.shape
        if call.mask is None:
            return np.full((shape.batch, shape.heads), shape.keys > 0)
        dense = call.mask.dense(shape)[:, :, 0].any(axis=-1)
        return np.broadcast_to(dense, (shape.batch, shape.heads))

    def _request(self, call: Call, query: Array, key: Array) -> Any:
        from polyattn_core.simd import masking
        from polyattn_core.simd.engine import Request

        from .kernels import energy_score

        rules = [(energy_score, (inverse_temperature(self.config),))]
        request = Request(
            query, key, call.value, 1.0, rules=rules, threads=self.config.threads, recomputes=True
        )
        shape = replace(call.shape, queries=query.shape[2])
        if call.mask is not None:
            request.mask = masking.encode(call.mask.program(shape))
        request.mask_queries, request.mask_keys = shape.queries, shape.keys
        return request

    def _forward(self, call: Call) -> Array:
        return self._run(call)[0]

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        from polyattn_core.simd import engine

        tape: list[_Step] = []
        out = self._run(call, tape)[0]
        step, maps = self.config.step, dict(self.parameters)

        def pullback(gradient: Array) -> Gradients:
            sees = self._sees(call)[:, :, None, None]
            d_query = np.ascontiguousarray(np.where(sees, gradient, gradient.dtype.type(0)))
            d_states = d_query.reshape(-1, d_query.shape[-1])
            d_keys: Array | float = 0.0
            d_value: Array | float = 0.0
            d_map: Array | float = 0.0
            for one in reversed(tape):
                incoming = np.where(one.live[..., None], d_states[one.rows], 0)
                found = engine.backward(one.request, one.attended, step * incoming)
                d_x, by_map = pull_restricted(found.query, one.state, maps["query_map"])
                returned = (1 - step) * incoming + d_x
                d_states[one.rows[one.live]] = returned[one.live]
                d_keys, d_value, d_map = d_keys + found.key, d_value + found.value, d_map + by_map
            if not tape:
                none = {name: np.zeros_like(array) for name, array in maps.items()}
                zeros = np.zeros_like(call.key), np.zeros_like(call.value)
                return Gradients(d_query, *zeros, None, none)
            d_key, key_map = pull_restricted(np.asarray(d_keys), call.key, maps["key_map"])
            learned = {"query_map": np.asarray(d_map), "key_map": key_map}
            return Gradients(d_query, d_key, np.asarray(d_value), None, learned)

        return out, pullback


def _gathered(active: Array) -> tuple[Array, Array]:
    """The active queries of each head, by their place among all, and which of these count."""
    batch, heads, queries = active.shape
    counts = active.sum(axis=-1, keepdims=True)
    most = int(counts.max(initial=0))
    order = np.argsort(~active, axis=-1, kind="stable")[..., :most]
    live = np.arange(most) < counts
    first = queries * np.arange(batch * heads).reshape(batch, heads, 1)
    return np.where(live, order, order[..., :1]) + first, live


def _lengths(x: Array) -> Array:
    return np.asarray(np.linalg.norm(x, axis=-1))
