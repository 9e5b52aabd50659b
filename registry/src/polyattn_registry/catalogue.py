"""From a name to an entry, in steps that each have their own error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NoReturn

from polyattn_core.errors import (
    AmbiguousNameError,
    ArgumentError,
    NotInstalledError,
    ReservedNameError,
    UnknownFamilyError,
    UnknownNameError,
)
from polyattn_core.spec import EntrySpec, PresetSpec

from . import entry_points, first_party
from .discovery import Discovery, Plugin, PluginStatus
from .manifest import check_entry, hook_of
from .names import Name, closest, natural_key, parse
from .store import Store

RUN_TIME_OWNER = "a call of register()"


class Catalogue:
    """Everything that can be found by kind and name, from plugins and from the running program.

    A name that says its family loads that plugin only; so does a reserved name. All others need
    every plugin, because any of them may claim the name.
    """

    def __init__(self, path: Sequence[str] | None = None) -> None:
        self._path = path
        # One lock for discovery and look-up: of several threads that come first, one loads the
        # plugins and the others wait. Re-entrant, as a diagnostics subscriber may look around.
        self._lock = threading.RLock()
        self._run_time: list[EntrySpec] = []
        self._preferred: dict[tuple[str, str], list[tuple[object, str]]] = {}
        self._store = Store()
        self._discovery = Discovery(self._store, path)

    def find(self, kind: str, name: Name) -> EntrySpec:
        """The entry that a name means, or an error that says what to do."""
        with self._lock:
            if name.family:
                return self._find_in_family(kind, name.family, name.short)
            return self._find_short(kind, name.short)

    def entries(self, kind: str, family: str | None = None) -> list[EntrySpec]:
        """All entries of a kind, or those of a family.

        Raises
        ------
        UnknownFamilyError
            If the family is neither installed nor known; one that is known has just no entries.
        PluginError
            If the plugin of that family failed to load.
        """
        with self._lock:
            if family is None:
                self._discovery.load(kind)
                return self._store.entries(kind)
            self._discovery.load(kind, (family,))
            self._require_family(kind, family)
            return [entry for entry in self._store.entries(kind) if entry.family == family]

    def shortest(self, entry: EntrySpec) -> str:
        """The shortest name under which an entry is found."""
        with self._lock:
            owners = self._owners(entry.kind, entry.name)
            return entry.name if owners == (entry.full_name,) else entry.full_name

    def means(self, kind: str, text: str, entry: EntrySpec, home: str) -> bool:
        """Does a name, written inside a plugin of family `home`, mean this entry?

        A short name means what the plugin itself offers, before what others do.
        """
        name = parse(text)
        with self._lock:
            own = self._store.get(kind, f"{name.family or home}/{name.short}")
            if own is not None or name.family:
                return own is not None and own.full_name == entry.full_name
            return self._owners(kind, name.short) == (entry.full_name,)

    def choose(self, kind: str, short: str, entries: Sequence[EntrySpec]) -> EntrySpec:
        """The one among several entries to which the rules for short names lead."""
        with self._lock:
            preferred = self._preferred_of(kind, short)
            first = [entry for entry in entries if entry.family in first_party.FAMILIES]
            chosen = first or [entry for entry in entries if entry.full_name in preferred]
        if len(chosen or entries) != 1:
            raise AmbiguousNameError(kind, short, [entry.full_name for entry in entries])
        return (chosen or entries)[0]

    def register(self, entry: EntrySpec) -> Callable[[], None]:
        """Add an entry of the running program; returns an undo."""
        check_entry(entry)
        with self._lock:
            self._discovery.load(entry.kind, (entry.family,))
            owner = first_party.distribution_of(entry.family)
            if owner is not None and self._store.get(entry.kind, entry.full_name) is None:
                raise ReservedNameError("family", entry.family, owner)
            self._store.add((entry,), RUN_TIME_OWNER)
            self._run_time.append(entry)
        return partial(self._unregister, entry)

    def prefer(self, kind: str, short: str, full: Name) -> Callable[[], None]:
        """Give a short name that several claim to one of them; returns an undo."""
        with self._lock:
            entry = self.find(kind, full)
            owners = self._first_party_owners(kind, short)
            if owners:
                raise ReservedNameError(kind, short, owners[0])
            claims = self._store.claims(kind, short)
            if entry.full_name not in claims:
                accepted = f"the full name of a {kind} called {short!r}"
                accepted += f": {', '.join(claims)}" if claims else " (there is none)"
                raise ArgumentError("full", full.path, accepted)
            token = object()
            self._preferred.setdefault((kind, short), []).append((token, entry.full_name))
        return partial(self._unprefer, (kind, short), token)

    def refresh(self) -> None:
        """Discover again. What the running program registered and preferred stays."""
        with self._lock:
            entry_points.forget()
            store = Store()
            store.add(self._run_time, RUN_TIME_OWNER)
            self._discovery = Discovery(store, self._path)
            self._store = store

    def plugins(self) -> list[PluginStatus]:
        """What became of each plugin; also in strict mode, as this is where to look up why."""
        with self._lock:
            for plugin in self._discovery.plugins:
                plugin.load()
            return [plugin.status() for plugin in self._discovery.plugins]

    def plugin_of(self, entry: EntrySpec) -> Plugin | None:
        """The plugin that offers an entry; None for one of the running program."""
        with self._lock:
            if any(entry is registered for registered in self._run_time):
                return None
            return self._discovery.owners.get(entry.family)

    def _find_in_family(self, kind: str, family: str, short: str) -> EntrySpec:
        self._discovery.load(kind, (family,))
        path = f"{family}/{short}"
        entry = self._store.get(kind, path)
        if entry is None and kind == "mechanism":
            # A reserved second name works whether or not the installed version declares it.
            reserved = first_party.full_name_of(short)
            if reserved is not None and reserved.startswith(f"{family}/"):
                entry = self._store.get(kind, reserved)
        return entry if entry is not None else self._explain_missing(kind, family, short)

    def _find_short(self, kind: str, short: str) -> EntrySpec:
        owners = self._owners(kind, short)
        if len(owners) > 1:
            raise AmbiguousNameError(kind, short, sorted(owners, key=natural_key))
        if not owners:
            self._explain_unknown(kind, short)
        # The owner need not be there: a reserved name is owned by what may not be installed, a
        # preferred entry may have been uninstalled meanwhile.
        return self._find_in_family(kind, *owners[0].split("/"))

    def _owners(self, kind: str, short: str) -> tuple[str, ...]:
        """Full names of the entries to which a short name leads: one, if it is any use."""
        first = self._first_party_owners(kind, short)
        return first or self._preferred_of(kind, short) or self._store.claims(kind, short)

    def _preferred_of(self, kind: str, short: str) -> tuple[str, ...]:
        preferred = self._preferred.get((kind, short))
        return (preferred[-1][1],) if preferred else ()

    def _first_party_owners(self, kind: str, short: str) -> tuple[str, ...]:
        reserved = first_party.full_name_of(short) if kind == "mechanism" else None
        if reserved is not None:
            return (reserved,)
        self._discovery.load(kind)
        claims = self._store.claims(kind, short)
        return tuple(c for c in claims if c.partition("/")[0] in first_party.FAMILIES)

    def _require_family(self, kind: str, family: str) -> None:
        plugin = self._discovery.owners.get(family)
        known = self._store.families() | set(first_party.FAMILIES) | set(self._discovery.owners)
        if family not in known:
            raise UnknownFamilyError("family", family, closest(family, known))
        hook = hook_of(kind)
        if plugin is not None and (plugin.state == "failed" or hook in plugin.failed_hooks):
            raise plugin.refusal(hook)

    def _explain_missing(self, kind: str, family: str, short: str) -> NoReturn:
        path = f"{family}/{short}"
        self._require_family(kind, family)
        plugin = self._discovery.owners.get(family)
        if plugin is not None and plugin.state == "disabled":
            raise plugin.refusal()
        distribution = first_party.distribution_of(family)
        if distribution is not None and plugin is None:
            error = NotInstalledError(kind, path, distribution, self._others(kind, short))
            for other in self._discovery.failed():
                if other.candidate.family == family:
                    error.add_note(f"{other.candidate.distribution} was refused: {other.reason}")
            raise error
        reserved = first_party.full_name_of(short) if kind == "mechanism" else None
        if reserved is not None and reserved.startswith(f"{family}/"):
            assert distribution is not None
            assert plugin is not None
            version = plugin.candidate.version
            raise NotInstalledError(kind, path, distribution, self._others(kind, short), version)
        siblings = [e.name for e in self._store.entries(kind) if e.family == family]
        suggestions = [] if reserved is None else [reserved]
        suggestions += self._others(kind, short)
        suggestions += [f"{family}/{near}" for near in closest(short, siblings)]
        suggestions = suggestions or list(closest(short, self._known(kind)))
        raise UnknownNameError(kind, path, dict.fromkeys(suggestions))

    def _others(self, kind: str, short: str) -> tuple[str, ...]:
        self._discovery.load(kind)
        return tuple(sorted(self._store.claims(kind, short), key=natural_key))

    def _explain_unknown(self, kind: str, short: str) -> NoReturn:
        suggestions: Iterable[str] = self._with_preset(short) if kind == "mechanism" else ()
        suggestions = suggestions or closest(short, self._known(kind))
        error = UnknownNameError(kind, short, suggestions)
        for plugin in self._discovery.failed():
            error.add_note(
                f"{plugin.candidate.distribution}, which failed to load ({plugin.reason}), "
                "may have it; run polyattn doctor"
            )
        raise error

    def _known(self, kind: str) -> list[str]:
        reserved = first_party.RESERVED_NAMES if kind == "mechanism" else ()
        return [*self._store.short_names(kind), *reserved]

    def _with_preset(self, short: str) -> list[str]:
        """What somebody meant who gave the name of a preset as that of a mechanism."""
        self._discovery.load("preset")
        found = [self._store.get("preset", path) for path in self._store.claims("preset", short)]
        meant = []
        for preset in found:
            if isinstance(preset, PresetSpec):
                name = parse(preset.mechanism)
                own = self._store.get("mechanism", f"{name.family or preset.family}/{name.short}")
                meant.append(f"{self.shortest(own) if own else name.path}@{short}")
        return meant

    def _unregister(self, entry: EntrySpec) -> None:
        with self._lock:
            self._run_time = [e for e in self._run_time if e is not entry]
            self._store.remove(entry)

    def _unprefer(self, key: tuple[str, str], token: object) -> None:
        with self._lock:
            left = [choice for choice in self._preferred.get(key, []) if choice[0] is not token]
            if left:
                self._preferred[key] = left
            else:
                self._preferred.pop(key, None)
