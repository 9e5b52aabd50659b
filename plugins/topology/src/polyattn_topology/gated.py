"""Attention that looks at its keys before it trusts them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from polyattn_core import diagnostics, resolver
from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, ConfigError, FileFormatError, PolyattnError
from polyattn_core.masks import Padding
from polyattn_core.mechanism import Call, Mechanism, Pullback
from polyattn_core.spec import MechanismSpec

from .coherence import WindowCoherence
from .config import AttentionMode, GateState, TopologyGatedConfig
from .policy import CoherencePolicy


class TopologyGatedAttention(Mechanism):
    """Attention in one of three modes, by the coherence of the keys.

    ======== =======================================================================================
    Stable   `inner` attends to all keys
    Cautious `cautious`, a sparser mechanism (the 16 best keys by default), attends to all keys
    Freeze   `inner` attends to the retained keys: as many as there were in the last call that was
             not frozen; keys that came after them, as to a growing cache, are not admitted
    ======== =======================================================================================

    Coherence is the mean of `metrics` over all keys of a call, batch elements and heads; see
    `WindowCoherence` for what they are and `CoherencePolicy` for the transitions, each of which has
    a hysteresis. The first call's keys are always retained. Masks hide keys from queries, not from
    the gate: one mode is for the whole call, and keys that are 0 or not finite do not count.

    The mode stays from call to call. Keys are recognised by a fingerprint of their memory, and
    coherence is only measured where they have changed; two keys in 10¹⁸ or so are taken for each
    other. `state` can be read, reset, saved and restored; changes of mode are published as
    `ModeChanged`. Calls from several threads are safe, in the order in which they come.

    Gradients are those of the mechanism that attended: the mode is constant almost everywhere.

    Of each head `sample` keys are looked at, 256 unless told otherwise, which tells coherence to
    about 0.01; with windows all are. O(n d) time beyond that of the mechanism, to tell whether keys
    changed, and O(sample · d² + d³) where they did.

    References
    ----------
    Coherence by cuts: von Luxburg, A tutorial on spectral clustering, arXiv:0711.0189.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> gated = pa.create("topology-gated", dim=8)
    >>> aligned = 3 + np.random.default_rng(0).standard_normal((6, 8))
    >>> _ = gated(aligned)
    >>> gated.current_mode
    <AttentionMode.STABLE: 'stable'>
    >>> _ = gated(np.concatenate((aligned, -aligned)))  # two camps: the new ones are not admitted
    >>> gated.current_mode, gated.state.retained
    (<AttentionMode.FREEZE: 'freeze'>, 6)
    """

    config: TopologyGatedConfig

    def __init__(self, config: TopologyGatedConfig, *, spec: MechanismSpec) -> None:
        super().__init__(config, spec=spec)
        self.policy = CoherencePolicy(config.policy)
        sample = config.sample if config.window is None else None
        self.coherence = WindowCoherence(config.metrics, config.window, sample)
        self._inner = self._build("inner", config.inner, config.inner_options)
        self._cautious = self._build("cautious", config.cautious, config.cautious_options)
        known = [set(m.capabilities.statistics) for m in (self._inner, self._cautious)]
        statistics = tuple(n for n in self.capabilities.statistics if all(n in k for k in known))
        self.capabilities = replace(self.capabilities, statistics=statistics)
        self._state = GateState()
        self._lock = threading.Lock()
        self._known: set[Any] = set()

    def _build(self, option: str, name: str, options: Mapping[str, Any]) -> Mechanism:
        config = self.config
        layout = {"dim": config.dim, "heads": config.heads, "threads": config.threads}
        if config.kv_heads is not None:
            layout["kv_heads"] = config.kv_heads
        taken = sorted(set(layout) & set(options))
        if taken:
            known = f"options of {name} other than {', '.join(taken)}, which are the gate's"
            raise ConfigError(f"{option}_options", dict(options), known)
        found = resolver.current().create(name, **layout, **options)
        if not isinstance(found, Mechanism) or found.capabilities.side_inputs:
            wanted = "a mechanism of polyattn_core.mechanism without side inputs"
            raise ConfigError(option, name, wanted)
        if getattr(found.config, "dropout", 0):
            raise ConfigError(f"{option}_options", dict(options), "no dropout: the gate has none")
        return found

    # ---- state ----------------------------------------------------------------------------------

    @property
    def current_mode(self) -> AttentionMode | None:
        """The mode of the last call; None before the first."""
        return self._state.mode

    @property
    def state(self) -> GateState:
        """What the gate remembers: a value, which later calls do not change."""
        return self._state

    def restore(self, state: GateState) -> None:
        """Go on from a state."""
        if not isinstance(state, GateState):
            raise ArgumentError("state", state, "a GateState")
        with self._lock:
            self._state = state

    def reset(self) -> None:
        """Forget everything."""
        self.restore(GateState())

    def save_state(self, path: str | PathLike[str]) -> None:
        """Write the state to a JSON file."""
        Path(path).write_text(self._state.model_dump_json(indent=2) + "\n", "utf-8")

    def load_state(self, path: str | PathLike[str]) -> None:
        """Go on from the state in a JSON file."""
        try:
            state = GateState(**json.loads(Path(path).read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise FileFormatError("path", f"{path} ({error})", "a state saved by a gate") from None
        self.restore(state)

    def mechanism(self, mode: AttentionMode) -> Mechanism:
        """What attends in a mode; its parameters are set there."""
        return self._cautious if mode is AttentionMode.CAUTIOUS else self._inner

    def compute_gated(
        self, query: Any, key: Any = None, value: Any = None, **options: Any
    ) -> Array:
        """Attend, as by calling the gate itself."""
        return self(query, key, value, **options)

    def _advance(self, key: Array) -> GateState:
        """The state for these keys, which is kept."""
        with self._lock:
            before = self._state
            mark = fingerprint(key)
            keys = key.shape[-2]
            if mark == before.fingerprint:
                return before
            coherence = float(np.clip(self.coherence(key).mean(), 0, 1))
            mode = self.policy.step(before.mode, coherence)
            open_gate = mode is not AttentionMode.FREEZE or before.mode is None
            after = GateState(
                mode=mode,
                coherence=coherence,
                retained=keys if open_gate else before.retained,
                fingerprint=mark,
                measured=before.measured + 1,
            )
            self._state = after
        if before.mode not in (None, mode) and diagnostics.wanted(diagnostics.ModeChanged):
            diagnostics.publish(
                diagnostics.ModeChanged(
                    name=self.name, before=str(before.mode), after=str(mode), coherence=coherence
                )
            )
        return after

    # ---- attention ------------------------------------------------------------------------------

    def _attend_again(self, query: Any, key: Any, value: Any) -> Array | None:
        layout = None if self.config.causal else _layout(query, key, value)
        if layout is None:
            return None
        if layout not in self._known:
            try:
                self._prepare(query, key, value, None, None, False, None, {})
            except PolyattnError:
                return None  # said where the arguments are as they were passed
            if len(self._known) >= _LAYOUTS:
                self._known.clear()
            self._known.add(layout)
        # Nothing is wrong with such arguments, and `inner` need not look at them again either.
        state = self._advance(key)
        if not self._admitted(state, key.shape[-2]):
            return None
        assert state.mode is not None
        return self.mechanism(state.mode).attend(query, key, value)

    @staticmethod
    def _admitted(state: GateState, keys: int) -> bool:
        """Are all keys let through?"""
        return state.mode is not AttentionMode.FREEZE or state.retained >= keys

    def _gated(self, call: Call) -> tuple[Mechanism, Call]:
        state = self._advance(call.key)
        assert state.mode is not None
        mechanism = self.mechanism(state.mode)
        mask = call.mask
        if not self._admitted(state, call.shape.keys):
            retained = Padding(state.retained)
            mask = retained if mask is None else mask & retained
        return mechanism, replace(call, mask=mechanism.combined_mask(mask, call.shape))

    def _forward(self, call: Call) -> Array:
        mechanism, gated = self._gated(call)
        return mechanism._forward(gated)

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        mechanism, gated = self._gated(call)
        return mechanism._vjp(gated)

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        mechanism, gated = self._gated(call)
        return mechanism._observe(gated, wanted)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_lock"], state["_known"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._known = set()


_LAYOUTS = 64  # kept by a gate


def _layout(*arrays: Any) -> Any:
    """What makes arrays good arguments or bad ones; None unless the gate sees them as they are."""
    for array in arrays:
        if type(array) is not np.ndarray or array.ndim != 4 or array.dtype not in _COMPUTED:
            return None
    return tuple((array.shape, array.dtype) for array in arrays)


_COMPUTED = (np.dtype(np.float32), np.dtype(np.float64))


def fingerprint(array: Array) -> str:
    """A short text that tells arrays apart by shape, dtype and content; reads memory once."""
    from .kernels.fingerprint import fingerprint_kernel

    # In the order in which it lies in memory, where there are no gaps, nothing is copied.
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    flat = np.ascontiguousarray(array.transpose(order)).reshape(-1).view(np.uint8)
    if flat.nbytes % 8:
        flat = np.concatenate((flat, np.zeros(-flat.nbytes % 8, np.uint8)))
    out = np.empty(1, np.uint64)
    fingerprint_kernel()(flat.view(np.uint64), out)
    place = "".join(map(str, order))
    return f"{array.dtype.name}/{'x'.join(map(str, array.shape))}/{place}/{int(out[0]):016x}"
