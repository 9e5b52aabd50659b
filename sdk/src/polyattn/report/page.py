"""The page of a report: one file, no scripts, no network."""

from __future__ import annotations

import itertools
import math
from html import escape
from typing import Any

from polyattn_core.arrays import Array

from .. import __version__
from ._picture import picture

_COLOURS = {"OK": "#2e7d32", "WATCH": "#00838f", "WARNING": "#b26a00", "CRITICAL": "#c62828"}
_ENDS = {"topology-coherence": 1.0}
"""Where a scale ends because there are no greater values."""
_WIDE, _HIGH = 460, 26
_MEANING = {
    "stable": "nothing to do",
    "cautious": "trust results less",
    "freeze": "stop updating: keys have fallen apart",
    "raise-temperature": "weights have collapsed: soften them",
    "lower-temperature": "weights are nearly uniform: sharpen them",
    "regularise": "keys carry more than they need: compress",
}

_STYLE = """
:root{color-scheme:light dark;--ink:#1d2430;--page:#fff;--card:#f5f6f8;--dim:#5b6472;--dot:#1f6feb}
@media(prefers-color-scheme:dark){:root{--ink:#e7eaf0;--page:#14171c;--card:#1e232b;--dim:#9aa4b2;--dot:#79b8ff}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:60rem;
margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem;margin:0}.dim{color:var(--dim)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(12rem,1fr));gap:1rem;
margin:1.5rem 0}
.card{background:var(--card);border-radius:.7rem;padding:1rem 1.2rem}.card b{font-size:1.6rem;
display:block}table{border-collapse:collapse;width:100%}td,th{padding:.55rem .6rem;text-align:left;
vertical-align:middle}tr+tr{border-top:1px solid #8884}.n{text-align:right;
font-variant-numeric:tabular-nums}.tag{border-radius:1rem;padding:.1rem .7rem;color:#fff;
font-size:.85rem}svg{max-width:100%;height:auto}code{background:var(--card);padding:.1rem .4rem;
border-radius:.3rem}.z{opacity:.3}.dots{fill:var(--dot);fill-opacity:.55}
@media(prefers-color-scheme:dark){.z{opacity:.7}}
"""


def render(choice: Any, data: str, vectors: Array) -> str:
    """The page as HTML."""
    report = choice.report
    size = " × ".join(f"{n:,}" for n in vectors.shape)
    rows = "".join(_row(metric) for metric in report.metrics)
    missing = "".join(
        f'<tr class="dim"><td>{escape(name)}</td><td class="n">–</td>'
        f"<td>{escape(why)}</td><td></td></tr>"
        for name, why in report.missing.items()
    )
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.reasons)
    cards = "".join(
        f'<div class="card"><span class="dim">{title}</span><b>{escape(text)}</b>'
        f"{escape(more)}</div>"
        for title, text, more in (
            ("health", f"{report.health_score:.2f}", "1 is every metric in its healthy range"),
            ("take", choice.mechanism, f"{report.recommendation.value} attention"),
            ("action", report.action.value.replace("-", " "), _MEANING[report.action.value]),
        )
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>Geometry report: {escape(data)}</title><style>{_STYLE}</style></head><body>
<h1>Geometry report: {escape(data)}</h1>
<div class="dim">{size} · polyattn {__version__}</div>
<div class="cards">{cards}</div>
<h2>Why</h2><ul>{reasons}</ul>
<h2>Metrics</h2>
<table><tr><th>metric</th><th class="n">value</th><th>on its scale</th><th>status</th></tr>
{rows}{missing}</table>
<p class="dim">Green is healthy, blue worth watching, yellow a warning, red critical; the mark is
the value.</p>
<h2>The vectors</h2>
{picture(vectors)}
<p>Look closer: <code>polyattn info {escape(choice.mechanism)}</code>. Check the advice on your own
task: <code>polyattn compare {escape(data)}</code>.</p>
</body></html>
"""


def _row(metric: Any) -> str:
    status = metric.status().value
    return (
        f'<tr><td>{escape(metric.metric_type.value)}</td><td class="n">{metric.value:.3g}</td>'
        f"<td>{_scale(metric)}</td>"
        f'<td><span class="tag" style="background:{_COLOURS[status]}">{status}</span></td></tr>'
    )


def _scale(metric: Any) -> str:
    """The zones of a metric from left to right, and where its value lies."""
    limits = metric.thresholds
    top = limits.high * 1.25 if limits.bad_when_low else limits.critical * 1.4
    top = _ENDS.get(metric.metric_type.value, top)
    edges = sorted({0.0, limits.low, limits.high, limits.warning, limits.critical, top})
    parts = []
    for left, right in itertools.pairwise(edges):
        colour = _COLOURS[limits.status((left + right) / 2).value]
        x, wide = _WIDE * left / top, _WIDE * (right - left) / top
        parts.append(
            f'<rect class="z" x="{x:.1f}" y="6" width="{wide:.1f}" height="14" fill="{colour}"/>'
        )
    if math.isfinite(metric.value):
        x = min(_WIDE * metric.value / top, _WIDE - 4)
        parts.append(f'<rect x="{x:.1f}" y="1" width="4" height="24" fill="var(--ink)"/>')
        if metric.value > top:  # beyond the end of the scale
            parts.append(f'<text x="{_WIDE - 18}" y="18" font-size="14" fill="#333">»</text>')
    label = f"{metric.metric_type.value}: {metric.value:.3g}"
    return (
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" width="{_WIDE}" height="{_HIGH}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
