"""The diagnostics bus: typed frozen events that anybody may listen to.

With nobody subscribed nothing is measured: senders ask :func:`wanted` first, which is one
dictionary look-up.

>>> from polyattn_core import diagnostics
>>> seen = []
>>> undo = diagnostics.subscribe(diagnostics.AttentionComputed, seen.append)
>>> undo()
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, TypeVar

logger = logging.getLogger("polyattn.diagnostics")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events; subscribing to it receives every event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismCreated(Event):
    """A mechanism was built."""

    name: str
    options: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionComputed(Event):
    """A call of a mechanism ended. Shapes are head-level: (…, heads, tokens, size)."""

    name: str
    query_shape: tuple[int, ...]
    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    dtype: str
    seconds: float
    statistics: Mapping[str, float] = field(default_factory=dict)
    """Mean statistics of the call, where the mechanism streams them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChanged(Event):
    """A gated mechanism moved from one mode to another."""

    name: str
    before: str
    after: str
    coherence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricMeasured(Event):
    """A metric was measured."""

    metric: str
    value: float
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCompiled(Event):
    """A kernel was compiled, or loaded from the cache."""

    kernel: str
    seconds: float
    from_cache: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginFailed(Event):
    """A plugin could not be loaded."""

    plugin: str
    reason: str


E = TypeVar("E", bound=Event)
Subscriber = Callable[[Any], None]


class Bus:
    """Delivers events to subscribers, in the order of subscription, in the sender's thread.

    A subscriber that raises is logged once, counted in :attr:`failures`, and does not disturb the
    sender or other subscribers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._subscribers: dict[type[Event], tuple[tuple[int, Subscriber], ...]] = {}
        self.failures: dict[Subscriber, int] = {}

    def subscribe(self, event: type[E], subscriber: Callable[[E], None]) -> Callable[[], None]:
        """Call `subscriber` for each event of this type or a subtype; returns an undo."""
        if not (isinstance(event, type) and issubclass(event, Event)):
            raise TypeError(f"event: got {event!r}; expected a subclass of Event")
        if not (callable(subscriber) and isinstance(subscriber, Hashable)):
            # Its failures are counted by itself.
            raise TypeError(f"subscriber: got {subscriber!r}; expected a function, or hashable")
        with self._lock:
            subscription = (next(self._numbers), subscriber)
            self._subscribers[event] = (*self._subscribers.get(event, ()), subscription)

        def undo() -> None:
            with self._lock:
                before = self._subscribers.get(event, ())
                left = tuple(one for one in before if one is not subscription)
                if left:
                    self._subscribers[event] = left
                else:
                    self._subscribers.pop(event, None)

        return undo

    def wanted(self, event: type[Event]) -> bool:
        """Is anybody listening to this type of event?"""
        subscribers = self._subscribers
        return bool(subscribers) and any(base in subscribers for base in event.__mro__)

    def publish(self, event: Event) -> None:
        """Deliver an event."""
        subscribers = self._subscribers
        found = [one for base in type(event).__mro__ for one in subscribers.get(base, ())]
        for _, subscriber in sorted(found, key=itemgetter(0)):
            try:
                subscriber(event)
            except Exception:
                with self._lock:
                    count = self.failures.get(subscriber, 0) + 1
                    self.failures[subscriber] = count
                if count == 1:
                    logger.exception("a diagnostics subscriber failed; it stays subscribed")


bus = Bus()
"""The bus of this process."""

subscribe = bus.subscribe
wanted = bus.wanted
publish = bus.publish
