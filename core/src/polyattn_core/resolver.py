"""How a mechanism reaches others by name without importing the registry.

The registry installs itself here when it is imported. A mixture of experts asks
:func:`current` for its experts; an error about a missing capability asks it for alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .errors import RegistryError


class Resolver(Protocol):
    """The part of a registry that mechanisms may use."""

    def create(self, name: str, /, **options: Any) -> Any:
        """Build the mechanism called `name`."""

    def available(self) -> Sequence[str]:
        """Names of all mechanisms."""
        ...

    def resolve(self, name: str, kind: str) -> Any:
        """Import what an entry of some kind names: the function of a metric, say."""
        ...

    def having(self, capability: str, value: object = True) -> Sequence[str]:
        """Names of mechanisms that declare a capability (or contain `value` in it)."""


_resolver: Resolver | None = None


def install(resolver: Resolver | None) -> Resolver | None:
    """Make `resolver` the current one; returns the one before, to put back."""
    global _resolver
    before, _resolver = _resolver, resolver
    return before


def current() -> Resolver:
    """The installed resolver; a `RegistryError` where there is none."""
    if _resolver is None:
        raise RegistryError("no registry is loaded: import polyattn (or polyattn_registry) first")
    return _resolver


def alternatives(capability: str, value: object = True, limit: int = 6) -> Sequence[str]:
    """Names of mechanisms with a capability, or nothing where no registry is loaded."""
    return () if _resolver is None else tuple(_resolver.having(capability, value))[:limit]
