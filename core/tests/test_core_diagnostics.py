"""The bus: who hears what, in what order, and what it costs when nobody listens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from polyattn_core import diagnostics
from polyattn_core.diagnostics import (
    AttentionComputed,
    Bus,
    Event,
    MetricMeasured,
    ModeChanged,
    PluginFailed,
)
from polyattn_core.spec import Capabilities

MEASURED = MetricMeasured(metric="drift", value=1.0)
FAILED = PluginFailed(plugin="acme", reason="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialMetric(MetricMeasured):
    """A subtype, as a plugin may define one."""


def test_a_subscriber_gets_its_type_and_subtypes(bus: Bus) -> None:
    seen: list[Event] = []
    bus.subscribe(MetricMeasured, seen.append)
    special = SpecialMetric(metric="drift", value=2.0)
    for event in (MEASURED, FAILED, special):
        bus.publish(event)
    assert seen == [MEASURED, special]


def test_the_base_gets_everything(bus: Bus) -> None:
    seen: list[Event] = []
    bus.subscribe(Event, seen.append)
    bus.publish(MEASURED)
    bus.publish(FAILED)
    assert seen == [MEASURED, FAILED]


def test_order_is_that_of_subscription_whatever_the_type(bus: Bus) -> None:
    order: list[int] = []
    for number, kind in enumerate((Event, SpecialMetric, MetricMeasured, Event, SpecialMetric)):
        bus.subscribe(kind, lambda _, number=number: order.append(number))
    bus.publish(SpecialMetric(metric="drift", value=1.0))
    assert order == [0, 1, 2, 3, 4]


def test_wanted(bus: Bus) -> None:
    assert not bus.wanted(MetricMeasured)
    undo = bus.subscribe(MetricMeasured, print)
    assert bus.wanted(MetricMeasured)
    assert bus.wanted(SpecialMetric)
    assert not bus.wanted(Event)
    assert not bus.wanted(ModeChanged)
    undo_all = bus.subscribe(Event, print)
    assert bus.wanted(ModeChanged)
    undo_all()
    assert not bus.wanted(ModeChanged)
    undo()
    assert not bus.wanted(MetricMeasured)


def test_undo_is_for_one_subscription_and_may_be_called_twice(bus: Bus) -> None:
    seen: list[Event] = []
    undos = [bus.subscribe(MetricMeasured, seen.append) for _ in range(3)]
    bus.publish(MEASURED)
    assert len(seen) == 3
    undos[1]()
    undos[1]()
    bus.publish(MEASURED)
    assert len(seen) == 5
    undos[0]()
    undos[2]()
    bus.publish(MEASURED)
    assert len(seen) == 5
    for undo in undos:
        undo()


def test_undoing_while_an_event_is_delivered(bus: Bus) -> None:
    seen: list[str] = []
    undos: list[Callable[[], None]] = []

    def first(event: Event) -> None:
        seen.append("first")
        for undo in undos:
            undo()

    undos.append(bus.subscribe(Event, first))
    undos.append(bus.subscribe(Event, lambda _: seen.append("second")))
    bus.publish(MEASURED)
    # Who was subscribed when it was sent gets it.
    assert seen == ["first", "second"]
    bus.publish(MEASURED)
    assert seen == ["first", "second"]


def test_a_failing_subscriber_is_counted_and_disturbs_nobody(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Event] = []

    def failing(event: Event) -> None:
        raise RuntimeError("on purpose")

    def failing_too(event: Event) -> None:
        raise ZeroDivisionError

    bus.subscribe(Event, failing)
    bus.subscribe(Event, seen.append)
    bus.subscribe(MetricMeasured, failing_too)
    with caplog.at_level(logging.ERROR, "polyattn.diagnostics"):
        for event in (MEASURED, FAILED, MEASURED):
            bus.publish(event)
    assert seen == [MEASURED, FAILED, MEASURED]
    assert bus.failures == {failing: 3, failing_too: 2}
    # Each told once, with its traceback.
    assert len(caplog.records) == 2
    assert "on purpose" in caplog.text


def test_interruptions_are_not_swallowed(bus: Bus) -> None:
    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    bus.subscribe(Event, interrupt)
    with pytest.raises(KeyboardInterrupt):
        bus.publish(MEASURED)


def test_what_cannot_be_subscribed(bus: Bus) -> None:
    @dataclass
    class Unhashable:
        calls: int = 0

        def __call__(self, event: Event) -> None: ...

    for event in (int, "AttentionComputed", None):
        with pytest.raises(TypeError, match=r"^event: got .*; expected a subclass of Event"):
            bus.subscribe(event, print)  # type: ignore[type-var]
    for subscriber in (None, 3, Unhashable()):
        with pytest.raises(TypeError, match=r"^subscriber: got "):
            bus.subscribe(Event, subscriber)  # type: ignore[arg-type]
    assert not bus.wanted(Event)


def test_threads(bus: Bus) -> None:
    """Subscribing and publishing from several threads loses nothing that was sent in between."""
    seen: list[Event] = []
    bus.subscribe(MetricMeasured, seen.append)

    def work() -> None:
        for _ in range(300):
            undo = bus.subscribe(Event, lambda event: None)
            bus.publish(MEASURED)
            undo()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1200
    assert not bus.wanted(Event)


def test_events_are_frozen_and_by_keyword() -> None:
    with pytest.raises(AttributeError):
        MEASURED.value = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        MetricMeasured("drift", 1.0)  # type: ignore[misc]


# ---- what mechanisms send -------------------------------------------------------------------


def test_with_nobody_listening_nothing_is_measured(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanism = build(dim=8)
    tokens = np.ones((3, 8))

    def forbidden(*args: object) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(type(mechanism), "_observe", forbidden)
    monkeypatch.setattr(type(mechanism), "_attend_measured", forbidden)
    monkeypatch.setattr(diagnostics.bus, "publish", forbidden)
    mechanism(tokens)
    # Nor for listeners of something else.
    undo = diagnostics.subscribe(ModeChanged, print)
    mechanism(tokens)
    undo()


def test_a_call_is_told_with_what_it_was(build: Any, listen: Any) -> None:
    rng = np.random.default_rng(0)
    query = rng.standard_normal((2, 1, 4, 5, 3)).astype(np.float32)
    key = rng.standard_normal((3, 2, 7, 3)).astype(np.float32)
    mechanism = build(dim=12, heads=4, kv_heads=2)
    expected = mechanism.attend(query, key, key)
    seen = listen(AttentionComputed)
    output = mechanism.attend(query, key, key)
    np.testing.assert_array_equal(output, expected)
    (event,) = seen
    assert event.name == "tests/plain"
    assert event.query_shape == (2, 1, 4, 5, 3)
    assert event.key_shape == event.value_shape == (3, 2, 7, 3)
    assert event.dtype == "float32"
    assert 0 < event.seconds < 60
    weights = mechanism.observe(query, key, key, "weights").weights.astype(float)
    entropy = -(weights * np.log(weights)).sum(axis=-1).mean()
    assert event.statistics["entropy"] == pytest.approx(entropy, rel=1e-5)


def test_a_mechanism_without_statistics_tells_none(build: Any, listen: Any) -> None:
    seen = listen(AttentionComputed)
    build(dim=4, capabilities=Capabilities())(np.ones((3, 4)))
    assert [dict(event.statistics) for event in seen] == [{}]


def test_a_call_that_fails_is_not_told(build: Any, listen: Any) -> None:
    seen = listen(AttentionComputed)
    with pytest.raises(ValueError, match="last axis of dim=4"):
        build(dim=4)(np.ones((3, 5)))
    assert seen == []
