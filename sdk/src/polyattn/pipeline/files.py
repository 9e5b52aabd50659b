"""Pipelines as JSON: stages by kind with their options."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import polyattn_registry as registry
from polyattn_core.errors import FileFormatError

from .attention import AttentionStage
from .pipeline import AttentionPipeline, _norm
from .stage import Stage
from .stages import Dropout, FeedForward, Function, Residual

FORMAT, VERSION = "polyattn-pipeline", 1

_KINDS: dict[str, type[Stage]] = {s.kind: s for s in (Dropout, FeedForward, Residual)}


def dump(pipeline: AttentionPipeline) -> dict[str, Any]:
    """What :func:`restore` reads."""
    stages = [_dump_stage(stage) for stage in pipeline.stages]
    return {"format": FORMAT, "version": VERSION, "dim": pipeline._layout.given, "stages": stages}


def restore(text: str, custom: Iterable[type[Stage]] = ()) -> AttentionPipeline:
    """The pipeline that a text describes, with stages of these classes besides those known here.

    Raises
    ------
    FileFormatError
        Where it is something else, or of another version.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise FileFormatError("text", str(error), "JSON that a pipeline wrote") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FileFormatError("text", "something else", f"JSON of format {FORMAT!r}")
    if found.get("version") != VERSION:
        raise FileFormatError("version", found.get("version"), f"version {VERSION}")
    # A text must not say what is imported, so the classes are given by whoever reads it.
    classes = {_title(cls): cls for cls in custom}
    pipeline = AttentionPipeline(found.get("dim"))
    for entry in found.get("stages", ()):
        try:
            stage, name = _restore_stage(entry, classes), entry["name"]
        except (KeyError, TypeError) as error:
            reason = f"{entry!r} ({type(error).__name__}: {error})"
            raise FileFormatError("stages", reason, "a stage of a kind known here") from None
        pipeline.add(stage, name=name)
    return pipeline


def _dump_stage(stage: Stage) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": stage.kind, "name": stage.name}
    if isinstance(stage, Function):
        raise FileFormatError(
            "pipeline", f"the function of {stage.name}", "a class derived from Stage to be saved"
        )
    entry = getattr(stage, "entry", None)
    if entry is not None:
        described["entry"] = registry.spec(entry, "norm").full_name
    elif type(stage) is not _KINDS.get(stage.kind) and not isinstance(stage, AttentionStage):
        described["class"] = _title(type(stage))
    described["options"] = stage.options()
    return described


def _title(cls: type[Stage]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _restore_stage(entry: dict[str, Any], classes: dict[str, type[Stage]]) -> Stage:
    options = entry["options"]
    if entry["kind"] == AttentionStage.kind:
        made = registry.create(options["mechanism"], config=options["config"])
        return AttentionStage(made, source=options["source"])
    if "entry" in entry:
        return _norm(entry["entry"], options)
    if "class" in entry:
        if entry["class"] not in classes:
            known = ", ".join(classes) or "none"
            accepted = f"a class among custom= of from_json (now {known})"
            raise FileFormatError("stages", f"a stage of class {entry['class']}", accepted)
        return classes[entry["class"]](**options)
    return _KINDS[entry["kind"]](**options)
