"""A comparison in plain sentences, and the lines of code that follow from it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from . import _format as fmt
from ._smoothers import NearestNeighbours, NumpySoftmax
from .results import Comparison, Recommendation, Row
from .settings import Settings

_KNOWN_AS = {"standard": "z-scored vectors", "unit": "vectors of unit length", "none": "vectors"}


def summary(found: Comparison) -> tuple[str, ...]:
    """What was done, what is best, what is tied with it, what it costs, what went wrong."""
    sentences = [_done(found)]
    best = found.best
    if best is None:
        sentences.append("No mechanism could be measured: see why below.")
    else:
        sentences += [_best(found, best), _others(found, best), _nearest(found), _cost(found, best)]
    failed = [row.label for row in found.failed]
    if failed:
        sentences.append(f"{fmt.listing(failed)} failed and {_has(failed)} no figures.")
    return tuple(sentence for sentence in sentences if sentence)


def _done(found: Comparison) -> str:
    data, splits = found.data, found.settings.splits
    what = {
        "classification": "with one-hot labels as values, so that the output is a class "
        "probability",
        "regression": "with the numbers to predict as values, so that the output is their "
        "weighted mean",
        "reconstruction": f"with {fmt.count(data.coordinates - data.dim, 'hidden coordinate')} "
        "as values, so that the output fills them in",
    }[found.task]
    return (
        f"In each of {splits} random splits, {data.test:,} test vectors attended over "
        f"{data.train:,} training vectors {what}. The sharpness of every mechanism was tuned for "
        f"{found.tuned_for.title} on a validation part of the training vectors."
    )


def _best(found: Comparison, best: Row) -> str:
    metric, score = found.metric, best.scores[found.metric.name]
    number = sum(not row.anchor and not row.error for row in found.rows)
    among = f" of {fmt.count(number, 'mechanism')}" if number > 1 else ""
    return (
        f"{best.label} has the best {metric.title}{among}: {fmt.score(metric, score.mean)} "
        f"(95 % interval {fmt.interval(metric, score)})."
    )


def _others(found: Comparison, best: Row) -> str:
    tied = [row.label for row in found.tied if row is not best]
    others = [r for r in found.rows if not r.anchor and not r.error and not r.tied]
    if not tied and not others:
        return ""
    if not tied:
        return "No other mechanism is as good: every difference is more than chance (p < 0.05)."
    said = f"{fmt.listing(tied)} cannot be told from it on these splits (p ≥ 0.05)"
    if not others:
        more = "; more of them may tell (--splits 20)" if len(tied) > 1 else ""
        return f"{said}{more}."
    rest = "one is" if len(others) == 1 else f"{len(others)} are"
    return f"{said}; the other {rest} worse by more than chance."


def _nearest(found: Comparison) -> str:
    """How nearest neighbours stand to the best mechanism; nothing where they are worse."""
    metric = found.metric
    row = next((row for row in found.rows if row.label == NearestNeighbours.label), None)
    if row is None or row.difference is None or not (row.tied or row.difference.mean > 0):
        return ""
    verdict = (
        "which cannot be told from the best mechanism"
        if row.tied
        else "better than any mechanism here: think twice before you use attention for this"
    )
    score = fmt.score(metric, row.scores[metric.name].mean)
    return f"The mean of the {row.label} reaches {score}, {verdict}."


def _cost(found: Comparison, best: Row) -> str:
    cost = f"{fmt.seconds(best.seconds)} and {fmt.megabytes(best.memory)}"
    plain = next((row for row in found.rows if row.label == NumpySoftmax.label), None)
    beside = (
        f", against {fmt.seconds(plain.seconds)} and {fmt.megabytes(plain.memory)} of "
        "soft-max attention written out in NumPy"
        if plain is not None and not plain.error
        else ""
    )
    return f"One pass of {best.label} over all test vectors took {cost}{beside}."


def _has(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"


def recommend(found: Comparison) -> Recommendation | None:
    """The fastest within one standard error of the best; the best where it is about as fast.

    That a mechanism is tied is not enough: with few splits the test may miss a difference that
    matters.
    """
    best = found.best
    if best is None:
        return None
    margin = best.scores[found.metric.name].standard_error
    near = [row for row in found.tied if row.difference and -row.difference.mean <= margin]
    fastest = min([best, *near], key=lambda row: row.seconds)
    score = fmt.score(found.metric, best.scores[found.metric.name].mean)
    if best.seconds <= 1.1 * fastest.seconds:
        alone = ", and none that comes near it is much faster" if len(near) > 1 else ""
        return Recommendation(
            best, f"best {found.metric.title}, {score}{alone}", _snippet(found, best)
        )
    ratio = best.seconds / fastest.seconds
    reason = f"within one standard error of {best.label}, the best, and {ratio:.1f} times as fast"
    return Recommendation(fastest, reason, _snippet(found, fastest))


def _snippet(found: Comparison, row: Row) -> str:
    name = row.label.partition("[")[0]
    options = "".join(f", {option}={value!r}" for option, value in row.options.items())
    known = _KNOWN_AS[found.settings.scale]
    return (
        "import polyattn as pa\n\n"
        f"attend = pa.create({json.dumps(name)}, dim={found.data.dim}{options})\n\n"
        f"# {known} (…, {found.data.dim}), values of any width\n"
        "output = attend(queries, keys, values)"
    )


def command(found: Comparison) -> str:
    """The command that runs a comparison again: settings that are not the default, spelt out."""
    if not found.data.arguments:
        return ""
    words = ["polyattn", "compare", *found.data.arguments]
    chosen = found.settings
    for name, field in Settings.model_fields.items():
        value = getattr(chosen, name)
        if value == field.get_default(call_default_factory=True):
            continue
        if name == "options":
            for mechanism, options in value.items():
                for option, setting in options.items():
                    words += ["--set", f"{mechanism}.{option}={_spelt(setting)}"]
        else:
            joined = ",".join(value) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", joined]
    return shlex.join(words)


def _spelt(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
