"""``polyattn info`` and ``polyattn schema``: one mechanism in detail."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

import polyattn_registry as registry
from polyattn_core.spec import MASK_KINDS, MechanismSpec, SideInput, resolve

from ._arguments import Json, Name
from ._output import explained, fields, plain, print_json, show, to_people
from ._schema import Option, options

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Lines = tuple[str, ...]

_ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_CAPABILITIES = {
    "causal": "causal",
    "bias": "additive bias",
    "gradient": "gradients",
    "partial": "mergeable partial results",
    "grouped": "grouped heads",
    "cross": "cross attention",
    "dropout": "dropout",
}


def info(name: Name, as_json: Json = False) -> None:
    """Explain one mechanism.

    Its formula, its options with their defaults and bounds, what it can do, what it costs, and the
    papers behind it.
    """
    spec = _spec(name)
    schema = registry.config_schema(name)
    presets = registry.presets(spec.full_name)
    package = _package(spec.family)
    if as_json:
        print_json(
            {
                **spec.to_dict(),
                "full_name": spec.full_name,
                "package": package,
                "links": [link(paper) for paper in spec.papers],
                "presets": [preset.to_dict() for preset in presets],
                "schema": schema,
            }
        )
        return
    show(_title(spec), plain(spec.summary), "")
    if spec.formula:
        show(Text(f"    {spec.formula}", style="bold"), "")
    show(fields(_facts(spec, package)), *_options_tables(spec, schema))
    if spec.capabilities.side_inputs:
        show("", Text("Side inputs, passed by keyword", style="bold underline"), _side_inputs(spec))
    if presets:
        show("", Text("Presets", style="bold underline"))
        show(explained((f"@{preset.name}", (preset.summary, preset.source)) for preset in presets))
    show("", fields(_ways_to_use(spec)))


def schema(name: Name, as_json: Json = False) -> None:
    """Print the options of a mechanism as JSON Schema.

    With --json it is left as it is in a terminal too, without colours.
    """
    document = registry.config_schema(name)
    if as_json or not sys.stdout.isatty():
        print_json(document)
    else:
        to_people().print_json(json.dumps(document))


def link(paper: str) -> str:
    """Where to read a paper.

    >>> link("1706.03762")
    'https://arxiv.org/abs/1706.03762'
    """
    return f"https://arxiv.org/abs/{paper}" if _ARXIV.fullmatch(paper) else paper


def _spec(name: str) -> MechanismSpec:
    spec = registry.spec(name)
    assert isinstance(spec, MechanismSpec)  # the kind of entry that was asked for
    return spec


def _package(family: str) -> str:
    for status in registry.plugins():
        if status.family == family and status.state != "disabled":
            return f"{status.distribution} {status.version}".strip()
    return "the running program"


def _title(spec: MechanismSpec) -> Text:
    title = Text(spec.full_name, style="bold cyan")
    if spec.aliases:
        title.append(f"   also called {', '.join(spec.aliases)}", style="not bold default")
    return title


def _facts(spec: MechanismSpec, package: str) -> Iterable[tuple[str, Any]]:
    able = spec.capabilities
    yield "Package", package
    yield "Time, memory", f"{able.time}, {able.memory}"
    yield "Result", "exact" if able.exact else "an approximation"
    yield "Supports", _list(text for key, text in _CAPABILITIES.items() if getattr(able, key))
    yield "Lacks", _list(text for key, text in _CAPABILITIES.items() if not getattr(able, key))
    masks = "all kinds" if set(able.masks) == set(MASK_KINDS) else _list(able.masks)
    yield "Masks", masks
    yield "Statistics", _list(able.statistics)
    yield "Data types", _list(able.dtypes)
    yield "Positions", "part of the rule itself" if able.positional else "not part of the rule"
    yield "Parameters", "learned" if able.parametric else "none"
    if spec.sharpness:
        yield "Sharpness", f"set by {spec.sharpness}, which polyattn compare tunes"
    if spec.tags:
        yield "Tags", _list(spec.tags)
    if spec.papers:
        papers = Text("\n").join(
            Text(link(paper), style=f"link {link(paper)}" if "://" in link(paper) else "")
            for paper in spec.papers
        )
        yield "Papers", papers


def _options_tables(spec: MechanismSpec, schema: Mapping[str, Any]) -> Iterable[RenderableType]:
    """Options, those that only this mechanism has first."""
    found = options(schema)
    own = _own_options(spec)
    for title, wanted in (("Options of its own", True), ("Options that others have too", False)):
        chosen = [option for option in found if (option.name in own) is wanted]
        if chosen:
            yield ""
            yield Text(title if own else "Options", style="bold underline")
            yield explained(row for option in chosen for row in _rows(option))


def _own_options(spec: MechanismSpec) -> set[str]:
    """Names of options that the schema does not inherit."""
    model = resolve(spec.config)
    inherited = {name for base in model.__bases__ for name in getattr(base, "model_fields", ())}
    return set(model.model_fields) - inherited


def _rows(option: Option, parent: str = "", only: str = "") -> Iterable[tuple[str, Lines]]:
    default = option.default if option.default == "required" else f"default {option.default}"
    yield (
        parent + option.name,
        (f"{option.accepts}; {default}", f"{only}{option.description}"),
    )
    for choice, nested in option.nested.items():
        for inner in nested:
            limit = f"With {option.name}={choice}: " if option.choice else ""
            yield from _rows(inner, f"{option.name}.", limit)


def _side_inputs(spec: MechanismSpec) -> Table:
    def lines(side: SideInput) -> tuple[str, str]:
        return f"{side.shape}; {'required' if side.required else 'optional'}", side.description

    return explained((side.name, lines(side)) for side in spec.capabilities.side_inputs)


def _ways_to_use(spec: MechanismSpec) -> Iterable[tuple[str, str]]:
    names = registry.available(spec.full_name)
    name = names[0] if names else spec.full_name
    yield "In Python", f'pa.create("{name}", dim=64, heads=4)'
    yield "In a shell", f"polyattn run {name} arrays.npz --heads 4 -o out.npy"


def _list(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"
