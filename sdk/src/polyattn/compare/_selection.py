"""Which mechanisms take part, with which options, and why others do not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

from polyattn_core.errors import ArgumentError

from ._smoothers import FromRegistry
from .results import LeftOut
from .settings import Settings

if TYPE_CHECKING:
    from polyattn_core.spec import MechanismSpec

UNTRAINED = "needs-training"
"""Tag of mechanisms that mean nothing before their parameters are learned."""

_ITEM = re.compile(r"(?P<name>[^\[\]]+?)\s*(\[(?P<options>[^\]]*=.*)\])?", re.DOTALL)
_OPENING, _CLOSING = "[{(", "]})"
_OWN = ("dim", "heads", "kv_heads", "threads")
"""Options that the comparison sets itself."""


def split_names(text: str | Iterable[str]) -> tuple[str, ...]:
    """Names separated by commas, but not by those inside brackets."""
    parts: list[str] = []
    for item in (text,) if isinstance(text, str) else text:
        if not isinstance(item, str):
            raise ArgumentError("mechanisms", item, "names, as strings")
        parts.extend(_split(item))
    return tuple(part for part in parts if part)


def parse_options(pairs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """``name.option=value`` to options by name."""
    options: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        target, equals, value = pair.partition("=")
        name, dot, option = target.rpartition(".")
        if not (equals and dot and name and option):
            raise ArgumentError("--set", pair, "MECHANISM.OPTION=VALUE, as in top-k.k=16")
        options.setdefault(name.strip(), {})[_option_name(option)] = _value(value)
    return options


def select(settings: Settings, dim: int) -> tuple[list[FromRegistry], tuple[LeftOut, ...]]:
    """Candidates in the order asked for, and mechanisms left out with reasons.

    Raises
    ------
    ArgumentError
        If nothing is left to compare, or options are given to what does not take part.
    RegistryError
        If a name leads nowhere.
    """
    import polyattn_registry as registry

    chosen: dict[str, FromRegistry] = {}
    left_out: dict[str, LeftOut] = {}
    used: set[str] = set()
    for item in settings.mechanisms or ("*",):
        name, own = _parse(item)
        wild = any(sign in name for sign in "*?")
        names = (
            registry.available(name, family=settings.family, exclude=settings.exclude)
            if wild
            else [name]
        )
        if wild and not names:
            within = f" of the family {settings.family}" if settings.family else ""
            raise ArgumentError("mechanisms", name, f"a pattern that a mechanism{within} matches")
        for found in names:
            spec = cast("MechanismSpec", registry.spec(found))
            short = found.partition("@")[0]
            options = {**_options_for(short, spec, settings.options, used), **own}
            reason = _unsuitable(spec) or (_meaningless(spec) if wild else "")
            if reason:
                left_out[found] = LeftOut(found, reason)
                continue
            label = _label(found, options)
            caveat = _meaningless(spec)
            chosen[label] = FromRegistry(
                label, found, spec, options, dim, settings.threads, (caveat,) if caveat else ()
            )
    for pattern in settings.options:
        if pattern not in used:
            accepted = f"one of those that take part: {', '.join(chosen)}"
            raise ArgumentError("options", pattern, accepted)
    if not chosen:
        reasons = "; ".join(f"{item.name} {item.reason}" for item in left_out.values())
        raise ArgumentError(
            "mechanisms", ", ".join(settings.mechanisms) or "all that are installed",
            f"at least one that can act as a smoother ({reasons or 'none is installed'})",
        )  # fmt: skip
    # A pattern may leave out what another item asks for by name.
    taking_part = {candidate.name for candidate in chosen.values()}
    rest = [x for x in left_out.values() if registry.spec(x.name).full_name not in taking_part]
    return list(chosen.values()), tuple(rest)


def _unsuitable(spec: MechanismSpec) -> str:
    """Why a mechanism cannot act as a smoother at all."""
    capabilities = spec.capabilities
    required = [side.name for side in capabilities.side_inputs if side.required]
    if required:
        return f"needs {', '.join(required)}, which plain vectors do not have"
    if not capabilities.cross:
        return "needs as many queries as keys"
    return ""


def _meaningless(spec: MechanismSpec) -> str:
    """Why a mechanism takes part only where it is asked for by name."""
    if spec.capabilities.positional:
        return "looks at positions, and training samples have no order"
    if UNTRAINED in spec.tags:
        return "has parameters that would have to be learned first"
    return ""


def _options_for(
    name: str, spec: MechanismSpec, given: Mapping[str, Mapping[str, Any]], used: set[str]
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pattern, some in given.items():
        folded = pattern.lower().replace("_", "-")
        if any(fnmatchcase(x, folded) for x in (name, spec.name, spec.full_name, *spec.aliases)):
            used.add(pattern)
            options.update({_option_name(option): value for option, value in some.items()})
    return options


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, sign in enumerate(text):
        depth += (sign in _OPENING) - (sign in _CLOSING)
        if sign == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    if depth:
        raise ArgumentError("mechanisms", text, "as many closing brackets as opening ones")
    return [*parts, text[start:].strip()]


def _parse(item: str) -> tuple[str, dict[str, Any]]:
    """``name[option=value, …]`` to a name and its options."""
    match = _ITEM.fullmatch(item)
    if match is None:
        raise ArgumentError("mechanisms", item, "NAME, or NAME[OPTION=VALUE, …] as in top-k[k=16]")
    options: dict[str, Any] = {}
    for pair in _split(match["options"] or ""):
        option, equals, value = pair.partition("=")
        if pair and not equals:
            raise ArgumentError("mechanisms", item, "OPTION=VALUE between the brackets")
        if pair:
            options[_option_name(option)] = _value(value)
    return match["name"].strip(), options


def _option_name(option: str) -> str:
    name = option.strip().replace("-", "_")
    if name in _OWN:
        accepted = "other options: compare sets the width, uses one head, and has --threads"
        raise ArgumentError("option", name, accepted)
    return name


def _value(text: str) -> Any:
    """JSON where it is JSON, text otherwise."""
    text = text.strip()
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _label(name: str, options: Mapping[str, Any]) -> str:
    if not options:
        return name
    return f"{name}[{', '.join(f'{option}={_text(value)}' for option, value in options.items())}]"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
