"""What a stage of a pipeline is: a function of the stream that passes through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from polyattn_core.errors import ArgumentError
from polyattn_core.parameters import Parameters

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Flow:
    """What one run carries along: the stream, (…, tokens, width), and what stages may look at."""

    stream: Array
    entries: list[Array]
    """The stream as it entered each stage so far."""
    key: Array | None = None
    """Context that attention may look at in place of the stream."""
    value: Array | None = None
    mask: Any = None
    context_mask: Any = None
    bias: Any = None
    training: bool = False
    rng: np.random.Generator | None = None
    side: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class StageGradients:
    """What a pullback of a stage returns: gradients by what entered it."""

    stream: Array
    parameters: dict[str, Array] = field(default_factory=dict)
    entries: dict[int, Array] = field(default_factory=dict)
    """By the streams that entered earlier stages."""
    key: Array | None = None
    value: Array | None = None


StagePullback = Callable[[Array], StageGradients]


class Stage(ABC):
    """One step of a pipeline. Derive from it to write your own.

    A stage says what it does to the stream in :meth:`run`; in :meth:`vjp` also how gradients go
    back. One with learned arrays makes them in :meth:`initial_parameters`.

    Examples
    --------
    >>> import numpy as np
    >>> import polyattn as pa
    >>> class Shift(pa.pipeline.Stage):
    ...     def run(self, flow):
    ...         return flow.stream + self.parameters["by"]
    ...     def vjp(self, flow):
    ...         back = lambda g: pa.pipeline.StageGradients(g, {"by": g.sum(axis=(0, 1))})
    ...         return self.run(flow), back
    ...     def initial_parameters(self, width, rng):
    ...         return {"by": np.ones(width)}
    >>> pa.AttentionPipeline(dim=3).add(Shift()).run(np.zeros((1, 2, 3)))
    array([[[1., 1., 1.],
            [1., 1., 1.]]])
    """

    kind: ClassVar[str] = "custom"
    """What it is, in summaries and files."""

    name: str = ""
    """Its name in the pipeline, which the pipeline sets."""
    takes: int | None = None
    """The only width of the stream that it accepts; None where it accepts any."""

    def __init__(self) -> None:
        self._parameters: Parameters | None = None

    @abstractmethod
    def run(self, flow: Flow) -> Array:
        """The stream behind this stage."""

    def vjp(self, flow: Flow) -> tuple[Array, StagePullback]:
        """The stream behind this stage, and a pullback. Where it has a derivative."""
        raise ArgumentError("pipeline", f"a stage {self.name} without vjp", "stages that have one")

    def gives(self, width: int) -> int:
        """The width of the stream behind this stage."""
        return width

    def initial_parameters(self, width: int, rng: np.random.Generator) -> dict[str, Array]:
        """Freshly initialised learned arrays for a stream of this width."""
        return {}

    def settle(self, width: int) -> None:
        """Make the learned arrays, unless they are there."""
        if self._parameters is None:
            self._parameters = Parameters(self.initial_parameters(width, np.random.default_rng(0)))

    @property
    def parameters(self) -> Parameters:
        """Learned arrays by name."""
        if self._parameters is None:
            raise ArgumentError(
                "pipeline", f"{self.name or self.kind} of unknown width", "AttentionPipeline(dim=…)"
            )
        return self._parameters

    def initialise(self, width: int, rng: np.random.Generator) -> None:
        """Set learned arrays to fresh values."""
        self.settle(width)
        self.parameters.update(self.initial_parameters(width, rng))

    def options(self) -> dict[str, Any]:
        """What makes an equal stage, as JSON: the arguments of its class."""
        return {}

    def multiply_adds(self, tokens: int, keys: int, width: int) -> float | None:
        """Multiply-adds of one sequence; None where that is not known."""
        return 0.0


def flat(array: Array) -> Array:
    """(…, width) as (rows, width), in C order."""
    return np.ascontiguousarray(array).reshape(-1, array.shape[-1])
