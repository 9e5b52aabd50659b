"""What a plugin says about a mechanism: its manifest, its spec, its schema, its names."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from polyattn_core.config import build_config
from polyattn_core.errors import ConfigError
from polyattn_core.spec import STATISTICS, MechanismSpec, resolve
from polyattn_registry.entry_points import candidates

from ..comparison import NotApplicable, assert_refused, require
from ..subject import Subject
from . import Check

HEAVY = ("numpy", "numba", "pydantic", "scipy", "torch")
_PAPER = re.compile(
    r"\d{4}\.\d{4,5}(v\d+)?"  # arXiv since 2007
    r"|[a-z-]+(\.[A-Z]{2})?/\d{7}"  # arXiv before
    r"|10\.\d{4,9}/\S+"  # DOI
)
_NUMERIC = {"integer", "number"}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def checks(subject: Subject) -> Iterator[Check]:
    """All of these, for every mechanism."""
    yield check_manifest_is_light
    yield check_spec_is_complete
    yield check_schema_is_described
    yield check_schema_is_strict
    yield check_configuration_survives_json
    yield check_created_by_its_names


def check_manifest_is_light(subject: Subject) -> None:
    """Importing the manifest imports nothing that takes long."""
    modules = _manifests(subject.spec.family, tuple(sys.path))
    if not modules:
        raise NotApplicable("registered by the running program: there is no manifest")
    for module in modules:
        heavy = _imported_with(module)
        require(not heavy, f"importing the manifest {module} imports {', '.join(heavy)}")


@functools.cache
def _manifests(family: str, path: tuple[str, ...]) -> tuple[str, ...]:
    entries = [found.entry for found in candidates(path) if found.family == family]
    return tuple(entry.module for entry in entries if entry is not None)


@functools.cache
def _imported_with(module: str) -> tuple[str, ...]:
    program = (
        f"import importlib, sys; importlib.import_module({module!r});"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    require(done.returncode == 0, f"importing the manifest {module} failed: {done.stderr}")
    return tuple(done.stdout.split())


def check_spec_is_complete(subject: Subject) -> None:
    """Users find out what it computes, from where that comes and what it costs."""
    spec = subject.spec
    require(spec.summary.strip(), "the spec has no summary")
    require("\n" not in spec.summary, "the summary is longer than a line")
    require(spec.formula.strip(), "the spec has no formula")
    for paper in spec.papers:
        require(_PAPER.fullmatch(paper), f"papers: {paper!r} is neither an arXiv id nor a DOI")
    for what, cost in (("time", spec.capabilities.time), ("memory", spec.capabilities.memory)):
        require(cost.startswith("O("), f"capabilities.{what}: {cost!r} is not of the form O(…)")
    require(subject.dtypes, "capabilities.dtypes is empty")
    unknown = set(spec.capabilities.statistics) - set(STATISTICS)
    require(not unknown, f"capabilities.statistics: {unknown} are not among {STATISTICS}")
    require(callable(resolve(spec.reference)), f"the reference {spec.reference} is no function")
    if spec.sharpness:
        fields = resolve(spec.config).model_fields
        require(spec.sharpness in fields, f"sharpness: there is no option {spec.sharpness!r}")
    for name in spec.leading:
        fields = resolve(spec.config).model_fields
        require(name in fields, f"leading: there is no option {name!r}")


def check_schema_is_described(subject: Subject) -> None:
    """Each option has a description, and each number a bound."""
    for path, definition in _options(resolve(subject.spec.config).model_json_schema()):
        if "const" in definition:
            continue
        require(definition.get("description"), f"the option {path} has no description")
        for variant in definition.get("anyOf", [definition]):
            if variant.get("type") in _NUMERIC and "enum" not in variant:
                bounded = any(bound in variant for bound in _BOUNDS)
                require(bounded, f"the option {path} is a number without bounds")


def _options(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Options of a schema and of the schemas that it uses."""
    for name, definition in schema.get("properties", {}).items():
        yield name, definition
    for title, inner in schema.get("$defs", {}).items():
        for name, definition in inner.get("properties", {}).items():
            yield f"{title}.{name}", definition


def check_schema_is_strict(subject: Subject) -> None:
    """Its values cannot be changed, and unknown options are refused."""
    schema = resolve(subject.spec.config)
    config = subject.create().config
    require(isinstance(config, schema), f"the configuration is a {type(config).__name__}")
    require(config.model_config.get("frozen"), f"{schema.__name__} is not frozen")
    for title, inner in schema.model_json_schema().get("$defs", {}).items():
        if inner.get("type") == "object":
            require(inner.get("additionalProperties") is False, f"{title} takes unknown options")
    options = {**config.model_dump(exclude_unset=True), "no_such_option": 1}
    assert_refused(
        lambda: build_config(schema, options, mechanism=subject.name),
        "an unknown option",
        ConfigError,
        ("no_such_option",),
    )


def check_configuration_survives_json(subject: Subject) -> None:
    """Writing it as JSON and reading it back loses nothing."""
    config = subject.create().config
    again = type(config).model_validate_json(config.model_dump_json())
    require(again == config, f"JSON changes the configuration: {config!r} became {again!r}")


def check_created_by_its_names(subject: Subject) -> None:
    """Created by its short name, its full name and its aliases, however they are written."""
    spec = subject.spec
    (shortest,) = subject.registry.available(spec.full_name)
    names = [spec.full_name, shortest, shortest.upper(), shortest.replace("-", "_")]
    names += [f"{spec.family}/{alias}" for alias in spec.aliases]
    config = subject.create().config
    for name in names:
        mechanism = subject.registry.create(name, config=config)
        require(mechanism.name == spec.full_name, f"{name!r} creates {mechanism.name}")
        require(mechanism.config == config, f"{name!r} loses options")
        require(isinstance(mechanism.spec, MechanismSpec), f"{name!r} has no spec")
