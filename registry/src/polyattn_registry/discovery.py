"""Loading plugins: each at most once, each by itself, none before it is needed."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from polyattn_core import diagnostics
from polyattn_core.errors import (
    ArgumentError,
    DuplicateNameError,
    PluginDisabledError,
    PluginError,
    RegistryError,
)
from polyattn_core.spec import ConformanceCase

from . import entry_points, first_party
from .entry_points import Candidate
from .manifest import CASES, Manifest, ManifestError, hook_of
from .names import fold, parse
from .store import Store

DISABLE_VARIABLE = "POLYATTN_DISABLE_PLUGINS"
STRICT_VARIABLE = "POLYATTN_STRICT"

_SWITCH = {"": False, "0": False, "false": False, "no": False, "off": False} | {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
}
_REASON_LIMIT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginStatus:
    """What became of a plugin that is installed."""

    family: str
    distribution: str
    version: str
    summary: str
    state: Literal["loaded", "failed", "disabled"]
    """`failed` also where only a part failed, such as its presets; the rest of it works."""
    reason: str = ""
    """Why it is not loaded, in one line."""
    error: str = ""
    """The full traceback."""
    milliseconds: float = 0.0
    """How long importing its manifest and asking it for its mechanisms took."""
    mechanisms: int = 0
    """How many mechanisms it offers."""


class Plugin:
    """A candidate and what became of it."""

    def __init__(self, candidate: Candidate, store: Store) -> None:
        self.candidate = candidate
        self.state: Literal["pending", "loading", "loaded", "failed", "disabled"] = "pending"
        self.problem = candidate.problem
        """Why it must not be imported at all."""
        self.reason = ""
        self.error = ""
        self.failure: BaseException | None = None
        self.failed_hooks: dict[str, str] = {}
        self._store = store
        self._manifest: Manifest | None = None
        self._asked: set[str] = set()
        self._milliseconds = 0.0
        self._mechanisms = 0

    def load(self) -> None:
        """Import the manifest and register its mechanisms, unless that was tried before."""
        if self.state == "loading":
            raise RegistryError(
                f"the manifest of {self.candidate.distribution} uses the registry while it is "
                "loaded; a manifest may only describe what it offers"
            )
        if self.state != "pending":
            return
        self.state = "loading"
        start = time.perf_counter()
        try:
            if self.problem:
                raise ManifestError(self.problem)
            manifest = self.candidate.load()
            self._manifest = Manifest(manifest, self.candidate.family, self.candidate.distribution)
            self._mechanisms = self._register("polyattn_mechanisms")
            self.state = "loaded"
        except (Exception, SystemExit) as error:
            self.state = "failed"
            self._tell(_one_line(error), error)
        finally:
            self._milliseconds = 1e3 * (time.perf_counter() - start)
            if self.state == "loading":  # interrupted from the keyboard: may be tried again
                self.state = "pending"

    def ask(self, hook: str) -> None:
        """Register what a further hook offers, unless that was tried before.

        A failure is recorded, and leaves what the other hooks offered as it is.
        """
        if self.state != "loaded" or hook in self._asked:
            return
        self._asked.add(hook)
        try:
            self._register(hook)
        except (Exception, SystemExit) as error:
            self._record_failure(hook, error)

    def cases(self) -> Sequence[ConformanceCase]:
        """Conformance cases; a `PluginError` where they cannot be had."""
        if self._manifest is None:
            return ()
        try:
            cases = self._manifest.cases()
            for case in cases:
                self._require_own(case)
            return cases
        except (Exception, SystemExit) as error:
            self._record_failure(CASES, error)
            raise self.refusal(CASES) from error

    def disable(self, reason: str) -> None:
        """Never load it."""
        self.state, self.reason = "disabled", reason

    def refusal(self, hook: str = "") -> PluginError:
        """The error for whoever asks for something that this plugin should have provided."""
        distribution = self.candidate.distribution
        if self.state == "disabled":
            return PluginDisabledError(distribution, self.reason)
        error = PluginError(distribution, self.failed_hooks.get(hook, self.reason))
        error.__cause__ = self.failure
        return error

    def status(self) -> PluginStatus:
        """A frozen report."""
        failed = self.state == "failed" or bool(self.failed_hooks)
        info = self._manifest.info if self._manifest else None
        return PluginStatus(
            family=self.candidate.family,
            distribution=self.candidate.distribution,
            version=self.candidate.version,
            summary=info.summary if info else self.candidate.summary,
            state="disabled" if self.state == "disabled" else "failed" if failed else "loaded",
            reason=self.reason,
            error=self.error,
            milliseconds=self._milliseconds,
            mechanisms=self._mechanisms,
        )

    def _register(self, hook: str) -> int:
        assert self._manifest is not None
        self._asked.add(hook)
        entries = self._manifest.entries(hook)
        self._store.add(entries, self.candidate.distribution)
        return len(entries)

    def _require_own(self, case: ConformanceCase) -> None:
        family, name = self.candidate.family, parse(case.mechanism)
        own = name.family in ("", family)
        if not own or self._store.get("mechanism", f"{family}/{name.short}") is None:
            raise ManifestError(
                f"there is a case for {case.mechanism!r}, which the family {family!r} does not have"
            )

    def _record_failure(self, hook: str, error: BaseException) -> None:
        if hook in self.failed_hooks:
            return
        self.failed_hooks[hook] = f"{hook}: {_one_line(error)}"
        self._tell(self.failed_hooks[hook], error)

    def _tell(self, reason: str, error: BaseException) -> None:
        self.reason = f"{self.reason}; {reason}" if self.reason else reason
        self.error += "".join(traceback.format_exception(error))
        self.failure = error
        # A subscriber that looks at the registry must find the failure already recorded.
        diagnostics.publish(
            diagnostics.PluginFailed(plugin=self.candidate.distribution, reason=reason)
        )


class Discovery:
    """The plugins that are installed; `store` receives what they offer as they are loaded."""

    def __init__(self, store: Store, path: Sequence[str] | None = None) -> None:
        self.strict = _is_strict(os.environ)
        self.plugins: list[Plugin] = []
        self.owners: dict[str, Plugin] = {}
        """Family → the one plugin that may provide it."""
        disabled = _disabled_families(os.environ)
        # Who owns a family is settled before anything is loaded: it must depend neither on the
        # order of `sys.path` nor on whether another plugin works.
        for candidate in sorted(entry_points.candidates(path), key=_precedence):
            plugin = Plugin(candidate, store)
            self.plugins.append(plugin)
            self._admit(plugin, disabled)

    def load(self, kind: str, families: Sequence[str] | None = None) -> None:
        """Have the entries of a kind registered, of some families or of all.

        Raises
        ------
        PluginError
            In strict mode, where any plugin fails.
        """
        hook = hook_of(kind)
        chosen = None if self.strict else families
        for plugin in self.plugins:
            if chosen is None or plugin.candidate.family in chosen:
                plugin.load()
                plugin.ask(hook)
        if self.strict:
            for failed in self.failed():
                raise failed.refusal()

    def failed(self) -> Iterator[Plugin]:
        """Plugins of which something failed."""
        for plugin in self.plugins:
            if plugin.state == "failed" or plugin.failed_hooks:
                yield plugin

    def _admit(self, plugin: Plugin, disabled: Callable[[str], str]) -> None:
        family, distribution = plugin.candidate.family, plugin.candidate.distribution
        rightful = first_party.distribution_of(family)
        owner = self.owners.get(family)
        if rightful not in (None, distribution):
            plugin.problem = f"the family {family!r} is reserved for {rightful}"
        elif owner is not None:
            other = owner.candidate.distribution
            plugin.problem = f"the family {family!r} is already provided by {other}"
            if other != distribution:
                plugin.problem += "; uninstall one of them"
        elif family:
            self.owners[family] = plugin
        if reason := disabled(family):
            plugin.disable(reason)


def _precedence(candidate: Candidate) -> tuple[str, bool, str]:
    family, distribution = candidate.family, candidate.distribution
    return family, distribution != f"polyattn-{family}", distribution


def _disabled_families(environment: Mapping[str, str]) -> Callable[[str], str]:
    """A function that says why a family is disabled; nothing where it is not."""
    setting = environment.get(DISABLE_VARIABLE, "").strip()
    families = {fold(family.strip()) for family in setting.split(",")} - {""}

    def reason(family: str) -> str:
        if families.isdisjoint((family, "all")):
            return ""
        return f"disabled by {DISABLE_VARIABLE}={setting}"

    return reason


def _is_strict(environment: Mapping[str, str]) -> bool:
    setting = environment.get(STRICT_VARIABLE, "").strip().lower()
    if setting not in _SWITCH:
        raise ArgumentError(STRICT_VARIABLE, setting, f"one of {', '.join(filter(None, _SWITCH))}")
    return _SWITCH[setting]


def _one_line(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:  # an error of a plugin may be broken itself
        text = "it cannot say why"
    if not isinstance(error, ManifestError | DuplicateNameError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _REASON_LIMIT else text[: _REASON_LIMIT - 1] + "…"
