"""What the recurrences share: calls of the chunked scan, and steps with an explicit state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_core.masks import Causal, Mask, MaskShape
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback

from ..visibility import visible_counts
from .config import RecurrenceConfig
from .gates import Gates
from .state import RecurrentState

if TYPE_CHECKING:
    from .kernels.engine import Problem, ScanGradients

Undo = Callable[[Array, Array], tuple[Array, Array]]


class Recurrence(Mechanism):
    """Attention by a state that is updated token by token and read by queries.

    `attend` starts from zeros, or from `state=`, and computes chunks side by side. :meth:`scan`
    also returns the state at its end, from which it goes on; :meth:`step` takes one more token.
    """

    config: RecurrenceConfig

    # ---- what a recurrence says about its rule --------------------------------------------------

    @abstractmethod
    def _gates(self, call: Call) -> Gates:
        """Decays and write strengths of the call's tokens."""

    def _scale(self) -> float:
        """Factor of the queries."""
        return float(getattr(self.config, "scale", 1.0))

    def _prepared(self, call: Call, first: int) -> tuple[Array, Array, Undo | None]:
        """Queries and keys as the scan takes them, and the pullback.

        `first` is the position of the first token.
        """
        return call.query, call.key, None

    def _skip(self, call: Call, out: Array) -> None:
        """Add to the output what does not pass through the state."""

    def _skip_gradients(self, call: Call, gradient: Array, found: Gradients) -> None:
        """The pullback of `_skip`."""

    # ---- head level -----------------------------------------------------------------------------

    def scan(
        self, query: Any, key: Any, value: Any, *, state: RecurrentState | Any = None,
        mask: Any = None, **side: Any,
    ) -> tuple[Array, RecurrentState]:  # fmt: skip
        """`attend`, and the state after the last token.

        Parameters
        ----------
        query, key, value, mask, **side
            As in :meth:`attend`.
        state
            Where to start; it is not changed.
        """
        from .kernels import engine

        call, lead, dtype = self._prepare(
            query, key, value, mask, None, False, None, {**side, "state": state}
        )
        problem, _ = self._problem(call)
        out, memory = engine.forward(problem)
        flat = self._finished(call, out)
        memory = memory.reshape(*lead, *memory.shape[1:])
        before = state.tokens if isinstance(state, RecurrentState) else 0
        restored = flat.reshape(*lead, *flat.shape[1:]).astype(dtype, copy=False)
        return restored, RecurrentState(memory, before + call.key.shape[2])

    def step(self, query: Any, key: Any, value: Any, state: RecurrentState, **side: Any) -> Array:
        """The output (…, heads, value size) for one more token; `state` is moved on.

        Parameters
        ----------
        query, key, value
            (…, heads, size), (…, key heads, size), (…, key heads, value size).
        state
            From :meth:`start`, :meth:`scan` or the step before.
        **side
            As in :meth:`attend`, without the axis of tokens.
        """
        if not isinstance(state, RecurrentState):
            raise ArgumentError("state", state, "a RecurrentState, from start() or scan()")
        arrays = (
            as_array(x, n)[..., None, :]
            for x, n in ((query, "query"), (key, "key"), (value, "value"))
        )
        plain = {"beta", "step"}
        gates = {
            name: None if x is None else as_array(x, name)[..., None] if name in plain
            else as_array(x, name)[..., None, :]
            for name, x in side.items()
        }  # fmt: skip
        out, after = self.scan(*arrays, state=state, **gates)
        state.memory[...] = after.memory
        state.tokens = after.tokens
        return out[..., 0, :]

    def start(
        self, *lead: int, value_size: int | None = None, dtype: Any = np.float32
    ) -> RecurrentState:
        """A state that has seen nothing, for calls with these leading axes."""
        config = self.config
        shape = (*lead, self._key_heads, config.head_dim, value_size or config.head_dim)
        return RecurrentState(np.zeros(shape, dtype))

    # ---- the engine -----------------------------------------------------------------------------

    def _own_mask(self, shape: MaskShape) -> Mask:
        return Causal()

    def _forward(self, call: Call) -> Array:
        from .kernels import engine

        problem, _ = self._problem(call)
        return self._finished(call, engine.forward(problem)[0])

    def _finished(self, call: Call, out: Array) -> Array:
        batch, heads, tokens = call.query.shape[:3]
        flat = out.reshape(batch, heads, tokens, out.shape[-1])
        self._skip(call, flat)
        return flat

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        from .kernels import engine

        problem, undo = self._problem(call)
        scan = engine.Scan(problem)
        out = self._finished(call, scan.outputs())

        def pullback(gradient: Array) -> Gradients:
            split = gradient.reshape(*problem.query.shape[:4], gradient.shape[-1])
            found = undo(scan.gradients(split))
            self._skip_gradients(call, gradient, found)
            return found

        return out, pullback

    def _problem(self, call: Call) -> tuple[Problem, Callable[[ScanGradients], Gradients]]:
        """The engine's problem, and the way back from its gradients."""
        from .kernels.engine import Problem

        state = call.side.get("state")
        first = state.tokens if isinstance(state, RecurrentState) else 0
        query, key, turn_back = self._prepared(call, first)
        gates = self._gates(call)
        batch, heads, tokens, _ = query.shape
        key_heads, value = key.shape[1], call.value
        hidden = self._hidden(call)
        chosen = [g for g in (gates.logarithms, gates.beta, gates.value_factor) if g is not None]
        # Gates of query heads make a state for each of these.
        units = heads if any(g.values.shape[1] > key_heads for g in chosen) else key_heads

        def spread(array: Array) -> Array:
            own = array.shape[1]
            return array if own == units else np.repeat(array, units // own, axis=1)

        def gather(array: Array, own: int) -> Array:
            if array.shape[1] == own:
                return array
            return np.asarray(array.reshape(batch, own, -1, *array.shape[2:]).sum(axis=2))

        def visible(array: Array) -> Array:
            return array if hidden is None else np.where(hidden, array.dtype.type(0), array)

        key, value = spread(visible(key)), spread(visible(value))
        logarithms, beta, factor = (
            None if g is None else spread(visible(g.values))
            for g in (gates.logarithms, gates.beta, gates.value_factor)
        )
        scale = self._scale()
        start, state_back = self._start(call, state, units)
        scaled = (query.dtype.type(scale) * query).astype(call.dtype, copy=False)
        problem = Problem(
            scaled.reshape(batch, units, heads // units, tokens, -1),
            key,
            value if factor is None else value * factor,
            logarithms,
            beta,
            start,
            self.config.chunk,
            self.config.threads,
        )

        def undo(found: ScanGradients) -> Gradients:
            by_query = scale * found.query.reshape(query.shape)
            by_key, by_value = found.key, found.value
            parts = [(gates.logarithms, found.logarithms), (gates.beta, found.beta)]
            if factor is not None:
                by_factor = (by_value * value).sum(axis=-1, keepdims=True)
                parts.append((gates.value_factor, by_factor))
                by_value = by_value * factor
            by_key, by_value = (visible(gather(x, key_heads)) for x in (by_key, by_value))
            side = state_back(found.state)
            parameters: dict[str, Array] = {}
            for gate, gradient in parts:
                if gate is not None and gradient is not None:
                    own = visible(gather(gradient, gate.values.shape[1]))
                    for total, more in zip((side, parameters), gate.backward(own), strict=True):
                        for name, array in more.items():
                            total[name] = total[name] + array if name in total else array
            for name, array in self.parameters.items():
                # A gate that was passed takes the place of the learned one.
                parameters.setdefault(name, np.zeros_like(array))
            if turn_back is not None:
                by_query, by_key = turn_back(by_query, by_key)
            by_query, by_key = (x.astype(call.dtype, copy=False) for x in (by_query, by_key))
            return Gradients(by_query, by_key, by_value, None, parameters, side)

        return problem, undo

    def _start(
        self, call: Call, state: Any, units: int
    ) -> tuple[Array | None, Callable[[Array], dict[str, Array]]]:
        """The state that was passed, and the way back for its gradient."""
        if state is None:
            return None, lambda gradient: {}
        memory = state.memory if isinstance(state, RecurrentState) else as_array(state, "state")
        size, width = call.query.shape[3], call.value.shape[3]
        full = (*call.shape.lead, units, size, width)
        try:
            fits = np.broadcast_shapes(memory.shape, full) == full and memory.ndim >= 3
        except ValueError:
            fits = False
        if not fits:
            raise ShapeError("state", memory.shape, f"a shape that broadcasts to {full}")
        values = np.broadcast_to(memory, full).reshape(-1, units, size, width)

        def back(gradient: Array) -> dict[str, Array]:
            from polyattn_core.arrays import unbroadcast

            summed = unbroadcast(gradient.reshape(full), memory.shape)
            return {"state": summed.astype(memory.dtype, copy=False)}

        return values.astype(call.dtype), back

    def _hidden(self, call: Call) -> Array | None:
        """Which tokens a mask hides, (batch or 1, 1, tokens, 1)."""
        tokens = call.key.shape[2]
        counts = visible_counts(call.mask, call.shape, 0, tokens)
        if counts is not None:
            lengths = counts[:, -1:]
            if (counts == np.minimum(np.arange(1, tokens + 1), lengths)).all():
                if (lengths == tokens).all():
                    return None
                return np.asarray((np.arange(tokens) >= lengths)[:, None, :, None])
        raise self._lacks("masks other than padding and what & makes of it", "masks", "dense")
