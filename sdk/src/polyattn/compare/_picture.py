"""Where the best mechanism goes wrong: between classes, in the plane, against the truth."""

from __future__ import annotations

from typing import Any

from ._charts import Chart, altair, inline, spec_of
from .results import Comparison, Errors

MOST_CLASSES = 20
"""Of more classes, a matrix shows those that are most confused."""
MOST_COLOURS = 12
SHORT = 2
"""Labels of so many characters are drawn in place of points."""


def confusion(found: Comparison) -> Chart | None:
    """What the best mechanism takes for what."""
    errors = found.errors
    if errors is None or not errors.confusion:
        return None
    alt = altair()
    chosen, note = _shown_classes(errors.confusion)
    rows = []
    for i in chosen:
        total = max(sum(errors.confusion[i]), 1)
        rows += [
            {
                "true": found.data.classes[i],
                "taken for": found.data.classes[j],
                "count": errors.confusion[i][j],
                "share": errors.confusion[i][j] / total,
                "shown": str(errors.confusion[i][j] or ""),
            }
            for j in chosen
        ]
    order = [found.data.classes[i] for i in chosen]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("taken for:N", sort=order, axis=alt.Axis(labelAngle=0, labelLimit=80)),
        y=alt.Y("true:N", sort=order, axis=alt.Axis(labelLimit=110)),
        tooltip=["true:N", "taken for:N", "count:Q", alt.Tooltip("share:Q", format=".1%")],
    )
    cells = base.mark_rect(stroke="@surface", strokeWidth=2, cornerRadius=3).encode(
        color=alt.Color(
            "share:Q", legend=None,
            scale=alt.Scale(type="sqrt", domain=[0, 1], range=["@empty", "@accent"]),
        )
    )  # fmt: skip
    counts = base.mark_text(fontSize=11).encode(
        text="shown:N",
        color=alt.condition("datum.share > 0.35", alt.value("@onaccent"), alt.value("@text")),
    )
    size = max(26, min(44, 330 // len(chosen)))
    chart = alt.layer(cells, counts).properties(width="container", height=size * len(chosen))
    return Chart(
        f"What {errors.label} takes for what",
        f"Counts over the test vectors of all splits; rows are the true classes.{note}",
        spec_of(chart, f"confusion matrix of {errors.label}"),
    )


def _shown_classes(counts: tuple[tuple[int, ...], ...]) -> tuple[list[int], str]:
    """All classes, or of many those that are most confused."""
    if len(counts) <= MOST_CLASSES:
        return list(range(len(counts))), ""
    wrong = [
        sum(counts[i]) + sum(line[i] for line in counts) - 2 * counts[i][i]
        for i in range(len(counts))
    ]
    worst = sorted(range(len(counts)), key=lambda i: -wrong[i])[:MOST_CLASSES]
    return sorted(worst), f" Only the {MOST_CLASSES} classes with most errors."


def picture(found: Comparison) -> Chart | None:
    """Test samples in the plane of the two main components."""
    errors = found.errors
    if errors is None or not errors.points:
        return None
    return _classes(found, errors) if found.data.classes else _numbers(found, errors)


def _axes(errors: Errors) -> dict[str, Any]:
    alt = altair()
    names = [
        f"component {number} ({share:.0%} of the variance)"
        for number, share in enumerate(errors.explained, start=1)
    ]
    blank = {"labels": False, "ticks": False, "grid": False, "domain": False}
    return {
        "x": alt.X("x:Q", axis=alt.Axis(title=names[0], **blank), scale=alt.Scale(zero=False)),
        "y": alt.Y("y:Q", axis=alt.Axis(title=names[1], **blank), scale=alt.Scale(zero=False)),
    }


def _classes(found: Comparison, errors: Errors) -> Chart:
    alt, classes = altair(), found.data.classes
    rows = [
        {
            "x": p.x, "y": p.y, "true": p.truth, "taken for": p.predicted, "row": p.row,
            "wrong in": f"{p.error:.0%} of its tests",
        }
        for p in errors.points
    ]  # fmt: skip
    wrong = [row for row, point in zip(rows, errors.points, strict=True) if point.error]
    coloured = len(classes) <= MOST_COLOURS
    written = coloured and all(len(name) <= SHORT for name in classes)
    base = alt.Chart(inline(rows)).encode(
        **_axes(errors), tooltip=["true:N", "taken for:N", "wrong in:N", "row:Q"]
    )
    legend = None if written else alt.Legend(title=None, orient="top", symbolOpacity=1, columns=4)
    colour = (
        alt.Color("true:N", sort=list(classes), legend=legend) if coloured else alt.value("@muted")
    )
    if written:
        marks = base.mark_text(fontSize=11, fontWeight=600).encode(text="true:N", color=colour)
    else:
        marks = base.mark_circle(size=36, opacity=0.8).encode(color=colour)
    rings = (
        alt.Chart(inline(wrong))
        .mark_point(size=170, strokeWidth=1.8, color="@text", opacity=1)
        .encode(**_axes(errors), tooltip=["true:N", "taken for:N", "wrong in:N", "row:Q"])
    )
    chart = alt.layer(marks, rings).properties(width="container", height=400)
    return Chart(
        f"The data, and the errors of {errors.label}",
        f"Each {'digit or letter' if written else 'dot'} is a tested sample, in the plane of the "
        f"two main components; ringed are the {len(wrong):,} that were taken for another class at "
        "least once. The mechanism sees all coordinates, not this plane.",
        spec_of(chart, f"samples in a plane, errors of {errors.label} ringed"),
    )


def _numbers(found: Comparison, errors: Errors) -> Chart:
    alt = altair()
    rows = [
        {"x": p.x, "y": p.y, "true": p.truth, "predicted": p.predicted, "error": p.error,
         "row": p.row}
        for p in errors.points
    ]  # fmt: skip
    form = {"format": ".2f"}
    chart = alt.Chart(inline(rows)).mark_circle(size=40, opacity=0.85).encode(
        **_axes(errors),
        color=alt.Color("error:Q", scale=alt.Scale(range=["@pale", "@accent"]),
                        legend=alt.Legend(title="error", orient="top", **form)),
        tooltip=[alt.Tooltip("true:Q", **form), alt.Tooltip("predicted:Q", **form),
                 alt.Tooltip("error:Q", **form), "row:Q"],
    ).properties(width="container", height=400)  # fmt: skip
    return Chart(
        f"The data, and the errors of {errors.label}",
        "Each dot is a tested sample, in the plane of the two main components; the darker or "
        "brighter, the further from the truth (mean absolute error in standard deviations).",
        spec_of(chart, f"samples in a plane, coloured by the error of {errors.label}"),
    )


def truth(found: Comparison) -> Chart | None:
    """Predictions against the truth, where numbers are predicted."""
    errors = found.errors
    if errors is None or found.data.classes:
        return None
    alt = altair()
    rows = [{"true": p.truth, "predicted": p.predicted, "row": p.row} for p in errors.points]
    base = alt.Chart(inline(rows)).mark_circle(size=30, opacity=0.5, color="@accent")
    points = base.encode(
        x=alt.X("true:Q", axis=alt.Axis(title="true, in standard deviations", tickCount=5)),
        y=alt.Y("predicted:Q", axis=alt.Axis(title="predicted", tickCount=5)),
        tooltip=[alt.Tooltip("true:Q", format=".2f"), alt.Tooltip("predicted:Q", format=".2f"),
                 "row:Q"],
    )  # fmt: skip
    low = min(float(p.truth) for p in errors.points)
    high = max(float(p.truth) for p in errors.points)
    line = alt.Chart(inline([{"true": v, "predicted": v} for v in (low, high)]))
    diagonal = line.mark_line(strokeDash=[3, 4], color="@soft").encode(x="true:Q", y="predicted:Q")
    of = "the first hidden coordinate" if found.task == "reconstruction" else "the number"
    return Chart(
        f"What {errors.label} predicts",
        f"Predicted against true values of {of}, on test samples; dashed, where both agree.",
        spec_of(alt.layer(diagonal, points).properties(width="container", height=400),
              f"predictions of {errors.label} against the truth"),
    )  # fmt: skip
