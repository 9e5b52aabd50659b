"""The pipeline: stages one after the other, forward and backward."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Self

import numpy as np

import polyattn_registry as registry
from polyattn_core.arrays import as_array, compute_dtype
from polyattn_core.errors import ArgumentError, ParameterError, ShapeError

from .attention import AttentionStage, Source
from .stage import Array, Flow, Stage, StagePullback
from .stages import Activation, Dropout, FeedForward, Function, Norm, Residual


@dataclass(slots=True)
class PipelineGradients:
    """What a pullback of a pipeline returns; each array has the shape of its input."""

    query: Array
    key: Array | None = None
    value: Array | None = None
    parameters: dict[str, Array] = field(default_factory=dict)


class PipelineParameters(Mapping[str, Array]):
    """The learned arrays of all stages, by ``stage.name``. Setting them is all or nothing."""

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        self._stages = stages

    def __getitem__(self, name: str) -> Array:
        stage, _, inner = name.partition(".")
        if stage not in self._stages:
            raise KeyError(name)
        return self._stages[stage].parameters[inner]

    def __iter__(self) -> Iterator[str]:
        for name, stage in self._stages.items():
            yield from (f"{name}.{inner}" for inner in stage.parameters)

    def __len__(self) -> int:
        return sum(len(stage.parameters) for stage in self._stages.values())

    def update(self, arrays: Mapping[str, Any], *, partial: bool = False) -> None:
        """Set values; with `partial`, only some of them.

        Raises
        ------
        ParameterError
            Where names are missing or surplus, a shape differs, or a value is not finite. Nothing
            has been set then.
        """
        own = set(self)
        surplus = [name for name in arrays if name not in own]
        missing = [] if partial else [name for name in self if name not in arrays]
        if surplus or missing:
            parts = (("surplus", surplus), ("missing", missing))
            text = "; ".join(f"{word} {', '.join(names)}" for word, names in parts if names)
            raise ParameterError("parameters", text, f"exactly {', '.join(self) or 'none'}")
        checked = []
        for name, stage in self._stages.items():
            mine = {
                inner: arrays[full] for inner in stage.parameters
                if (full := f"{name}.{inner}") in arrays
            }  # fmt: skip
            try:
                checked.append((stage, stage.parameters.checked(mine, partial=True)))
            except ParameterError as error:
                raise ParameterError(
                    f"{name}.{error.argument}", error.value, error.accepted
                ) from None
        for stage, found in checked:
            stage.parameters.replace(found)

    def save(self, path: str | PathLike[str]) -> None:
        """Write to a safetensors file."""
        from safetensors.numpy import save_file

        save_file({name: np.array(array, order="C") for name, array in self.items()}, str(path))

    def load(self, path: str | PathLike[str]) -> None:
        """Read from a safetensors file; checks like :meth:`update`."""
        from pathlib import Path

        from .._files import read_arrays

        self.update(read_arrays(Path(path)))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{n}: {'×'.join(map(str, a.shape))}" for n, a in self.items())
        return f"PipelineParameters({shapes})"


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
        self._dim = dim
        self._stages: dict[str, Stage] = {}
        self._block = 0
        self._settled = False

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
        if stage in self._stages.values():
            raise ArgumentError("stage", stage.name, "a stage that is not in the pipeline yet")
        chosen = self._named(stage.kind.replace("-", "_") if name is None else name, name)
        width = self._width_before(len(self._stages))
        if stage.takes is not None and width is not None and stage.takes != width:
            before = f"{list(self._stages)[-1]} before it gives" if self._stages else "dim is"
            raise ShapeError(chosen, f"width {stage.takes}", f"{width}, as {before} {width}")
        stage.name = chosen
        self._stages[chosen] = stage
        self._settled = False
        self._find_block()
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
        if not self._stages:
            raise ArgumentError("pipeline", "no stage before a residual", "a stage to go around")
        place = self._block if start is None else self._place(start)
        if place >= len(self._stages):
            raise ArgumentError("pipeline", "no stage in this block", "a stage to go around")
        entering, leaving = self._width_before(place), self._width_before(len(self._stages))
        if None not in (entering, leaving) and entering != leaving:
            around = list(self._stages)[place]
            raise ShapeError("residual", f"width {leaving}", f"{entering}, which enters {around}")
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
        for stage in self._stages.values():
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
        for stage in self._stages.values():
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
        names = list(self._stages)
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
        return tuple(self._stages.values())

    @property
    def dim(self) -> int | None:
        """Width of the stream that enters; None where nothing says it."""
        return self._width_before(0)

    @property
    def parameters(self) -> PipelineParameters:
        """Learned arrays of all stages, by ``stage.name``."""
        self._settle(self.dim)
        return PipelineParameters(self._stages)

    def initialise(self, rng: Any) -> None:
        """Set all parameters to fresh values from a seed or generator."""
        if rng is None:  # which NumPy takes for a seed of its own choice
            raise ArgumentError("rng", rng, "a seed or a numpy.random.Generator")
        generator = np.random.default_rng(rng)
        self._settle(self.dim)
        for place, stage in enumerate(self._stages.values()):
            if stage.parameters:
                width = self._width_before(place)
                assert width is not None  # settled above
                stage.initialise(width, generator)

    def summary(self, batch: int = 1, tokens: int = 128, keys: int | None = None) -> Any:
        """A table of the stages: shapes, parameters, multiply-adds, memory.

        It prints as text, shows as a table in notebooks, and `rows` are for programs.
        """
        from .summary import Summary

        self._settle(self.dim)
        return Summary.of(self, batch, tokens, keys)

    def picture(self) -> str:
        """A drawing of the stages and what goes around them, as SVG."""
        from .picture import draw

        return draw(self)

    def _repr_html_(self) -> str:
        return self.picture()

    def __len__(self) -> int:
        return len(self._stages)

    def __getitem__(self, name: str) -> Stage:
        return list(self._stages.values())[self._place(name)]

    def __repr__(self) -> str:
        return f"<pipeline {' → '.join(self._stages) or 'without stages'}>"

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
        self._settle(self.dim or stream.shape[-1])
        dim = self.dim
        if dim is not None and stream.shape[-1] != dim:
            first = next(iter(self._stages), "the pipeline")
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
        width = self._width_before(list(self._stages).index(stage.name) + 1)
        if width is not None and out.shape[-1] != width:
            raise ShapeError(stage.name, out.shape, f"a stream of width {width} behind it")
        return out

    def _named(self, base: str, given: str | None) -> str:
        if given is not None:
            if not given or "." in given or given in self._stages:
                raise ArgumentError("name", given, "a name without dots that no other stage has")
            return given
        count = sum(1 for stage in self._stages if stage.rstrip("0123456789") == base)
        return base if not count else f"{base}{count + 1}"

    def _place(self, stage: int | str) -> int:
        names = list(self._stages)
        if isinstance(stage, str) and stage in names:
            return names.index(stage)
        if isinstance(stage, int) and not isinstance(stage, bool) and 0 <= stage < len(names):
            return stage
        raise ArgumentError("stage", stage, f"a place, or one of {', '.join(names) or 'none'}")

    def _find_block(self) -> None:
        """Where the present block begins; see the notes of the class."""
        stages = list(self._stages.values())
        if isinstance(stages[-1], Residual):
            self._post_norm = not isinstance(stages[self._block], Norm)
            self._block = len(stages)
        elif (
            isinstance(stages[-1], Norm)
            and self._block == len(stages) - 1
            and self._block > 0
            and self._post_norm
        ):
            self._block = len(stages)

    def _width_before(self, place: int) -> int | None:
        """Width of the stream before a place, as far as `dim` and the stages say it."""
        stages = list(self._stages.values())
        width = self._dim
        if width is None:
            # Up to the first stage that takes one width only, all pass on what they get.
            for stage in stages:
                if stage.takes is not None:
                    width = stage.takes
                    break
        if width is None:
            return None
        for stage in stages[:place]:
            width = stage.gives(width)
        return width

    def _settle(self, width: int | None) -> None:
        if self._settled:
            return
        if width is None:
            if any(stage._parameters is None for stage in self._stages.values()):
                raise ArgumentError(
                    "pipeline", "stages of any width", "AttentionPipeline(dim=…), or a first run"
                )
            return
        if self._dim is None and self.dim is None:
            self._dim = width
        for place, stage in enumerate(self._stages.values()):
            before = self._width_before(place)
            assert before is not None
            stage.settle(before)
        self._settled = True


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
