"""What a pipeline costs: a table of its stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from .pipeline import AttentionPipeline


@dataclass(frozen=True, slots=True)
class Row:
    """One stage: shape of the stream behind it, and what it costs."""

    name: str
    kind: str
    detail: str
    shape: tuple[int, ...]
    parameters: int
    flops: float | None
    """Floating-point operations, two for each multiply-add; None where they are not known."""
    stream_bytes: int
    """Memory of the stream behind it, in float32: what a run with gradients keeps, at least."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A table; `rows` are for programs, and it prints and shows itself to people."""

    rows: tuple[Row, ...]
    batch: int
    tokens: int

    @classmethod
    def of(cls, pipeline: AttentionPipeline, batch: int, tokens: int, keys: int | None) -> Summary:
        """Of a pipeline on a stream of this size, attending to so many keys of a context."""
        rows = []
        for place, stage in enumerate(pipeline.stages):
            width = pipeline._layout.width_before(place) or 0
            leaving = stage.gives(width)
            seen = tokens if keys is None or getattr(stage, "source", "") == "self" else keys
            work = stage.multiply_adds(tokens, seen, width)
            attention = getattr(stage, "attention", None)
            detail = repr(attention) if attention is not None else _text(stage.options())
            rows.append(
                Row(
                    stage.name, stage.kind, detail, (batch, tokens, leaving),
                    sum(array.size for array in stage.parameters.values()),
                    None if work is None else 2 * batch * work, 4 * batch * tokens * leaving,
                )
            )  # fmt: skip
        return cls(tuple(rows), batch, tokens)

    @property
    def parameters(self) -> int:
        """Learned numbers in all."""
        return sum(row.parameters for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __rich__(self) -> Table:
        from rich.table import Table

        known = [row.flops for row in self.rows if row.flops is not None]
        table = Table(show_footer=True)
        table.add_column("stage", "in all")
        table.add_column("what it is")
        table.add_column("stream behind it")
        table.add_column("parameters", f"{self.parameters:,}", justify="right")
        partly = "≥ " if len(known) < len(self.rows) else ""
        table.add_column("operations", partly + _scaled(sum(known)), justify="right")
        memory = sum(row.stream_bytes for row in self.rows)
        table.add_column("memory", _scaled(memory, "B"), justify="right")
        for row in self.rows:
            flops = "?" if row.flops is None else _scaled(row.flops) if row.flops else ""
            table.add_row(
                row.name, row.detail or row.kind, " × ".join(map(str, row.shape)),
                f"{row.parameters:,}" if row.parameters else "", flops,
                _scaled(row.stream_bytes, "B"),
            )  # fmt: skip
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=110, no_color=True)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def _text(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _scaled(number: float, unit: str = "") -> str:
    for prefix in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {prefix}{unit}".rstrip()
        number /= 1000
    return f"{number:.3g} T{unit}"
