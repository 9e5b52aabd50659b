"""What stands where in a pipeline: names of stages, blocks, and the width of the stream."""

from __future__ import annotations

from polyattn_core.errors import ArgumentError, ShapeError

from .stage import Stage
from .stages import Norm, Residual


class Layout:
    """The stages of a pipeline in order, with the widths between them.

    A block begins at the first stage and behind each residual; behind the norm after it where the
    block before did not begin with a norm.
    """

    def __init__(self, dim: int | None) -> None:
        self.given = dim
        """Width of the stream that enters, if it was said or has been seen."""
        self.stages: dict[str, Stage] = {}
        self.block = 0
        """Place at which the present block begins."""
        self._post_norm = False
        self._settled = False

    def append(self, stage: Stage, name: str | None) -> None:
        """Append a stage under a name, by default that of its kind."""
        if stage in self.stages.values():
            raise ArgumentError("stage", stage.name, "a stage that is not in the pipeline yet")
        chosen = self._named(stage.kind.replace("-", "_") if name is None else name, name)
        width = self.width_before(len(self.stages))
        if stage.takes is not None and width is not None and stage.takes != width:
            before = f"{list(self.stages)[-1]} before it gives" if self.stages else "dim is"
            raise ShapeError(chosen, f"width {stage.takes}", f"{width}, as {before} {width}")
        stage.name = chosen
        self.stages[chosen] = stage
        self._settled = False
        self._find_block()

    def around(self, start: int | str | None) -> int:
        """The place at which a residual begins that is appended now."""
        if not self.stages:
            raise ArgumentError("pipeline", "no stage before a residual", "a stage to go around")
        place = self.block if start is None else self.place(start)
        if place >= len(self.stages):
            raise ArgumentError("pipeline", "no stage in this block", "a stage to go around")
        entering, leaving = self.width_before(place), self.width_before(len(self.stages))
        if None not in (entering, leaving) and entering != leaving:
            passed = list(self.stages)[place]
            raise ShapeError("residual", f"width {leaving}", f"{entering}, which enters {passed}")
        return place

    def place(self, stage: int | str) -> int:
        """The place of a stage, by name or place."""
        names = list(self.stages)
        if isinstance(stage, str) and stage in names:
            return names.index(stage)
        if isinstance(stage, int) and not isinstance(stage, bool) and 0 <= stage < len(names):
            return stage
        raise ArgumentError("stage", stage, f"a place, or one of {', '.join(names) or 'none'}")

    def width_before(self, place: int) -> int | None:
        """Width of the stream before a place, as far as `dim` and the stages say it."""
        stages = list(self.stages.values())
        width = self.given
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

    def settle(self, width: int | None) -> None:
        """Make the learned arrays of stages whose width follows from that of the stream."""
        if self._settled:
            return
        if width is None:
            if any(stage._parameters is None for stage in self.stages.values()):
                raise ArgumentError(
                    "pipeline", "stages of any width", "AttentionPipeline(dim=…), or a first run"
                )
            return
        if self.given is None and self.width_before(0) is None:
            self.given = width
        for place, stage in enumerate(self.stages.values()):
            before = self.width_before(place)
            assert before is not None
            stage.settle(before)
        self._settled = True

    def _named(self, base: str, given: str | None) -> str:
        if given is not None:
            if not given or "." in given or given in self.stages:
                raise ArgumentError("name", given, "a name without dots that no other stage has")
            return given
        count = sum(1 for stage in self.stages if stage.rstrip("0123456789") == base)
        return base if not count else f"{base}{count + 1}"

    def _find_block(self) -> None:
        """Where the present block begins; see the notes of the class."""
        stages = list(self.stages.values())
        if isinstance(stages[-1], Residual):
            self._post_norm = not isinstance(stages[self.block], Norm)
            self.block = len(stages)
        elif (
            isinstance(stages[-1], Norm)
            and self.block == len(stages) - 1
            and self.block > 0
            and self._post_norm
        ):
            self.block = len(stages)
