"""Typed errors: every failure names the argument, the value and what would be accepted.

All derive from :class:`PolyattnError`; those that correspond to a built-in category
(`ValueError`, `TypeError`, `LookupError`, `ImportError`) derive from that too, so code that does
not know polyattn still catches them sensibly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class PolyattnError(Exception):
    """Base of all errors raised on purpose by polyattn and its plugins."""


class ArgumentError(PolyattnError, ValueError):
    """An argument has an unacceptable value.

    Parameters
    ----------
    argument
        Name of the argument as the caller wrote it.
    value
        The offending value, or a short description of it (a shape, a dtype).
    accepted
        What would have been accepted, as a noun phrase.
    """

    def __init__(self, argument: str, value: object, accepted: str) -> None:
        super().__init__(argument, value, accepted)
        self.argument = argument
        self.value = value
        self.accepted = accepted

    def __str__(self) -> str:
        return f"{self.argument}: got {_short(self.value)}; expected {self.accepted}"


class ShapeError(ArgumentError):
    """An array has the wrong rank or sizes."""


class DTypeError(ArgumentError, TypeError):
    """An array has a dtype that is not computed with."""


class MaskError(ArgumentError):
    """A mask does not fit the arrays it is applied to."""


class ConfigError(ArgumentError):
    """An option is unknown, or its value is out of bounds."""


class UnknownOptionError(ConfigError, AttributeError):
    """A builder was asked to set an option that its mechanism does not have."""

    def __init__(self, argument: str, value: object, accepted: str) -> None:
        super().__init__(argument, value, accepted)
        # As an AttributeError it would have these, which lead to a suggestion of its own.
        self.name, self.obj = argument, None


class DataError(ArgumentError):
    """A data set cannot be used: empty, ragged, not finite, of the wrong rank …"""


class FileFormatError(ArgumentError):
    """A file is not of a format that is read or written here."""


class ParameterError(ArgumentError):
    """Learned arrays do not match those of the mechanism (names, shapes, missing, surplus)."""


class MissingInputError(PolyattnError, TypeError):
    """A side input that the mechanism requires was not passed."""

    def __init__(self, mechanism: str, argument: str, description: str) -> None:
        super().__init__(mechanism, argument, description)
        self.mechanism = mechanism
        self.argument = argument
        self.description = description

    def __str__(self) -> str:
        return f"{self.mechanism} needs {self.argument}=: {self.description}"


class CapabilityError(PolyattnError):
    """A mechanism was asked for something that it does not declare.

    `alternatives` lists mechanisms that have the capability, where a registry is at hand.
    """

    def __init__(self, mechanism: str, capability: str, alternatives: Sequence[str] = ()) -> None:
        super().__init__(mechanism, capability, tuple(alternatives))
        self.mechanism = mechanism
        self.capability = capability
        self.alternatives = tuple(alternatives)

    def __str__(self) -> str:
        text = f"{self.mechanism} does not support {self.capability}"
        if self.alternatives:
            text += f"; mechanisms that do: {', '.join(self.alternatives)}"
        return text


class KernelError(PolyattnError):
    """A rule or predicate written by a user cannot be compiled or misbehaves."""


class RegistryError(PolyattnError):
    """Base of errors about names and plugins."""


class UnknownNameError(RegistryError, LookupError):
    """No entry of that kind has this name."""

    def __init__(self, kind: str, name: str, suggestions: Iterable[str] = ()) -> None:
        self.kind = kind
        self.name = name
        self.suggestions = tuple(suggestions)
        super().__init__(kind, name, self.suggestions)

    def __str__(self) -> str:
        text = f"no {self.kind} is called {self.name!r}"
        if self.suggestions:
            text += f"; did you mean {' or '.join(repr(s) for s in self.suggestions)}?"
        return text


class UnknownFamilyError(UnknownNameError):
    """The part of a name before the slash is not an installed family."""


class NotInstalledError(UnknownNameError):
    """The name is known, but the distribution that provides it is not installed.

    `installed` is the version of the distribution where one is installed that is too old to have
    the name; `suggestions` are full names that other packages offer under the same short name.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        distribution: str,
        suggestions: Iterable[str] = (),
        installed: str = "",
    ) -> None:
        super().__init__(kind, name, suggestions)
        self.args = (kind, name, distribution, self.suggestions, installed)
        self.distribution = distribution
        self.installed = installed

    def __str__(self) -> str:
        if self.installed:
            text = (
                f"the {self.kind} {self.name!r} is not in {self.distribution} {self.installed}: "
                f"pip install --upgrade {self.distribution}"
            )
        else:
            text = f"the {self.kind} {self.name!r} is not installed: "
            text += f"pip install {self.distribution}"
        if self.suggestions:
            text += f"; other packages offer {' or '.join(repr(s) for s in self.suggestions)}"
        return text


class AmbiguousNameError(RegistryError, LookupError):
    """Several plugins claim the same short name."""

    def __init__(self, kind: str, name: str, candidates: Sequence[str]) -> None:
        super().__init__(kind, name, tuple(candidates))
        self.kind = kind
        self.name = name
        self.candidates = tuple(candidates)

    def __str__(self) -> str:
        return (
            f"several plugins provide a {self.kind} called {self.name!r}; write one of "
            f"{', '.join(repr(c) for c in self.candidates)}, or choose with "
            f"polyattn.prefer({self.name!r}, {self.candidates[0]!r})"
        )


class DuplicateNameError(RegistryError, ValueError):
    """Something is already registered under this full name."""

    def __init__(self, kind: str, name: str, owner: str) -> None:
        super().__init__(kind, name, owner)
        self.kind = kind
        self.name = name
        self.owner = owner

    def __str__(self) -> str:
        return f"the {self.kind} {self.name!r} is already registered by {self.owner}"


class ReservedNameError(RegistryError, ValueError):
    """A first-party name or family cannot be given another meaning; `owner` has it."""

    def __init__(self, kind: str, name: str, owner: str) -> None:
        super().__init__(kind, name, owner)
        self.kind = kind
        self.name = name
        self.owner = owner

    def __str__(self) -> str:
        return f"the {self.kind} {self.name!r} is reserved for {self.owner}"


class PluginError(RegistryError, ImportError):
    """A plugin is installed but could not be loaded; `reason` says why."""

    def __init__(self, plugin: str, reason: str) -> None:
        super().__init__(plugin, reason)
        self.plugin = plugin
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.plugin} is installed, but failed to load: {self.reason}; run polyattn doctor"


class PluginDisabledError(PluginError):
    """A plugin is installed, but switched off; `reason` says by what."""

    def __str__(self) -> str:
        return f"{self.plugin} is installed, but {self.reason}"


def _short(value: object, limit: int = 120) -> str:
    # An empty text is nothing to see, and arrays are printed on several lines.
    text = value if isinstance(value, str) and value else " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
