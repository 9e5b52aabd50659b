"""From an entry to a mechanism: its schema and class imported, its options settled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from polyattn_core.errors import ArgumentError, PluginError
from polyattn_core.spec import EntrySpec, MechanismSpec, PresetSpec, resolve

from .catalogue import Catalogue
from .names import natural_key, parse

if TYPE_CHECKING:
    from pydantic import BaseModel

_NO_OPTIONS: Mapping[str, Any] = {}


class Blueprint(NamedTuple):
    """What a name leads to, with its references resolved: all that a second `create` needs."""

    spec: MechanismSpec
    schema: type[BaseModel]
    factory: Any
    options: Mapping[str, Any]
    """Those of the preset that is part of the name."""


def draw(catalogue: Catalogue, text: str) -> Blueprint:
    """Find what a name leads to and import it."""
    name = parse(text)
    spec = find_mechanism(catalogue, text)
    preset = find_preset(catalogue, name.preset, spec).options if name.preset else _NO_OPTIONS
    schema = import_reference(catalogue, spec, spec.config)
    return Blueprint(spec, schema, import_reference(catalogue, spec, spec.factory), preset)


def find_mechanism(catalogue: Catalogue, text: str) -> MechanismSpec:
    """The specification of a mechanism."""
    spec = catalogue.find("mechanism", parse(text))
    assert isinstance(spec, MechanismSpec)  # held by check_entry, at registration
    return spec


def find_preset(catalogue: Catalogue, text: str, spec: MechanismSpec) -> PresetSpec:
    """The preset of a mechanism that goes by a name.

    Only presets of this mechanism are looked at, so that two families may both have a `base`;
    among them a first-party one comes first, as for any short name.
    """
    name = parse(text, "preset")
    fitting = [
        preset
        for preset in presets_of(catalogue, spec)
        if name.short in (preset.name, *preset.aliases) and name.family in ("", preset.family)
    ]
    if not fitting:
        accepted = presets_of(catalogue, spec)
        names = ", ".join(preset.name for preset in accepted) or "it has none"
        # Raises where there is no such preset at all, saying what is near.
        other = catalogue.find("preset", name)
        assert isinstance(other, PresetSpec)
        raise ArgumentError(
            "preset",
            f"{text}, which is for {other.mechanism}",
            f"a preset of {spec.full_name} ({names})",
        )
    chosen = catalogue.choose("preset", name.short, fitting)
    assert isinstance(chosen, PresetSpec)
    return chosen


def presets_of(catalogue: Catalogue, spec: MechanismSpec | None) -> list[PresetSpec]:
    """All presets, or those of one mechanism, in natural order."""
    presets = [p for p in catalogue.entries("preset") if isinstance(p, PresetSpec)]
    if spec is not None:
        presets = [
            preset
            for preset in presets
            if catalogue.means("mechanism", preset.mechanism, spec, preset.family)
        ]
    return sorted(presets, key=lambda preset: natural_key(preset.full_name))


def import_reference(catalogue: Catalogue, entry: EntrySpec, reference: str) -> Any:
    """Import what a reference of an entry names.

    Raises
    ------
    PluginError
        If that fails for an entry of a plugin.
    ArgumentError
        If it fails for one that the running program registered.
    """
    try:
        return resolve(reference)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        plugin = catalogue.plugin_of(entry)
        if plugin is None:
            accepted = f"a reference that can be imported ({reason})"
            raise ArgumentError(entry.full_name, reference, accepted) from error
        reason = f"{entry.full_name} refers to {reference!r}: {reason}"
        raise PluginError(plugin.candidate.distribution, reason) from error


def settle(
    blueprint: Blueprint,
    config: Mapping[str, Any] | BaseModel | None,
    overrides: Mapping[str, Any],
) -> Any:
    """The checked configuration: a preset's options, overridden by `config`, by `overrides`."""
    from polyattn_core.config import build_config

    schema, preset = blueprint.schema, blueprint.options
    if config is None:
        options = {**preset, **overrides}
    elif isinstance(config, Mapping):
        for option in config:
            if not isinstance(option, str):
                raise ArgumentError("config", option, "names of options, as strings")
        options = {**preset, **config, **overrides}
    elif isinstance(config, schema):
        if not preset and not overrides:
            return config
        # Only what was set on purpose may override a preset. A subclass keeps its own rules.
        schema = type(config)
        chosen = {option: getattr(config, option) for option in config.model_fields_set}
        options = {**preset, **chosen, **overrides}
    else:
        raise ArgumentError(
            "config", config, f"a mapping of options, or an instance of {schema.__name__}"
        )
    return build_config(schema, options, mechanism=blueprint.spec.full_name)
