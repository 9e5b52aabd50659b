"""The registry: mechanisms, and entries of any other kind, by name.

Importing this module imports neither pluggy nor importlib-metadata nor any plugin; the first
question asked of a registry does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polyattn_core.errors import ArgumentError

from .names import fold, natural_key, parse

if TYPE_CHECKING:
    from pydantic import BaseModel

    from polyattn_core.spec import ConformanceCase, EntrySpec, PresetSpec

    from .catalogue import Catalogue
    from .creation import Blueprint
    from .discovery import PluginStatus


class Registry:
    """Finds what is installed and what the running program registers. Thread-safe and lazy.

    Parameters
    ----------
    path
        Directories in which to look for installed distributions; `sys.path` by default.

    Notes
    -----
    Names are ``[family/]name[@preset]``; case and underscores are folded. Two environment
    variables are read when plugins are discovered: ``POLYATTN_DISABLE_PLUGINS`` (families,
    separated by commas, or ``all``) and ``POLYATTN_STRICT`` (any plugin that fails is an error).

    Examples
    --------
    >>> from polyattn_core.spec import MechanismSpec
    >>> registry = Registry(path=[])  # finds nothing but what is registered here
    >>> undo = registry.register(
    ...     MechanismSpec(
    ...         name="mine", family="local", summary="Attention of this notebook",
    ...         factory="__main__:Mine", config="__main__:MineConfig", reference="__main__:mine",
    ...     )
    ... )
    >>> registry.available()
    ['mine']
    >>> registry.spec("mine").full_name
    'local/mine'
    >>> undo()
    >>> registry.available()
    []
    """

    def __init__(self, path: Sequence[str] | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._opened: Catalogue | None = None
        self._blueprints: dict[str, Blueprint] = {}

    def create(
        self,
        name: str,
        /,
        *,
        preset: str | None = None,
        config: Mapping[str, Any] | BaseModel | None = None,
        **overrides: Any,
    ) -> Any:
        """Build a mechanism.

        Parameters
        ----------
        name
            ``[family/]name[@preset]``.
        preset
            A preset of the mechanism, if it is not part of the name.
        config
            Options as a mapping or as an instance of the mechanism's schema. They override those
            of the preset.
        **overrides
            Single options, which override both.

        Raises
        ------
        UnknownNameError, UnknownFamilyError, AmbiguousNameError
            If the name leads nowhere, or to several mechanisms.
        NotInstalledError
            If the mechanism is in a distribution that is not installed.
        PluginError
            If it is installed, but cannot be loaded.
        ConfigError
            If an option is unknown, missing or out of bounds.

        Examples
        --------
        >>> flash = create("flash", dim=1024, heads=16)  # doctest: +SKIP
        """
        start = time.perf_counter()
        from polyattn_core import diagnostics

        from . import creation

        if not isinstance(name, str):
            raise ArgumentError("name", name, "the name of a mechanism")
        if preset is not None:
            if "@" in name:
                raise ArgumentError("preset", preset, f"none, as {name!r} names a preset already")
            name = f"{name}@{preset}"
        # Kept across the look-up: a change of names meanwhile starts another dictionary.
        blueprints = self._blueprints
        blueprint = blueprints.get(name)
        if blueprint is None:
            blueprint = blueprints[name] = creation.draw(self._catalogue, name)
        settled = creation.settle(blueprint, config, overrides)
        mechanism = blueprint.factory(settled, spec=blueprint.spec)
        if diagnostics.wanted(diagnostics.MechanismCreated):
            diagnostics.publish(
                diagnostics.MechanismCreated(
                    name=blueprint.spec.full_name,
                    options=settled.model_dump(),
                    seconds=time.perf_counter() - start,
                )
            )
        return mechanism

    def available(
        self,
        pattern: str = "*",
        *,
        kind: str = "mechanism",
        family: str | None = None,
        tags: Iterable[str] = (),
        exclude: Iterable[str] = (),
        capability: str | tuple[str, object] | None = None,
    ) -> list[str]:
        """The shortest names that `create` accepts, in natural order.

        Imports manifests only, no schema and no kernel.

        Parameters
        ----------
        pattern
            Wildcards (``*``, ``?``, ``[…]``) to match: full names if there is a slash in it,
            short names otherwise.
        kind
            Kind of entry: "mechanism", "preset", "metric", "loss" …
        family
            Restrict to a family.
        tags
            Tags, or one tag, all of which an entry must carry.
        exclude
            Wildcards, or one, of which an entry must match none.
        capability
            Restrict to mechanisms with a capability: its name, or its name and value as in
            ``("masks", "window")``.
        """
        from fnmatch import fnmatchcase

        def matches(entry: EntrySpec, wildcard: str) -> bool:
            return fnmatchcase(entry.full_name if "/" in wildcard else entry.name, fold(wildcard))

        tags, exclude = _several(tags), _several(exclude)
        catalogue = self._catalogue
        entries = catalogue.entries(kind, None if family is None else fold(family))
        if capability is not None:
            asked = (capability, True) if isinstance(capability, str) else capability
            entries = [entry for entry in entries if _has(entry, *asked)]
        names = [
            catalogue.shortest(entry)
            for entry in entries
            if matches(entry, pattern)
            and set(tags) <= set(entry.tags)
            and not any(matches(entry, wildcard) for wildcard in exclude)
        ]
        return sorted(names, key=natural_key)

    def having(self, capability: str, value: object = True) -> list[str]:
        """Names of mechanisms that declare a capability, or have `value` among its values."""
        return self.available(capability=(capability, value))

    def spec(self, name: str, kind: str = "mechanism") -> EntrySpec:
        """The specification behind a name: what its plugin declares, nothing imported."""
        return self._catalogue.find(kind, parse(name))

    def resolve(self, name: str, kind: str) -> Any:
        """Import the object behind a name: the factory of its specification."""
        from .creation import import_reference

        entry = self.spec(name, kind)
        return import_reference(self._catalogue, entry, entry.factory)

    def config_schema(self, name: str) -> dict[str, Any]:
        """The options of a mechanism as JSON Schema."""
        from .creation import find_mechanism, import_reference

        spec = find_mechanism(self._catalogue, name)
        model: type[BaseModel] = import_reference(self._catalogue, spec, spec.config)
        return model.model_json_schema()

    def presets(self, mechanism: str | None = None) -> list[PresetSpec]:
        """All presets, or those of a mechanism."""
        from .creation import find_mechanism, presets_of

        catalogue = self._catalogue
        spec = None if mechanism is None else find_mechanism(catalogue, mechanism)
        return presets_of(catalogue, spec)

    def preset(self, name: str) -> PresetSpec:
        """The preset called `name`."""
        from polyattn_core.spec import PresetSpec

        found = self.spec(name, "preset")
        assert isinstance(found, PresetSpec)
        return found

    def conformance_cases(self, mechanism: str) -> list[ConformanceCase]:
        """How the plugin of a mechanism wants it set up in conformance tests.

        Empty where the plugin has nothing to say about it.
        """
        from .creation import find_mechanism

        catalogue = self._catalogue
        spec = find_mechanism(catalogue, mechanism)
        plugin = catalogue.plugin_of(spec)
        return [
            case
            for case in (plugin.cases() if plugin else ())
            if catalogue.means("mechanism", case.mechanism, spec, spec.family)
        ]

    def plugins(self) -> list[PluginStatus]:
        """Every plugin that is installed: what loaded, what failed and why, and how long it took.

        Works in strict mode as well.
        """
        return self._catalogue.plugins()

    def register(self, spec: EntrySpec) -> Callable[[], None]:
        """Register an entry of the running program; returns an undo.

        Raises
        ------
        DuplicateNameError
            If the full name is taken.
        ReservedNameError
            If the family is a first-party one.
        """
        from polyattn_core.spec import EntrySpec

        if not isinstance(spec, EntrySpec):
            raise ArgumentError("spec", spec, "a MechanismSpec, or another EntrySpec")
        return self._with_forgetting(self._catalogue.register(spec))

    def prefer(self, short: str, full: str, kind: str = "mechanism") -> Callable[[], None]:
        """Choose which of several plugins a short name means; returns an undo.

        Raises
        ------
        ReservedNameError
            If it is a first-party name, whose meaning nobody can change.
        ArgumentError
            If `full` does not go by that short name.
        """
        return self._with_forgetting(self._catalogue.prefer(kind, fold(short), parse(full, "full")))

    def refresh(self) -> None:
        """Discover plugins again, so that newly installed ones appear.

        What the running program registered and preferred stays. A manifest that was imported
        before is not imported again: for an upgraded plugin, start a new process.
        """
        self._catalogue.refresh()
        self._blueprints = {}

    @property
    def _catalogue(self) -> Catalogue:
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    from .catalogue import Catalogue

                    self._opened = Catalogue(self._path)
        return self._opened

    def _with_forgetting(self, undo: Callable[[], None]) -> Callable[[], None]:
        """Forget what names led to, now and when a change is undone."""
        self._blueprints = {}

        def undo_and_forget() -> None:
            undo()
            self._blueprints = {}

        return undo_and_forget


def _several(values: Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


def _has(entry: EntrySpec, capability: str, value: object) -> bool:
    from dataclasses import fields

    from polyattn_core.spec import Capabilities, MechanismSpec

    names = [field.name for field in fields(Capabilities)]
    if capability not in names:
        raise ArgumentError("capability", capability, f"one of {', '.join(names)}")
    if not isinstance(entry, MechanismSpec):
        return False
    declared = getattr(entry.capabilities, capability)
    if not isinstance(declared, tuple):
        return bool(declared == value)
    if value is True:
        return bool(declared)
    return any(value in (item, getattr(item, "name", item)) for item in declared)
