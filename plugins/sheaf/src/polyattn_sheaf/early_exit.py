"""The mechanism `early-exit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ShapeError
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback

from .mechanisms import initial_maps, inverse_temperature, restrict


@dataclass(slots=True)
class _Step:
    """One step of one head: which queries moved, from where, with what weights."""

    rows: Array
    state: Array
    weights: Array


class EarlyExit(Mechanism):
    """States relax towards what they agree with, and each query stops once it has settled.

        xᵢ ← (1 − step) xᵢ + step · Σⱼ softmaxⱼ(−β ‖ρ_q xᵢ − ρ_k kⱼ‖²) vⱼ,   from xᵢ = qᵢ

    until a step moves xᵢ by at most tolerance · ‖xᵢ‖, or `max_steps`. Queries that have settled are
    no longer computed: :meth:`steps` says after how many steps each did. Values are as wide as
    queries. The maps are parameters as in :class:`polyattn_sheaf.mechanisms.Sheaf`.

    O(Σ steps · n (stalk + d)) time; O(n d) memory and the weights of the queries of a head at once,
    and of all steps for gradients. Gradients are by query, key, value and maps, through the steps
    that were taken; where a query exits is not differentiated through. Masks are padding masks.

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

    def _run(self, call: Call, tape: dict[tuple[int, int], list[_Step]] | None = None) -> Any:
        config, shape = self.config, call.shape
        if call.value.shape[-1] != call.query.shape[-1]:
            raise ShapeError(
                "value", f"head size {call.value.shape[-1]}",
                f"{call.query.shape[-1]} like query, as states move towards values",
            )  # fmt: skip
        beta, step = inverse_temperature(config), config.step
        group = shape.heads // call.key.shape[1]
        keys = restrict(call.key, self.parameters["key_map"])
        maps = self.parameters["query_map"].astype(call.dtype)
        visible = None if call.mask is None else call.mask.dense(shape)[:, :, 0]
        out = call.query.copy()
        taken = np.zeros(out.shape[:3], np.int64)
        for b in range(shape.batch):
            for h in range(shape.heads):
                k, v = keys[b, h // group], call.value[b, h // group]
                if visible is not None:
                    k, v = k[visible[b, h]], v[visible[b, h]]
                if not len(k):
                    out[b, h] = 0
                    continue
                norms = np.einsum("ns,ns->n", k, k)
                rows = np.arange(shape.queries)
                history: list[_Step] = []
                for _ in range(config.max_steps):
                    x = out[b, h, rows]
                    # The norm of the state is the same for all keys.
                    scores = beta * (2 * (x @ maps[h].T) @ k.T - norms)
                    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                    weights /= weights.sum(axis=1, keepdims=True)
                    moved = (1 - step) * x + step * (weights @ v)
                    out[b, h, rows] = moved
                    taken[b, h, rows] += 1
                    if tape is not None:
                        history.append(_Step(rows, x, weights))
                    size = np.linalg.norm(x, axis=1)
                    rows = rows[~(np.linalg.norm(moved - x, axis=1) <= config.tolerance * size)]
                    if not len(rows):
                        break
                if tape is not None:
                    tape[b, h] = history
        return out, taken

    def _forward(self, call: Call) -> Array:
        out: Array = self._run(call)[0]
        return out

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        tape: dict[tuple[int, int], list[_Step]] = {}
        out = self._run(call, tape)[0]
        beta, step = inverse_temperature(self.config), self.config.step
        shape = call.shape
        group = shape.heads // call.key.shape[1]
        keys = restrict(call.key, self.parameters["key_map"])
        maps = {name: array.astype(call.dtype) for name, array in self.parameters.items()}
        visible = None if call.mask is None else call.mask.dense(shape)[:, :, 0]

        def pullback(gradient: Array) -> Gradients:
            d_query = np.zeros_like(call.query)
            d_key, d_value = np.zeros_like(call.key), np.zeros_like(call.value)
            d_maps = {name: np.zeros_like(array) for name, array in maps.items()}
            for (b, h), history in tape.items():
                seen = slice(None) if visible is None else visible[b, h]
                kv = h // group
                k, v, rho = keys[b, kv][seen], call.value[b, kv][seen], maps["query_map"][h]
                d_state = gradient[b, h].copy()
                d_k, d_v = np.zeros_like(k), np.zeros_like(v)
                for one in reversed(history):
                    incoming = d_state[one.rows]
                    d_v += step * one.weights.T @ incoming
                    d_weights = step * incoming @ v.T
                    mean = (one.weights * d_weights).sum(axis=1, keepdims=True)
                    d_scores = beta * one.weights * (d_weights - mean)
                    d_k += 2 * d_scores.T @ (one.state @ rho.T)
                    d_k -= 2 * d_scores.sum(axis=0)[:, None] * k
                    d_mapped = 2 * d_scores @ k
                    d_maps["query_map"][h] += d_mapped.T @ one.state
                    d_state[one.rows] = (1 - step) * incoming + d_mapped @ rho
                d_query[b, h] = d_state
                d_value[b, kv][seen] += d_v
                d_key[b, kv][seen] += d_k @ maps["key_map"][kv]
                d_maps["key_map"][kv] += d_k.T @ call.key[b, kv][seen]
            return Gradients(d_query, d_key, d_value, None, d_maps)

        return out, pullback
