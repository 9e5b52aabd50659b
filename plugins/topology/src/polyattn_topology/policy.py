"""Modes of a gate, and when it changes between them."""

from __future__ import annotations

from collections.abc import Iterable

from polyattn_core.errors import ArgumentError

from .config import AttentionMode, PolicyConfig


class CoherencePolicy:
    """The next mode, from the present one and the coherence c of the keys.

    With thresholds s ≥ m ≥ f and hysteresis h, a gate

    * leaves Stable below s − h: for Freeze below f − h, else for Cautious;
    * leaves Cautious for Stable from s + h on, for Freeze below f − h;
    * leaves Freeze from m + h on: for Stable from s + h on, else for Cautious.

    Its first mode is Stable from s on, Freeze below f, else Cautious. Measuring the same keys
    again never changes the mode.

    >>> CoherencePolicy().replay([0.9, 0.78, 0.7, 0.83, 0.2, 0.5, 0.6])[-4:]
    [<AttentionMode.CAUTIOUS: 'cautious'>, <AttentionMode.FREEZE: 'freeze'>,
     <AttentionMode.FREEZE: 'freeze'>, <AttentionMode.CAUTIOUS: 'cautious'>]
    """

    def __init__(self, config: PolicyConfig | None = None) -> None:
        self.config = PolicyConfig() if config is None else config

    def step(self, mode: AttentionMode | None, coherence: float) -> AttentionMode:
        """The mode after keys of this coherence."""
        if not 0 <= coherence <= 1:
            raise ArgumentError("coherence", coherence, "a number from 0 to 1")
        config = self.config
        h = config.hysteresis
        if mode is None:
            if coherence >= config.stable_threshold:
                return AttentionMode.STABLE
            frozen = coherence < config.freeze_threshold
            return AttentionMode.FREEZE if frozen else AttentionMode.CAUTIOUS
        if mode is AttentionMode.FREEZE:
            if coherence < config.cautious_threshold + h:
                return mode
            open_again = coherence >= config.stable_threshold + h
            return AttentionMode.STABLE if open_again else AttentionMode.CAUTIOUS
        if coherence < config.freeze_threshold - h:
            return AttentionMode.FREEZE
        border = config.stable_threshold + (h if mode is AttentionMode.CAUTIOUS else -h)
        return AttentionMode.STABLE if coherence >= border else AttentionMode.CAUTIOUS

    def replay(
        self, coherences: Iterable[float], mode: AttentionMode | None = None
    ) -> list[AttentionMode]:
        """The modes of a sequence of coherences."""
        modes = []
        for coherence in coherences:
            mode = self.step(mode, coherence)
            modes.append(mode)
        return modes
