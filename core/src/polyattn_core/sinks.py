"""Sinks: where diagnostics events can go; found by name as entries of the kind ``sink``.

>>> from polyattn_core.sinks import LogSink
>>> with LogSink():  # every event of the process, until the block ends
...     pass
>>> undo = LogSink().attach(diagnostics.PluginFailed)
>>> undo()

Writing a sink takes a method:

>>> class Count(Sink):
...     events = 0
...     def receive(self, event: Event) -> None:
...         self.events += 1
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TextIO

from . import diagnostics
from .diagnostics import Bus, Event
from .errors import ArgumentError


class Sink(ABC):
    """Somewhere for events to go. A subclass says what it does with one.

    While it is attached, the events that it is attached to are measured: for
    `AttentionComputed`, that is the mean entropy of the weights, a second pass over the scores.
    """

    def __init__(self) -> None:
        self._attaching = threading.RLock()
        self._attached = 0
        self._undo: Callable[[], None] | None = None

    @abstractmethod
    def receive(self, event: Event) -> None:
        """Take an event, in the thread that sent it."""

    def open(self) -> None:  # noqa: B027 - few sinks need it
        """Get ready for events: called when it is attached and was not before."""

    def close(self) -> None:  # noqa: B027
        """Release what `open` acquired: called when it is attached no longer."""

    def attach(self, *events: type[Event], bus: Bus = diagnostics.bus) -> Callable[[], None]:
        """Send events of these types here, all events by default; returns an undo."""
        with self._attaching:
            if not self._attached:
                self.open()
            self._attached += 1
        undos: list[Callable[[], None]] = []
        attached = True

        def undo() -> None:
            nonlocal attached
            with self._attaching:
                if not attached:
                    return
                attached = False
                for each in undos:
                    each()
                self._attached -= 1
                if not self._attached:
                    self.close()

        try:
            # One by one, so that of several those before one that is refused are undone.
            for event in events or (Event,):
                undos.append(bus.subscribe(event, self.receive))  # noqa: PERF401
        except TypeError:
            undo()
            raise
        return undo

    def __enter__(self) -> Self:
        if self._undo is not None:
            raise RuntimeError(f"{type(self).__name__} is in use as a context manager already")
        self._undo = self.attach()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()


class LogSink(Sink):
    """Events as records of Python's logging, by the logger ``polyattn.events``.

    A record's message is the type of the event and its fields; its attribute `event` is the event
    itself, for handlers that want more. Failures of plugins are warnings, at least.

    Parameters
    ----------
    level
        The level of the records, as `logging` numbers or names it.
    """

    logger = logging.getLogger("polyattn.events")

    def __init__(self, level: int | str = logging.INFO) -> None:
        super().__init__()
        known = logging.getLevelNamesMapping()
        number = known.get(level.upper()) if isinstance(level, str) else level
        if not isinstance(number, int) or isinstance(number, bool):
            raise ArgumentError("level", level, f"a whole number, or one of {', '.join(known)}")
        self.level = number

    def receive(self, event: Event) -> None:
        level = self.level
        if isinstance(event, diagnostics.PluginFailed):
            level = max(level, logging.WARNING)
        if self.logger.isEnabledFor(level):
            shown = " ".join(f"{name}={value}" for name, value in _fields(event).items())
            name = type(event).__name__
            self.logger.log(level, "%s %s", name, shown, extra={"event": event})


class JsonLinesSink(Sink):
    """Events as JSON, one a line, each written at once.

    A line is an object with `event`, the name of the event's type; `time`, in ISO 8601 and UTC;
    and the event's fields. Numbers that are not finite are the strings "NaN", "Infinity" and
    "-Infinity", what JSON has no form for is its `repr`.

    Parameters
    ----------
    target
        A path, which is appended to, or a text stream, which is left open.
    """

    def __init__(self, target: str | os.PathLike[str] | TextIO) -> None:
        super().__init__()
        if not isinstance(target, str | os.PathLike) and not hasattr(target, "write"):
            raise ArgumentError("target", target, "a path or a text stream")
        self.target = target
        self._writing = threading.Lock()
        self._stream: TextIO | None = None

    def open(self) -> None:
        if isinstance(self.target, str | os.PathLike):
            self._stream = open(self.target, "a", encoding="utf-8")  # noqa: SIM115
        else:
            self._stream = self.target

    def close(self) -> None:
        with self._writing:
            stream, self._stream = self._stream, None
        if stream is not None and stream is not self.target:
            stream.close()

    def receive(self, event: Event) -> None:
        line = json.dumps(as_dict(event), ensure_ascii=False, allow_nan=False) + "\n"
        with self._writing:
            # Another thread may send an event while this sink is detached.
            if self._stream is not None:
                self._stream.write(line)
                self._stream.flush()


def as_dict(event: Event) -> dict[str, Any]:
    """An event as JSON-ready values, with the name of its type and the time now.

    >>> found = as_dict(diagnostics.MetricMeasured(metric="drift", value=0.5))
    >>> found["event"], found["metric"], found["value"]
    ('MetricMeasured', 'drift', 0.5)
    """
    time = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"event": type(event).__name__, "time": time, **_plain(_fields(event))}


def _fields(event: Event) -> dict[str, Any]:
    return {field.name: getattr(event, field.name) for field in fields(event)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | str):
        return value
    # Arrays and their numbers, recognised without importing what they come from.
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return repr(value)
