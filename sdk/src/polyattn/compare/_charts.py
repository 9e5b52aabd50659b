"""The charts of the page, as Vega-Lite specifications.

Colours are names in the form ``@accent``: the page puts those of its light or dark theme in their
place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import _format as fmt
from ._optional import need
from .results import Comparison, Metric, Row

Spec = dict[str, Any]

STANDINGS = ("best", "tied with the best", "worse", "anchor")
_COLOURS = ("@accent", "@accent", "@muted", "@anchor")
_SHAPES = ("diamond", "circle", "circle", "square")


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with what is said about it; `wide` ones take the whole width of the page."""

    title: str
    caption: str
    spec: Spec
    wide: bool = False


def standing(found: Comparison, row: Row) -> str:
    """How a row stands to the best mechanism: one of :data:`STANDINGS`."""
    if row.anchor:
        return STANDINGS[3]
    if row is found.best:
        return STANDINGS[0]
    return STANDINGS[1] if row.tied else STANDINGS[2]


def altair() -> Any:
    return need("altair", "altair", "the page")


def spec_of(chart: Any, description: str) -> Spec:
    spec: Spec = json.loads(chart.properties(description=description).to_json())
    return spec


def inline(rows: Sequence[Mapping[str, Any]]) -> Any:
    return altair().InlineData(values=[dict(row) for row in rows])


def _axis(metric: Metric, **more: Any) -> Any:
    form = ".0%" if metric.percent else ".3~g"
    arrow = "→ better" if metric.higher_is_better else "← better"
    return altair().Axis(title=f"{metric.title} ({arrow})", format=form, tickCount=5, **more)


def _rows(found: Comparison) -> list[dict[str, Any]]:
    metric = found.metric
    rows: list[dict[str, Any]] = []
    for row in found.rows:
        if row.error:
            continue
        score = row.scores[metric.name]
        rows.append(
            {
                "mechanism": row.label,
                "standing": standing(found, row),
                "score": score.mean,
                "low": score.low,
                "high": score.high,
                "ms": 1e3 * row.seconds,
                "text": fmt.with_margin(metric, score),
                "time": fmt.seconds(row.seconds),
                "memory": fmt.megabytes(row.memory),
            }
        )
    return rows


def _standing_colour(rows: Sequence[Mapping[str, Any]]) -> Any:
    return _by_standing(rows, "Color", _COLOURS)


def _standing_shape(rows: Sequence[Mapping[str, Any]]) -> Any:
    return _by_standing(rows, "Shape", _SHAPES)


def _by_standing(rows: Sequence[Mapping[str, Any]], channel: str, looks: Sequence[str]) -> Any:
    """An encoding of those standings that occur; the page has the legend, in words that wrap."""
    alt = altair()
    present = {row["standing"] for row in rows}
    pairs = [pair for pair in zip(STANDINGS, looks, strict=True) if pair[0] in present]
    scale = alt.Scale(domain=[name for name, _ in pairs], range=[look for _, look in pairs])
    return getattr(alt, channel)("standing:N", scale=scale, legend=None)


_TOOLTIP = ("mechanism:N", "text:N", "standing:N", "time:N", "memory:N")


def quality(found: Comparison) -> Chart:
    """Mean and interval of each candidate."""
    alt, rows, metric = altair(), _rows(found), found.metric
    order = [row["mechanism"] for row in rows]
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("mechanism:N", sort=order, axis=alt.Axis(title=None, labelLimit=170)),
        tooltip=[alt.Tooltip(field) for field in _TOOLTIP],
    )
    scale = alt.Scale(zero=False, nice=True)
    colour = _standing_colour(rows)
    bars = base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(
        x=alt.X("low:Q", scale=scale, axis=_axis(metric)), x2="high:Q", color=colour
    )
    points = base.mark_point(filled=True, size=110, opacity=1).encode(
        x=alt.X("score:Q", scale=scale), color=colour, shape=_standing_shape(rows)
    )
    layers = [bars, points]
    best = found.best
    if best is not None:
        line = alt.Chart(inline([{"score": best.scores[metric.name].mean}]))
        layers.insert(0, line.mark_rule(strokeDash=[3, 4], color="@soft").encode(x="score:Q"))
    chart = alt.layer(*layers).properties(width="container", height=alt.Step(25))
    return Chart(
        f"{_capital(metric.title)} of each mechanism",
        f"Mean over {found.settings.splits} splits with its 95 % interval; dashed, the best mean. "
        "Differences are judged pair by pair, so that intervals that overlap may still be told "
        "apart.",
        spec_of(chart, f"{metric.title} with its interval, one line for each mechanism"),
        wide=True,
    )


def cost(found: Comparison) -> Chart:
    """Quality against time."""
    alt, rows, metric = altair(), _rows(found), found.metric
    sign = 1 if metric.higher_is_better else -1
    for row in rows:
        beaten = any(
            other["ms"] < row["ms"] and sign * other["score"] >= sign * row["score"]
            for other in rows
        )
        named = not beaten or row["standing"] in (STANDINGS[0], STANDINGS[3])
        row["label"] = row["mechanism"] if named else ""
    times = [row["ms"] for row in rows]
    span = [min(times) / 1.3, max(times) * 1.3]
    for row in rows:
        # Names stand where there is room: to the right of marks on the left, and vice versa.
        row["side"] = "right" if row["ms"] ** 2 < span[0] * span[1] else "left"
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("ms:Q", scale=alt.Scale(type="log", domain=span, nice=False),
                axis=alt.Axis(title="time of one pass in ms (← faster)", format="~g",
                              values=_ticks(*span))),
        y=alt.Y("score:Q", scale=alt.Scale(zero=False, padding=14), axis=_axis(metric)),
        tooltip=[alt.Tooltip(field) for field in _TOOLTIP],
    )  # fmt: skip
    points = base.mark_point(filled=True, size=90, opacity=0.9).encode(
        color=_standing_colour(rows), shape=_standing_shape(rows)
    )
    names = [
        base.transform_filter(f"datum.side == '{side}'")
        .mark_text(align=align, dx=dx, dy=dy, fontSize=12, color="@text")
        .encode(text="label:N")
        for side, align, dx, dy in (("right", "left", 8, -9), ("left", "right", 4, 16))
    ]
    chart = alt.layer(points, *names).properties(width="container", height=330)
    return Chart(
        "Quality and time",
        f"{_capital(metric.title)} against the median time of one pass over {found.data.test:,} "
        f"test and {found.data.train:,} training vectors. Named are the anchors and those that "
        "nothing beats in both; marks are those of the chart above.",
        spec_of(chart, f"{metric.title} against time, one mark for each mechanism"),
        wide=True,
    )


def sharpness_curves(found: Comparison) -> list[Chart]:
    """Validation score against sharpness, a small chart for each candidate that was tuned."""
    alt, metric = altair(), found.tuned_for
    curves: list[tuple[Row, list[dict[str, Any]]]] = []
    for row in found.rows:
        if row.sharpness is not None and not row.error and not row.sharpness.fixed:
            # Points of few splits would make a jagged line: they are means over other data.
            most = max((tried for _, _, tried in row.sharpness.curve), default=0)
            points = [
                {"sharpness": value, "score": score}
                for value, score, tried in row.sharpness.curve
                if tried > most / 2
            ]
            if len(points) > 1:
                curves.append((row, points))
    domain = _worth_seeing([p["score"] for _, points in curves for p in points], metric)
    charts = []
    for row, points in curves:
        assert row.sharpness is not None
        option, chosen = row.sharpness.option, row.sharpness.value
        base = alt.Chart(inline(points)).encode(
            x=alt.X("sharpness:Q", scale=alt.Scale(type="log", nice=False),
                    axis=alt.Axis(title=None, values=_ticks(points[0]["sharpness"],
                                                            points[-1]["sharpness"]),
                                  labelExpr=_SHORT_NUMBER, grid=False, labelOverlap=True)),
            y=alt.Y("score:Q", scale=alt.Scale(domain=domain, zero=False),
                    axis=alt.Axis(title=None, tickCount=3,
                                  format=".0%" if metric.percent else ".2~g")),
            tooltip=[alt.Tooltip("sharpness:Q", format=".3g", title=option),
                     alt.Tooltip("score:Q", format=".3f", title=metric.title)],
        )  # fmt: skip
        mark = alt.Chart(inline([{"sharpness": chosen}])).encode(x="sharpness:Q")
        chart = alt.layer(
            mark.mark_rule(color="@accent", strokeWidth=2),
            base.mark_line(color="@text", strokeWidth=1.5, clip=True),
            base.mark_point(filled=True, size=20, color="@text", opacity=1, clip=True),
        ).properties(width="container", height=110)
        border = " or beyond" if row.sharpness.on_border else ""
        charts.append(
            Chart(
                row.label,
                f"{option}: {fmt.sharpness(chosen)}{border}",
                spec_of(chart, f"validation {metric.title} of {row.label} against {option}"),
            )
        )
    return charts


_SHORT_NUMBER = (
    "datum.value < 0.01 || datum.value >= 10000 ? format(datum.value, '.0e') "
    ": format(datum.value, '~g')"
)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers in a logarithmic range: 1, 2, 5 where it is short, powers of ten else."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if high / low < 30 else (1,)
    found = [float(f"{m}e{e}") for e in range(first, last + 1) for m in steps]
    inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
    return inside[:: math.ceil(len(inside) / 6)] if inside else [low, high]


def _worth_seeing(scores: Sequence[float], metric: Metric) -> list[float]:
    """All but the worst sixth: far from its best sharpness any mechanism is hopeless."""
    ordered = sorted(scores)
    if not ordered:
        return [0.0, 1.0]
    cut = len(ordered) // 6
    low, high = ordered[0], ordered[-1]
    return [ordered[cut], high] if metric.higher_is_better else [low, ordered[-1 - cut]]


def _capital(text: str) -> str:
    return text if text[:1].isupper() or text[1:2].isupper() else text[:1].upper() + text[1:]
