"""The pipeline: stages one after the other, forward and backward."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

import polyattn_registry as registry
from polyattn_core.arrays import as_array, compute_dtype
from polyattn_core.errors import ArgumentError, ShapeError

from .attention import AttentionStage, Source
from .layout import Layout
from .parameters import PipelineParameters
from .stage import Array, Flow, Stage, StagePullback
from .stages import Activation, Dropout, FeedForward, Function, Residual


@dataclass(slots=True)
class PipelineGradients:
    """What a pullback of a pipeline returns; each array has the shape of its input."""

    query: Array
    key: Array | None = None
    value: Array | None = None
    parameters: dict[str, Array] = field(default_factory=dict)


class AttentionPipeline:
    """Norms, attention, dropout, residuals, feed-forward layers and stages of your own, in order.

    Each ``add_…`` appends a stage and returns the pipeline. The width of the stream follows from
    the stages; where none of them says it, it is `dim`, or that of the first run.

    Parameters
    ----------
    dim
        Width of the stream that enters.

    Notes
    -----
    A residual adds the stream as it entered the present *block*. A block begins at the first
    stage and behind each residual; behind the norm after it where the block before did not begin
    with a norm. So [norm, attention, residual, norm, feed-forward, residual] is a pre-norm block
    and [attention, residual, norm, feed-forward, residual, norm] a post-norm one; `start` says
    otherwise.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> block = pa.AttentionPipeline().add_norm("layer-norm").add_attention(pa.flash(16).heads(2))
    >>> x = np.random.default_rng(0).standard_normal((5, 16))
    >>> output, pullback = block.vjp(x)
    >>> sorted(pullback(output).parameters)
    ['norm.bias', 'norm.weight']
    """

    def __init__(self, dim: int | None = None) -> None:
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
            raise ArgumentError("dim", dim, "a whole number of at least 1")
        self._layout = Layout(dim)

    # ---- building -------------------------------------------------------------------------------

    def add(
        self,
        stage: Stage | Callable[[Array], Array],
        *,
        name: str | None = None,
        derivative: Callable[[Array, Array], Array] | None = None,
    ) -> Self:
        """Append a stage, or a function of the stream.

        `derivative` (stream, gradient) → gradient makes a function differentiable.
        """
        if not isinstance(stage, Stage):
            if not callable(stage):
                raise ArgumentError("stage", stage, "a Stage, or a function of the stream")
            stage = Function(stage, derivative)
        elif derivative is not None:
            raise ArgumentError("derivative", derivative, "none with a Stage, which has its vjp")
        self._layout.append(stage, name)
        return self

    def add_norm(
        self, norm: str | Stage = "layer-norm", *, name: str | None = None, **options: Any
    ) -> Self:
        """Append a norm by its name in the registry ("layer-norm", "rms-norm" …), with options."""
        if isinstance(norm, Stage):
            return self.add(norm, name=name)
        return self.add(_norm(norm, options), name=name)

    def add_attention(
        self, attention: Any, *, source: Source = "auto", mask: Any = None, name: str | None = None
    ) -> Self:
        """Append attention: a mechanism, or a builder of one.

        Parameters
        ----------
        attention
            What `create` or a builder made.
        source
            What it attends to: the stream ("self"), `key` and `value` of the run ("context"), or
            these where they are given ("auto").
        mask
            A mask of this stage alone, besides that of a run.
        name
            Its name in the pipeline.
        """
        return self.add(AttentionStage(attention, source=source, mask=mask), name=name)

    def add_dropout(self, probability: float = 0.1, *, name: str | None = None) -> Self:
        """Append dropout, which acts while training."""
        return self.add(Dropout(probability), name=name)

    def add_feed_forward(
        self, hidden: int, *, activation: Activation = "gelu", gated: bool = False,
        bias: bool = True, dropout: float = 0.0, name: str | None = None,
    ) -> Self:  # fmt: skip
        """Append two layers for each token, `hidden` wide between them."""
        stage = FeedForward(hidden, activation=activation, gated=gated, bias=bias, dropout=dropout)
        return self.add(stage, name=name)

    def add_residual(
        self, start: int | str | None = None, *, scale: float = 1.0, name: str | None = None
    ) -> Self:
        """Append a residual connection: scale · stream + what entered the present block.

        Parameters
        ----------
        start
            The stage whose input is added, by name or place, if not the first of the block.
        scale
            Factor of the stream.
        name
            Its name in the pipeline.
        """
        place = self._layout.around(start)
        return self.add(Residual(place, scale), name=name)

    # ---- running --------------------------------------------------------------------------------

    def run(
        self, query: Any, key: Any = None, value: Any = None, *, mask: Any = None,
        context_mask: Any = None, bias: Any = None, training: bool = False, rng: Any = None,
        **side: Any,
    ) -> Array:  # fmt: skip
        """Run the stages.

        Parameters
        ----------
        query
            The stream, (…, tokens, dim); or (dim,) for a single query.
        key, value
            Context, (…, keys, width): what attention looks at where it does not look at the stream
            itself. Values default to the keys.
        mask
            Of attention, other than that to the context only; `context_mask` is for that.
        bias
            Added to the scores of attention.
        training, rng
            Dropout acts only in training, and draws from this seed or generator.
        **side
            Side inputs that the mechanisms declare.

        Returns
        -------
        The stream behind the last stage, in the dtype of the query.

        Raises
        ------
        ShapeError
            Where the width of the stream is not what the first stage takes.
        """
        flow, dtype, single = self._flow(
            query, key, value, mask, context_mask, bias, training, rng, side
        )
        for stage in self._layout.stages.values():
            flow.entries.append(flow.stream)
            flow.stream = self._checked(stage, stage.run(flow))
        out = flow.stream.astype(dtype, copy=False)
        return out[0] if single else out

    __call__ = run

    def vjp(
        self, query: Any, key: Any = None, value: Any = None, *, mask: Any = None,
        context_mask: Any = None, bias: Any = None, training: bool = False, rng: Any = None,
        **side: Any,
    ) -> tuple[Array, Callable[[Any], PipelineGradients]]:  # fmt: skip
        """`run`, and a pullback to gradients by the inputs and by all parameters."""
        flow, dtype, single = self._flow(
            query, key, value, mask, context_mask, bias, training, rng, side
        )
        pulls: list[StagePullback] = []
        for stage in self._layout.stages.values():
            flow.entries.append(flow.stream)
            out, pull = stage.vjp(flow)
            flow.stream = self._checked(stage, out)
            pulls.append(pull)
        out = flow.stream.astype(dtype, copy=False)
        output = out[0] if single else out

        def pullback(gradient: Any) -> PipelineGradients:
            incoming = as_array(gradient, "gradient")
            if incoming.shape != output.shape:
                raise ShapeError("gradient", incoming.shape, f"the output's shape {output.shape}")
            stream = incoming.astype(flow.stream.dtype, copy=False)
            return self._pulled_back(pulls, stream[None] if single else stream, flow, dtype, single)

        return output, pullback

    def _pulled_back(
        self, pulls: list[StagePullback], stream: Array, flow: Flow, dtype: Any, single: bool
    ) -> PipelineGradients:
        waiting: dict[int, Array] = {}
        found = PipelineGradients(stream)
        names = list(self._layout.stages)
        for place in reversed(range(len(pulls))):
            by = pulls[place](stream)
            for entry, gradient in by.entries.items():
                waiting[entry] = waiting[entry] + gradient if entry in waiting else gradient
            for name, gradient in by.parameters.items():
                found.parameters[f"{names[place]}.{name}"] = gradient
            found.key = _sum(found.key, by.key)
            found.value = _sum(found.value, by.value)
            stream = by.stream
            if place in waiting:
                stream = stream + waiting.pop(place)
        stream = stream.astype(dtype, copy=False)
        found.query = stream[0] if single else stream
        return found

    # ---- looking --------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order."""
        return tuple(self._layout.stages.values())

    @property
    def dim(self) -> int | None:
        """Width of the stream that enters; None where nothing says it."""
        return self._layout.width_before(0)

    @property
    def parameters(self) -> PipelineParameters:
        """Learned arrays of all stages, by ``stage.name``."""
        self._layout.settle(self.dim)
        return PipelineParameters(self._layout.stages)

    def initialise(self, rng: Any) -> None:
        """Set all parameters to fresh values from a seed or generator."""
        if rng is None:  # which NumPy takes for a seed of its own choice
            raise ArgumentError("rng", rng, "a seed or a numpy.random.Generator")
        generator = np.random.default_rng(rng)
        self._layout.settle(self.dim)
        for place, stage in enumerate(self._layout.stages.values()):
            if stage.parameters:
                width = self._layout.width_before(place)
                assert width is not None  # settled above
                stage.initialise(width, generator)

    def summary(self, batch: int = 1, tokens: int = 128, keys: int | None = None) -> Any:
        """A table of the stages: shapes, parameters, multiply-adds, memory.

        It prints as text, shows as a table in notebooks, and `rows` are for programs.
        """
        from .summary import Summary

        self._layout.settle(self.dim)
        return Summary.of(self, batch, tokens, keys)

    def picture(self) -> str:
        """A drawing of the stages and what goes around them, as SVG."""
        from .picture import draw

        return draw(self)

    def _repr_html_(self) -> str:
        return self.picture()

    def __len__(self) -> int:
        return len(self._layout.stages)

    def __getitem__(self, name: str) -> Stage:
        return list(self._layout.stages.values())[self._layout.place(name)]

    def __repr__(self) -> str:
        return f"<pipeline {' → '.join(self._layout.stages) or 'without stages'}>"

    # ---- keeping --------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The stages and their options, without learned arrays (`parameters.save`)."""
        from .files import dump

        return json.dumps(dump(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, *, custom: Iterable[type[Stage]] = ()) -> AttentionPipeline:
        """The pipeline that :meth:`to_json` wrote; learned arrays are fresh.

        `custom` are the classes of stages of your own that it may have.
        """
        from .files import restore

        return restore(text, custom)

    # ---- house-keeping --------------------------------------------------------------------------

    def _flow(
        self, query: Any, key: Any, value: Any, mask: Any, context_mask: Any, bias: Any,
        training: bool, rng: Any, side: Mapping[str, Any],
    ) -> tuple[Flow, np.dtype[Any], bool]:  # fmt: skip
        stream = as_array(query, "query")
        single = stream.ndim == 1
        if single:
            stream = stream[None]
        if stream.ndim < 2:
            raise ShapeError("query", stream.shape, "at least 1 axis: (dim,) or (..., tokens, dim)")
        if key is None and value is not None:
            raise ArgumentError("value", "an array", "none without a key")
        self._layout.settle(self.dim or stream.shape[-1])
        dim = self.dim
        if dim is not None and stream.shape[-1] != dim:
            first = next(iter(self._layout.stages), "the pipeline")
            raise ShapeError("query", stream.shape, f"a last axis of {dim}, which {first} takes")
        dtype = stream.dtype
        inner = compute_dtype(dtype, "query")

        def inside(array: Any, argument: str) -> Array | None:
            if array is None:
                return None
            return as_array(array, argument).astype(inner, copy=False)

        generator = None if rng is None else np.random.default_rng(rng)
        flow = Flow(
            stream.astype(inner, copy=False), [], inside(key, "key"), inside(value, "value"), mask,
            context_mask, bias, training, generator, side,
        )  # fmt: skip
        return flow, dtype, single

    def _checked(self, stage: Stage, out: Array) -> Array:
        width = self._layout.width_before(list(self._layout.stages).index(stage.name) + 1)
        if width is not None and out.shape[-1] != width:
            raise ShapeError(stage.name, out.shape, f"a stream of width {width} behind it")
        return out


def _norm(name: str, options: Mapping[str, Any]) -> Stage:
    factory = registry.resolve(name, "norm")
    try:
        made = factory(**options)
    except TypeError as error:
        raise ArgumentError(f"options of {name}", dict(options), f"its own ({error})") from None
    if not isinstance(made, Stage):
        raise ArgumentError("norm", name, "an entry that makes a Stage")
    made.entry = name  # type: ignore[attr-defined]
    return made


def _sum(first: Array | None, second: Array | None) -> Array | None:
    return second if first is None else first if second is None else first + second
