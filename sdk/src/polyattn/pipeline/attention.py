"""Attention as a stage: to the stream itself, or to the context of a run."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from polyattn_core.errors import ArgumentError
from polyattn_core.masks import Dense, Mask
from polyattn_core.parameters import Parameters

from ..builders import Builder
from .stage import Array, Flow, Stage, StageGradients, StagePullback

Source = Literal["auto", "self", "context"]


class AttentionStage(Stage):
    """Attention of any mechanism; its parameters are those of the mechanism."""

    kind: ClassVar[str] = "attention"

    def __init__(self, attention: Any, *, source: Source = "auto", mask: Any = None) -> None:
        super().__init__()
        if isinstance(attention, Builder):
            attention = attention.build()
        if not (callable(attention) and hasattr(attention, "config")):
            raise ArgumentError("attention", attention, "a mechanism, or a builder of one")
        if source not in ("auto", "self", "context"):
            raise ArgumentError("source", source, "'auto', 'self' or 'context'")
        self.attention, self.source, self.mask = attention, source, mask
        self.takes = int(attention.config.dim)

    def run(self, flow: Flow) -> Array:
        key, value, options = self._inputs(flow)
        return np.asarray(self.attention(flow.stream, key, value, **options))

    def vjp(self, flow: Flow) -> tuple[Array, StagePullback]:
        key, value, options = self._inputs(flow)
        out, pull = self.attention.vjp(flow.stream, key, value, **options)

        def pullback(gradient: Array) -> StageGradients:
            found = pull(gradient)
            return StageGradients(
                found.query,
                found.parameters,
                # Where values default to the keys, the gradient of the keys holds theirs too.
                key=None if key is None else found.key,
                value=None if value is None else found.value,
            )

        return out, pullback

    def settle(self, width: int) -> None:
        """Nothing: the mechanism has its parameters."""

    @property
    def parameters(self) -> Parameters:
        found: Parameters = self.attention.parameters
        return found

    def initialise(self, width: int, rng: np.random.Generator) -> None:
        self.attention.initialise(rng)

    def options(self) -> dict[str, Any]:
        if self.mask is not None:
            raise ArgumentError(
                "pipeline",
                f"a mask in {self.name}",
                "a mask passed to run() instead",
            )
        return {
            "mechanism": self.attention.name,
            "config": self.attention.config.model_dump(mode="json"),
            "source": self.source,
        }

    def multiply_adds(self, tokens: int, keys: int, width: int) -> float | None:
        # The weights of projections are used once a token; the rest by the declared complexity.
        matrices = sum(a.size for a in self.parameters.values() if a.ndim == 2)
        if self.attention.spec.capabilities.time != "O(n² d)":
            return None
        return float(tokens * matrices + 2 * tokens * keys * width)

    def attends_to_context(self, flow: Flow) -> bool:
        """Does it look at the context, rather than at the stream?"""
        return self.source == "context" or (self.source == "auto" and flow.key is not None)

    def _inputs(self, flow: Flow) -> tuple[Array | None, Array | None, dict[str, Any]]:
        options: dict[str, Any] = {"training": flow.training, "rng": flow.rng, **flow.side}
        key = value = None
        mask = flow.mask
        if self.attends_to_context(flow):
            if flow.key is None:
                raise ArgumentError("key", None, f"the context that {self.name} attends to")
            key, value = flow.key, flow.value
            if self.source == "context":
                mask = flow.context_mask
        if self.mask is not None:
            mask = self.mask if mask is None else _mask(self.mask) & _mask(mask)
        if mask is not None:
            options["mask"] = mask
        if flow.bias is not None:
            options["bias"] = flow.bias
        return key, value, options


def _mask(mask: Any) -> Mask:
    return mask if isinstance(mask, Mask) else Dense(mask)
