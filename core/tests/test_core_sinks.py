"""Sinks: subscribing and releasing, records of logging, lines of JSON."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyattn_core import diagnostics, plugin
from polyattn_core.diagnostics import (
    AttentionComputed,
    Bus,
    Event,
    KernelCompiled,
    MechanismCreated,
    MetricMeasured,
    PluginFailed,
)
from polyattn_core.errors import ArgumentError
from polyattn_core.sinks import JsonLinesSink, LogSink, Sink, as_dict
from polyattn_core.spec import EntrySpec, resolve

MEASURED = MetricMeasured(metric="drift", value=0.5)
FAILED = PluginFailed(plugin="acme-attention", reason="no way")


class Recording(Sink):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def open(self) -> None:
        self.seen.append("open")

    def close(self) -> None:
        self.seen.append("close")

    def receive(self, event: Event) -> None:
        self.seen.append(event)


def lines(text: str) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


# ---- attaching ------------------------------------------------------------------------------


def test_attaching(bus: Bus) -> None:
    sink = Recording()
    undo = sink.attach(bus=bus)
    bus.publish(MEASURED)
    undo()
    undo()
    bus.publish(FAILED)
    assert sink.seen == ["open", MEASURED, "close"]
    assert not bus.wanted(Event)


def test_attaching_to_some_events(bus: Bus) -> None:
    sink = Recording()
    undo = sink.attach(PluginFailed, KernelCompiled, bus=bus)
    # What it does not ask for is not measured.
    assert not bus.wanted(AttentionComputed)
    for event in (MEASURED, FAILED):
        bus.publish(event)
    undo()
    assert sink.seen == ["open", FAILED, "close"]


def test_attached_to_two_it_is_opened_once(bus: Bus) -> None:
    sink, other = Recording(), Bus()
    undos = [sink.attach(bus=bus), sink.attach(bus=other)]
    other.publish(MEASURED)
    undos[0]()
    bus.publish(MEASURED)
    other.publish(FAILED)
    undos[1]()
    assert sink.seen == ["open", MEASURED, FAILED, "close"]
    sink.attach(bus=bus)()
    assert sink.seen[-2:] == ["open", "close"]


def test_as_a_context_manager() -> None:
    sink = Recording()
    with sink as entered:
        assert entered is sink
        diagnostics.publish(MEASURED)
    diagnostics.publish(FAILED)
    assert sink.seen == ["open", MEASURED, "close"]
    with sink, pytest.raises(RuntimeError, match="Recording is in use"), sink:
        pass
    assert not diagnostics.wanted(Event)


def test_an_error_inside_the_block_detaches() -> None:
    sink = Recording()
    with pytest.raises(ZeroDivisionError), sink:
        raise ZeroDivisionError
    assert sink.seen == ["open", "close"]


def test_a_sink_that_cannot_open_is_not_attached(bus: Bus, tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "missing" / "events.jsonl")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            sink.attach(bus=bus)
    assert not bus.wanted(Event)


def test_what_is_no_event_is_refused_and_leaves_nothing_open(bus: Bus) -> None:
    sink = Recording()
    with pytest.raises(TypeError, match=r"^event: got"):
        sink.attach(PluginFailed, int, bus=bus)  # type: ignore[arg-type]
    assert not bus.wanted(PluginFailed)
    assert sink.seen == ["open", "close"]


def test_sinks_must_say_what_they_do() -> None:
    with pytest.raises(TypeError, match="receive"):
        Sink()  # type: ignore[abstract]


# ---- logging --------------------------------------------------------------------------------


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    with caplog.at_level(logging.DEBUG, "polyattn.events"):
        yield lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_records(bus: Bus, logged: Any, caplog: pytest.LogCaptureFixture) -> None:
    LogSink("debug").attach(bus=bus)
    bus.publish(MEASURED)
    bus.publish(FAILED)
    bus.publish(MechanismCreated(name="a/b", options={"share": "100%s"}, seconds=0.25))
    assert logged() == [
        ("DEBUG", "MetricMeasured metric=drift value=0.5 source="),
        ("WARNING", "PluginFailed plugin=acme-attention reason=no way"),
        ("DEBUG", "MechanismCreated name=a/b options={'share': '100%s'} seconds=0.25"),
    ]
    assert caplog.records[0].event is MEASURED
    assert {record.name for record in caplog.records} == {"polyattn.events"}


@pytest.mark.parametrize(
    ("level", "name", "of_failure"),
    [(logging.INFO, "INFO", "WARNING"), ("ERROR", "ERROR", "ERROR"), (15, "Level 15", "WARNING")],
)
def test_levels(bus: Bus, logged: Any, level: int | str, name: str, of_failure: str) -> None:
    LogSink(level).attach(bus=bus)
    bus.publish(MEASURED)
    bus.publish(FAILED)
    assert [found for found, _ in logged()] == [name, of_failure]


def test_levels_that_are_off_cost_no_text(bus: Bus) -> None:
    class Costly(dict[str, float]):
        def __repr__(self) -> str:
            raise AssertionError("formatted")

    LogSink("debug").attach(bus=bus)
    logger = logging.getLogger("polyattn.events")
    before, logger.level = logger.level, logging.INFO
    try:
        bus.publish(MechanismCreated(name="a/b", options=Costly(), seconds=0.0))
    finally:
        logger.setLevel(before)
    assert bus.failures == {}


@pytest.mark.parametrize("level", ["loud", None, 1.5, True])
def test_no_level(level: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^level: got .*; expected a whole number, or one of"):
        LogSink(level)


# ---- JSON -----------------------------------------------------------------------------------


def test_lines_in_a_stream(bus: Bus) -> None:
    stream = io.StringIO()
    undo = JsonLinesSink(stream).attach(bus=bus)
    before = datetime.now(UTC)
    bus.publish(MEASURED)
    bus.publish(PluginFailed(plugin="größe", reason="two\nlines"))
    first, second = lines(stream.getvalue())
    undo()
    time = datetime.fromisoformat(first.pop("time"))
    assert before <= time <= datetime.now(UTC)
    assert first == {"event": "MetricMeasured", "metric": "drift", "value": 0.5, "source": ""}
    assert second["plugin"] == "größe"
    assert second["reason"] == "two\nlines"
    assert "größe" in stream.getvalue()
    assert not stream.closed


def test_lines_in_a_file_are_appended_and_written_at_once(bus: Bus, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    for target in (file, str(file)):
        sink = JsonLinesSink(target)
        undo = sink.attach(bus=bus)
        bus.publish(MEASURED)
        assert file.read_text("utf-8").endswith("\n")  # before it is closed
        undo()
        sink.receive(FAILED)  # from a thread that was late
    assert [line["event"] for line in lines(file.read_text("utf-8"))] == ["MetricMeasured"] * 2


def test_everything_becomes_json() -> None:
    class Strange:
        def __repr__(self) -> str:
            return "<strange>"

    options = {
        "shape": (1, np.int64(2)),
        "array": np.array([[1.5, np.nan]], np.float32),
        "infinite": [float("inf"), -np.inf],
        "flag": np.True_,
        "none": None,
        "nested": {"position": {"kind": "rope", 3: {1.0}}},
        "strange": Strange(),
    }
    found = as_dict(MechanismCreated(name="a/b", options=options, seconds=np.float32(0.5)))  # type: ignore[arg-type]
    assert json.loads(json.dumps(found, allow_nan=False))["options"] == {
        "shape": [1, 2],
        "array": [[1.5, "NaN"]],
        "infinite": ["Infinity", "-Infinity"],
        "flag": True,
        "none": None,
        "nested": {"position": {"kind": "rope", "3": [1.0]}},
        "strange": "<strange>",
    }
    assert found["seconds"] == 0.5
    assert type(found["options"]["flag"]) is bool


def test_lines_of_real_calls(build: Any) -> None:
    stream = io.StringIO()
    mechanism = build(dim=8, heads=2)
    with JsonLinesSink(stream):
        mechanism(np.ones((3, 8), np.float32))
    (line,) = (x for x in lines(stream.getvalue()) if x["event"] == "AttentionComputed")
    assert line["query_shape"] == [2, 3, 4]
    # Three equal keys.
    assert line["statistics"]["entropy"] == pytest.approx(np.log(3), rel=1e-6)


def test_lines_of_several_threads_do_not_mix(bus: Bus, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    undo = JsonLinesSink(file).attach(bus=bus)
    reason = "x" * 10_000

    def send() -> None:
        for _ in range(20):
            bus.publish(PluginFailed(plugin=threading.current_thread().name, reason=reason))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    undo()
    found = lines(file.read_text("utf-8"))
    assert len(found) == 80
    assert {line["reason"] for line in found} == {reason}


@pytest.mark.parametrize("target", [None, 3, b"events.jsonl"])
def test_no_target(target: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^target: got .*; expected a path or a text stream$"):
        JsonLinesSink(target)


# ---- the manifest ---------------------------------------------------------------------------


def test_the_manifest_offers_them() -> None:
    entries = {entry.name: entry for entry in plugin.polyattn_entries()}
    assert all(isinstance(entry, EntrySpec) for entry in entries.values())
    assert {entry.kind for entry in entries.values()} == {"sink"}
    assert resolve(entries["log"].factory) is LogSink
    assert resolve(entries["json-lines"].factory) is JsonLinesSink
    info = plugin.polyattn_plugin_info()
    assert {entry.family for entry in entries.values()} == {info.family} == {"core"}
    assert info.distribution == "polyattn-core"
