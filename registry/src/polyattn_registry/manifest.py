"""Reading one manifest: its hooks are checked by pluggy, what they return is checked here."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import pluggy

from polyattn_core import hooks
from polyattn_core.errors import ArgumentError, RegistryError
from polyattn_core.spec import (
    Capabilities,
    ConformanceCase,
    EntrySpec,
    MechanismSpec,
    MetricSpec,
    PluginInfo,
    PresetSpec,
)

from .names import closest, normalise_distribution, parse

_Offered = TypeVar("_Offered")

_PREFIX = f"{hooks.PROJECT}_"
_INFO = "polyattn_plugin_info"
CASES = "polyattn_conformance_cases"

_OWN_HOOK: dict[str, tuple[str, type[EntrySpec]]] = {
    "mechanism": ("polyattn_mechanisms", MechanismSpec),
    "preset": ("polyattn_presets", PresetSpec),
    "metric": ("polyattn_metrics", MetricSpec),
}
"""Kinds that have a hook, and a class, of their own; all others share ``polyattn_entries``."""


class ManifestError(RegistryError):
    """A manifest does not keep to the plugin interface."""


class _SingleManager(pluggy.PluginManager):
    """Validates and calls the hooks of one plugin, so that no plugin can disturb another."""

    def __init__(self) -> None:
        super().__init__(hooks.PROJECT)
        self.add_hookspecs(hooks)

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Also take functions that were not marked but whose name says that they are hooks."""
        options = super().parse_hookimpl_opts(plugin, name)
        if options is not None or not name.startswith(_PREFIX):
            return options
        # An unmarked `polyattn_mechanism` would otherwise go unnoticed for ever.
        return {} if inspect.isfunction(inspect.getattr_static(plugin, name, None)) else None


class Manifest:
    """A manifest that keeps to the plugin interface.

    Raises
    ------
    ManifestError
        If it does not say who it is, was written for another version of the interface, has a
        hook that is unknown or takes unknown arguments, or claims to be another plugin.
    """

    def __init__(self, plugin: object, family: str, distribution: str) -> None:
        self.family = family
        self._manager = _SingleManager()
        self.info = self._introduce(plugin)
        self._check_identity(distribution)
        self._register(plugin)

    def entries(self, hook: str) -> Sequence[EntrySpec]:
        """Call a hook that offers entries, and check each of them."""
        required = next((cls for own, cls in _OWN_HOOK.values() if own == hook), EntrySpec)
        entries = self._call(hook, required)
        for entry in entries:
            check_entry(entry)
            if hook_of(entry.kind) != hook:
                raise ManifestError(
                    f"{hook} offers {entry.full_name!r} of kind {entry.kind!r}, "
                    f"which belongs into {hook_of(entry.kind)}"
                )
            if entry.family != self.family:
                raise ManifestError(
                    f"{hook} offers {entry.full_name!r}, outside its own family {self.family!r}"
                )
        return entries

    def cases(self) -> Sequence[ConformanceCase]:
        """Call the hook that offers conformance cases."""
        return self._call(CASES, ConformanceCase)

    def _introduce(self, plugin: object) -> PluginInfo:
        """Ask the plugin who it is, before looking at hooks that its version may not share."""
        hook = inspect.getattr_static(plugin, _INFO, None)
        if hook is None:
            raise ManifestError(f"the manifest has no hook {_INFO}")
        introduction = SimpleNamespace(**{_INFO: getattr(plugin, _INFO)})
        name = self._register(introduction)
        returned = self._manager.hook.polyattn_plugin_info()
        self._manager.unregister(name=name)
        info = returned[0] if returned else None
        if not isinstance(info, PluginInfo):
            raise ManifestError(f"{_INFO} returned {_show(info)}; expected PluginInfo")
        return info

    def _check_identity(self, distribution: str) -> None:
        info = self.info
        if info.api_version != hooks.API_VERSION:
            raise ManifestError(
                f"it is written for version {info.api_version} of the plugin interface, "
                f"this is version {hooks.API_VERSION}: "
                f"{_upgrade(info.api_version, distribution)}"
            )
        if info.family != self.family:
            raise ManifestError(
                f"{_INFO} says family {info.family!r}, its entry point is called {self.family!r}"
            )
        if normalise_distribution(info.distribution) != distribution:
            raise ManifestError(
                f"{_INFO} says distribution {info.distribution!r}, "
                f"but it is provided by {distribution!r}"
            )

    def _register(self, plugin: object) -> str:
        name = self.family
        try:
            self._manager.register(plugin, name)
        except pluggy.PluginValidationError as error:
            raise ManifestError(str(error)) from error
        callers = self._manager.get_hookcallers(plugin) or []
        known = [caller.name for caller in vars(self._manager.hook).values() if caller.has_spec()]
        for caller in callers:
            optional = all(implementation.optionalhook for implementation in caller.get_hookimpls())
            if not caller.has_spec() and not optional:
                near = closest(caller.name.replace("_", "-"), [k.replace("_", "-") for k in known])
                hint = f"; did you mean {near[0].replace('-', '_')!r}?" if near else ""
                raise ManifestError(f"there is no hook called {caller.name!r}{hint}")
        return name

    def _call(self, hook: str, accepted: type[_Offered]) -> tuple[_Offered, ...]:
        caller = getattr(self._manager.hook, hook)
        if not caller.get_hookimpls():
            return ()
        # pluggy leaves out a result of None.
        result = next(iter(caller()), None)
        if not isinstance(result, Iterable) or isinstance(result, str | bytes):
            raise ManifestError(
                f"{hook} returned {_show(result)}; expected an iterable of {accepted.__name__}"
            )
        offered = tuple(result)
        for item in offered:
            if not isinstance(item, accepted):
                raise ManifestError(f"{hook} offers {_show(item)}; expected {accepted.__name__}")
        return offered


def hook_of(kind: str) -> str:
    """The hook that offers entries of a kind.

    >>> hook_of("preset"), hook_of("loss")
    ('polyattn_presets', 'polyattn_entries')
    """
    return _OWN_HOOK[kind][0] if kind in _OWN_HOOK else "polyattn_entries"


def check_entry(entry: EntrySpec) -> None:
    """Raise an `ArgumentError` unless no look-up can stumble over an entry.

    Every look-up goes over the entries of all plugins, so one that is malformed would break them.
    """
    own = {kind: cls for kind, (_, cls) in _OWN_HOOK.items()}
    required = own.get(entry.kind, EntrySpec)
    if not isinstance(entry, required) or (
        required is EntrySpec and isinstance(entry, tuple(own.values()))
    ):
        raise ArgumentError(
            entry.full_name,
            type(entry).__name__,
            f"{required.__name__}, as its kind is {entry.kind!r}",
        )
    for label in ("tags", "aliases"):
        texts = getattr(entry, label)
        if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
            raise ArgumentError(f"{label} of {entry.full_name}", texts, "a tuple of strings")
    if isinstance(entry, MechanismSpec) and not isinstance(entry.capabilities, Capabilities):
        raise ArgumentError(
            f"capabilities of {entry.full_name}", entry.capabilities, "an instance of Capabilities"
        )
    if isinstance(entry, PresetSpec):
        parse(entry.mechanism, f"mechanism of the preset {entry.full_name}")


def _upgrade(version: int, distribution: str) -> str:
    outdated = distribution if version < hooks.API_VERSION else "polyattn"
    return f"pip install --upgrade {outdated}"


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
