"""The page of a comparison: one file that needs no network."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from . import _charts, _picture
from . import _format as fmt
from ._charts import Chart, altair, standing
from ._optional import need
from ._terminal import ANCHOR, BEST, TIED
from .results import Comparison, Row

_MARKS = {"best": BEST, "tied with the best": TIED, "worse": "", "anchor": ANCHOR}


def render(found: Comparison) -> str:
    """The page as HTML, with its style, scripts and data in it."""
    # A dependency of altair, which makes its own pages with it.
    jinja = need("jinja2", "altair", "the page")
    convert = need("vl_convert", "vl-convert-python", "the page")
    environment = jinja.Environment(
        loader=jinja.PackageLoader("polyattn.compare", "page"),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    charts = _all_charts(found)
    specs = {name: chart.spec for name, chart in charts.items()}
    version = ".".join(altair().SCHEMA_VERSION.lstrip("v").split(".")[:2])
    page: str = environment.get_template("page.html").render(
        found=found,
        data=found.data,
        best=found.best,
        advice=found.recommend(),
        tiles=_tiles(found),
        rows=[_cells(found, row) for row in found.rows if not row.error],
        others=[other for other in found.metrics if other.name != found.metric.name],
        failed=found.failed,
        caveats=[(row.label, note) for row in found.rows for note in row.caveats],
        left_out=_left_out(found),
        figures={name: c for name, c in charts.items() if not name.startswith("curve")},
        curves={name: c for name, c in charts.items() if name.startswith("curve")},
        settings=found.settings.model_dump(mode="json"),
        specs=jinja.utils.markupsafe.Markup(_in_script(json.dumps(specs))),
        library=jinja.utils.markupsafe.Markup(
            _in_script(convert.javascript_bundle(vl_version=version), code=True)
        ),
        fmt=fmt,
    )
    return page


def _unbroken(text: str) -> str:
    """`text` with numbers kept on one line with their units and signs."""
    return re.sub(r"(?<=[\d≥±<=]) (?=%|[µm]?s\b|MB\b|\d)|(?<=\bp) (?=[≥<=])", "\u00a0", text)


def _in_script(text: str, *, code: bool = False) -> str:
    """`text` such that it cannot end the script element that it stands in."""
    return text.replace("</script", r"<\/script") if code else text.replace("<", r"\u003c")


def _all_charts(found: Comparison) -> dict[str, Chart]:
    if found.best is None and not any(not row.error for row in found.rows):
        return {}
    single = {
        "quality": _charts.quality(found),
        "cost": _charts.cost(found),
        "confusion": _picture.confusion(found),
        "truth": _picture.truth(found),
        "picture": _picture.picture(found),
    }
    charts = {name: chart for name, chart in single.items() if chart is not None}
    for number, chart in enumerate(_charts.sharpness_curves(found)):
        charts[f"curve{number}"] = chart
    return charts


def _tiles(found: Comparison) -> list[tuple[str, str, str]]:
    """The few figures that matter most: what, how much, and of what."""
    advice, best = found.recommend(), found.best
    if advice is None or best is None:
        return []
    row, metric = advice.row, found.metric
    measured = sum(not other.anchor and not other.error for other in found.rows)
    score = row.scores[metric.name]
    return [
        (metric.title, fmt.score(metric, score.mean), f"95 %: {fmt.interval(metric, score)}"),
        ("time", fmt.seconds(row.seconds), f"one pass, {found.data.test:,} test vectors"),
        ("memory", fmt.megabytes(row.memory), "beyond its inputs"),
        ("tied with the best", f"{len(found.tied)} of {measured}", "mechanisms, p ≥ 0.05"),
    ]


def _cells(found: Comparison, row: Row) -> dict[str, Any]:
    """A line of the table: texts, and the numbers to sort by."""
    metric, name = found.metric, standing(found, row)
    difference = row.difference
    shown = row is not found.best and difference is not None
    sharp, other_metrics = row.sharpness, [m for m in found.metrics if m.name != metric.name]
    return {
        "row": row,
        "standing": name,
        "mark": _MARKS[name],
        "score": fmt.with_margin(metric, row.scores[metric.name]),
        "score_value": row.scores[metric.name].mean,
        "difference": fmt.difference(metric, difference.mean) if shown and difference else "",
        "difference_value": difference.mean if difference else 0.0,
        "p": "" if row.p_value is None or not shown else _probability(row.p_value),
        "others": [
            (fmt.score(other, row.scores[other.name].mean), row.scores[other.name].mean)
            for other in other_metrics
        ],
        "sharpness": f"{sharp.option} {fmt.sharpness(sharp.value)}" if sharp else fmt.UNKNOWN,
        "time": fmt.seconds(row.seconds),
        "memory": fmt.megabytes(row.memory),
    }


def _probability(p: float) -> str:
    if not math.isfinite(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _left_out(found: Comparison) -> list[tuple[str, str]]:
    reasons: dict[str, list[str]] = {}
    for item in found.left_out:
        reasons.setdefault(item.reason, []).append(item.name)
    return [(", ".join(names), reason) for reason, names in reasons.items()]
