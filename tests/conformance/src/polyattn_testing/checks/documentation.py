"""What users read and find: sources, examples, the readme, presets, names of the package."""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np

from polyattn_core.arrays import named_dtype
from polyattn_core.mechanism import Mechanism
from polyattn_core.spec import EntrySpec, MechanismSpec, PresetSpec, resolve
from polyattn_registry.entry_points import Candidate, candidates

from ..comparison import NotApplicable, require
from ..subject import Array, Subject
from . import Check

_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_HOOKS = ("polyattn_mechanisms", "polyattn_presets", "polyattn_metrics", "polyattn_entries")
_TOKENS = 40
_WIDEST = 1024
"""Presets up to this width are run: learned arrays of wider ones take seconds to initialise."""


def checks(subject: Subject) -> Iterator[Check]:
    """All of these; those of presets where there are any."""
    yield check_manifest_names_what_exists
    yield check_public_names
    yield check_papers_are_in_the_docstring
    yield check_examples_of_the_docstring
    yield check_readme_names_it
    yield check_examples_of_the_readme
    if subject.registry.presets(subject.name):
        yield check_presets


# ---- the plugin -------------------------------------------------------------------------------


def _installed(subject: Subject) -> Candidate:
    found = _candidate(subject.spec.family, tuple(sys.path))
    if found is None:
        raise NotApplicable("registered by the running program: nothing is installed")
    return found


@functools.cache
def _candidate(family: str, path: tuple[str, ...]) -> Candidate | None:
    return next((found for found in candidates(path) if found.family == family), None)


def check_manifest_names_what_exists(subject: Subject) -> None:
    """Whatever kind of thing the manifest offers: what it refers to can be imported."""
    for problem in _missing(_installed(subject)):
        raise AssertionError(problem)


@functools.cache
def _missing(candidate: Candidate) -> tuple[str, ...]:
    manifest = candidate.load()
    entries: list[EntrySpec] = []
    for hook in _HOOKS:
        entries += getattr(manifest, hook, tuple)()
    problems = []
    for entry in entries:
        references = [entry.factory]
        if isinstance(entry, MechanismSpec):
            references += [entry.config, entry.reference]
        for reference in references:
            try:
                resolve(reference)
            except Exception as error:
                problems.append(f"the {entry.kind} {entry.full_name}: {reference}: {error}")
    return tuple(problems)


def check_public_names(subject: Subject) -> None:
    """What the package says it has (`__all__`) is there; other names are an `AttributeError`."""
    package = importlib.import_module(subject.spec.factory.partition(":")[0].partition(".")[0])
    for name in getattr(package, "__all__", ()):
        require(hasattr(package, name), f"{package.__name__} has no {name}, which is in __all__")
        found = getattr(package, name)
        require(inspect.getdoc(found), f"{package.__name__}.{name} has no docstring")
    try:
        package.no_such_name  # noqa: B018
    except AttributeError as error:
        require("no_such_name" in str(error), f"the error does not say what is missing: {error}")
    else:
        raise AssertionError(f"{package.__name__} has any name, no_such_name as well")


# ---- docstrings and the readme ----------------------------------------------------------------


def check_papers_are_in_the_docstring(subject: Subject) -> None:
    """`help` says where the mechanism comes from."""
    text = _docstring(subject)
    for paper in subject.spec.papers:
        require(paper in text, f"the docstring of {subject.spec.factory} does not name {paper}")


def _docstring(subject: Subject) -> str:
    return inspect.getdoc(resolve(subject.spec.factory)) or ""


def check_examples_of_the_docstring(subject: Subject) -> None:
    """Examples in the mechanism's docstring print what they say."""
    if ">>>" not in _docstring(subject):
        raise NotApplicable(f"the docstring of {subject.spec.factory} has no examples")
    report = _report_of_docstring(subject.spec.factory)
    require(not report, f"an example of {subject.spec.factory} fails:\n{report}")


@functools.cache
def _report_of_docstring(reference: str) -> str:
    module, _, name = reference.partition(":")
    names = dict(vars(importlib.import_module(module)))
    finder = doctest.DocTestFinder(recurse=False)
    return _run(finder.find(resolve(reference), name, globs=names))


def check_readme_names_it(subject: Subject) -> None:
    """The readme of the distribution speaks of the mechanism."""
    candidate = _installed(subject)
    text = _readme(candidate.distribution)
    require(text.strip(), f"{candidate.distribution} has no readme")
    name = subject.spec.name
    require(f"`{name}`" in text, f"the readme of {candidate.distribution} does not name `{name}`")


def check_examples_of_the_readme(subject: Subject) -> None:
    """Examples in the readme print what they say."""
    name = _installed(subject).distribution
    if ">>>" not in _readme(name):
        raise NotApplicable(f"the readme of {name} has no examples with >>>")
    report = _report_of_readme(name)
    require(not report, f"an example in the readme of {name} fails:\n{report}")


def _readme(name: str) -> str:
    """The readme as it is now where the distribution is editable, otherwise as installed."""
    found = distribution(name)
    folder = _folder(found)
    if folder is None:
        metadata = found.metadata
        # Typed without `get`.
        return metadata["Description"] if "Description" in metadata else ""  # noqa: SIM401
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    readme = project.get("readme", "")
    if isinstance(readme, dict):
        if "text" in readme:
            return str(readme["text"])
        readme = readme["file"]
    return (folder / readme).read_text("utf-8") if readme else ""


def _folder(found: Distribution) -> Path | None:
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlparse(origin["url"]).path))


@functools.cache
def _report_of_readme(name: str) -> str:
    # Everything else becomes empty lines, so that a failure names the line.
    parts = re.split(r"^```(?:pycon|python)?$", _readme(name), flags=re.MULTILINE)
    source = "".join(part if ">>> " in part else "\n" * part.count("\n") for part in parts)
    return _run([doctest.DocTestParser().get_doctest(source, {}, f"readme of {name}", None, 0)])


def _run(tests: Iterable[doctest.DocTest]) -> str:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=_FLAGS)
    for test in tests:
        runner.run(test, out=report.append)
    return "".join(report)


# ---- presets ----------------------------------------------------------------------------------


def check_presets(subject: Subject) -> None:
    """Each preset says what it is and from where, can be created, and computes."""
    for preset in subject.registry.presets(subject.name):
        what = f"the preset {preset.full_name}"
        require(preset.summary.strip(), f"{what} has no summary")
        require(preset.source.strip(), f"{what} does not say where its numbers come from")
        mechanism = subject.registry.create(subject.name, **preset.options)
        if mechanism.config.dim <= _WIDEST:
            output = _attend(subject, preset, mechanism)
            require(np.isfinite(output).all(), f"{what}: the output is not finite")


def _attend(subject: Subject, preset: PresetSpec, mechanism: Mechanism) -> Array:
    config, rng = mechanism.config, np.random.default_rng(0)
    dtype = named_dtype(subject.precise)
    key_heads = getattr(mechanism, "_key_heads", config.key_heads)
    query, key, value = (
        rng.standard_normal((heads, _TOKENS, config.head_dim)).astype(dtype)
        for heads in (config.heads, key_heads, key_heads)
    )
    side = {}
    if subject.case.inputs:
        made = resolve(subject.case.inputs)(rng, (), config.heads, _TOKENS, _TOKENS, config.dim)
        needed = {each.name for each in mechanism.capabilities.side_inputs if each.required}
        side = {name: array for name, array in made.items() if name in needed}
    return mechanism.attend(query, key, value, **side)
