"""A drawing of a pipeline: boxes from top to bottom, arcs for what goes around them."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .stages import Residual

if TYPE_CHECKING:
    from .pipeline import AttentionPipeline

_WIDE, _HIGH, _STEP, _TOP, _LEFT = 260, 34, 56, 44, 70
_COLOURS = {
    "attention": "#c7d8f5", "feed-forward": "#fbd9b5", "norm": "#d5ecd0", "dropout": "#e6e6e6",
    "residual": "#ffffff",
}  # fmt: skip


def draw(pipeline: AttentionPipeline) -> str:
    """The drawing as SVG."""
    stages = pipeline.stages
    middle = _LEFT + _WIDE / 2
    deep = max((_depth(pipeline, stage) for stage in stages), default=0)
    height = _TOP + _STEP * len(stages) + 40
    width = _LEFT + _WIDE + 40 + 22 * deep
    parts = [_label(middle, 22, "stream" + (f", {pipeline.dim} wide" if pipeline.dim else ""))]
    for place, stage in enumerate(stages):
        y = _TOP + _STEP * place
        parts.append(_arrow(middle, y - 14, y))
        if isinstance(stage, Residual):
            parts.append(
                f'<circle cx="{middle}" cy="{y + _HIGH / 2}" r="14" class="box" fill="#fff"/>'
                + _label(middle, y + _HIGH / 2 + 6, "+", big=True)
            )
            parts.append(_arc(stage, place, middle, _depth(pipeline, stage)))
            if stage.scale != 1:
                parts.append(_label(middle - 60, y + _HIGH / 2 + 4, f"× {stage.scale:g}"))
        else:
            colour = _COLOURS.get(stage.kind, "#f3e3f7")
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{_WIDE}" height="{_HIGH}" rx="6" class="box" '
                f'fill="{colour}"><title>{escape(_tip(stage))}</title></rect>'
                + _label(middle, y + 21, _caption(stage))
            )
            if getattr(stage, "source", "") == "context":
                parts.append(_label(_LEFT - 36, y + 11, "context") + _into(y + _HIGH / 2))
        bottom = y + _HIGH / 2 + 14 if isinstance(stage, Residual) else y + _HIGH
        parts.append(_line(middle, bottom, y + _STEP - 14))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(repr(pipeline))}">'
        "<style>text{font:13px system-ui,sans-serif;fill:#222;text-anchor:middle}"
        ".box{stroke:#555;stroke-width:1}.flow{stroke:#555;fill:none;stroke-width:1.4}</style>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>'
    )


def _caption(stage: object) -> str:
    attention = getattr(stage, "attention", None)
    name = str(getattr(stage, "name", ""))
    if attention is None:
        return name.replace("_", " ")
    config = attention.config
    return f"{name.replace('_', ' ')}: {attention.spec.name}, {config.heads} × {config.head_dim}"


def _tip(stage: object) -> str:
    attention = getattr(stage, "attention", None)
    return repr(attention) if attention is not None else type(stage).__name__


def _depth(pipeline: AttentionPipeline, stage: object) -> int:
    """How far out an arc has to be, so that it does not cross those within it."""
    if not isinstance(stage, Residual):
        return 0
    place = pipeline.stages.index(stage)
    inner = [
        _depth(pipeline, other)
        for at, other in enumerate(pipeline.stages[:place])
        if isinstance(other, Residual) and at > stage.start
    ]
    return 1 + max(inner, default=0)


def _arc(stage: Residual, place: int, middle: float, depth: int) -> str:
    start = _TOP + _STEP * stage.start - 12
    end = _TOP + _STEP * place + _HIGH / 2
    out = _LEFT + _WIDE + 22 * depth
    return (
        f'<path d="M{middle} {start}H{out - 8}Q{out} {start} {out} {start + 8}V{end - 8}'
        f'Q{out} {end} {out - 8} {end}H{middle + 15}" class="flow" marker-end="url(#tip)"/>'
    )


def _label(x: float, y: float, text: str, *, big: bool = False) -> str:
    style = ' style="font-size:18px"' if big else ""
    return f'<text x="{x}" y="{y}"{style}>{escape(text)}</text>'


def _line(x: float, start: float, end: float) -> str:
    return f'<path d="M{x} {start}V{end}" class="flow"/>'


def _arrow(x: float, start: float, end: float) -> str:
    return f'<path d="M{x} {start}V{end}" class="flow" marker-end="url(#tip)"/>'


def _into(y: float) -> str:
    return f'<path d="M{_LEFT - 62} {y}H{_LEFT}" class="flow" marker-end="url(#tip)"/>'
