"""The live view of diagnostics, on a console that writes to a string."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from rich.console import Console

import polyattn as pa
import polyattn_registry as registry
from polyattn.sinks import LiveSink
from polyattn_core import diagnostics as events
from polyattn_core.diagnostics import Bus


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=160)


@pytest.fixture
def bus() -> Bus:
    return Bus()


def shown(sink: LiveSink) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(sink.render())
    return written(console)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, start: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.strip("│ ").startswith(start))
    return [cell.strip() for cell in line.strip("│").split("│")]


def computed(name: str, seconds: float, **statistics: float) -> events.AttentionComputed:
    return events.AttentionComputed(
        name=name,
        query_shape=(2, 4, 10, 16),
        key_shape=(2, 4, 30, 16),
        value_shape=(2, 4, 30, 16),
        dtype="float32",
        seconds=seconds,
        statistics=statistics,
    )


@pytest.fixture
def attached(console: Console, bus: Bus) -> Iterator[LiveSink]:
    sink = LiveSink(console)
    undo = sink.attach(bus=bus)
    yield sink
    undo()


def test_calls_are_added_up(attached: LiveSink, bus: Bus) -> None:
    bus.publish(events.MechanismCreated(name="acme/one", options={}, seconds=0.1))
    bus.publish(computed("acme/one", 0.001, entropy=1.0))
    bus.publish(computed("acme/one", 0.003, entropy=2.0))
    bus.publish(computed("acme/two", 2.5))
    text = shown(attached)
    assert row(text, "acme/one") == [
        "acme/one", "1", "2", "4 ms", "2 ms", "2×4×10×16 · 2×4×30×16 float32", "1.500",
    ]  # fmt: skip
    assert row(text, "acme/two")[1:5] == ["0", "1", "2.5 s", "2.5 s"]
    assert row(text, "acme/two")[6] == ""


def test_a_mechanism_that_was_only_made(attached: LiveSink, bus: Bus) -> None:
    bus.publish(events.MechanismCreated(name="acme/one", options={}, seconds=0.1))
    assert row(shown(attached), "acme/one") == ["acme/one", "1", "0", "", "", "", ""]


def test_everything_else_is_below_the_table(attached: LiveSink, bus: Bus) -> None:
    for seconds in (1.5, 2.5):
        bus.publish(events.KernelCompiled(kernel="k", seconds=seconds, from_cache=False))
    bus.publish(events.KernelCompiled(kernel="k", seconds=0.0205, from_cache=True))
    bus.publish(events.MetricMeasured(metric="drift", value=1.0))
    bus.publish(events.MetricMeasured(metric="drift", value=0.12345))
    bus.publish(events.PluginFailed(plugin="acme-attention", reason="no [tools] here"))
    bus.publish(events.ModeChanged(name="acme/gated", before="full", after="sparse", coherence=0.5))
    text = shown(attached)
    lines = [line.strip() for line in text.splitlines()]
    assert "kernels compiled: 2 in 4.0 s" in lines
    assert "kernels loaded: 1 in 20.5 ms" in lines
    assert "drift: 0.1235" in lines
    assert "failed: acme-attention: no [tools] here" in lines
    assert row(text, "acme/gated")[5] == "(sparse)"


def test_what_looks_like_markup_is_text(attached: LiveSink, bus: Bus) -> None:
    bus.publish(computed("acme/[red]one[/red]", 1.0))
    assert "acme/[red]one[/red]" in shown(attached)


def test_of_all_events_of_the_process(console: Console) -> None:
    tokens = np.random.default_rng(0).standard_normal((2, 7, 8))
    with LiveSink(console) as sink:
        flash = pa.create("flash", dim=8, heads=2)
        flash(tokens)
        flash(tokens)
    line = row(shown(sink), "sparse/flash")
    assert line[1:3] == ["1", "2"]
    assert line[5] == "2×2×7×4 float64"
    # The mean over all rows of the entropy of 7 weights.
    entropy = flash.observe(*[tokens.reshape(2, 7, 2, 4).swapaxes(1, 2)] * 3, "entropy").entropy
    assert line[6] == f"{entropy.mean():.3f}"
    # No terminal: printed once, when the block ended, and nothing is counted afterwards.
    assert written(console).count("sparse/flash") == 1
    flash(tokens)
    assert row(shown(sink), "sparse/flash")[2] == "2"
    assert not events.wanted(events.AttentionComputed)


def test_in_a_terminal_the_table_follows(bus: Bus) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    undo = LiveSink(console, refresh=50).attach(bus=bus)
    bus.publish(computed("acme/one", 1.0))
    appeared = threading.Event()
    for _ in range(200):
        if "acme/one" in written(console):
            appeared.set()
            break
        threading.Event().wait(0.02)
    undo()
    assert appeared.is_set()


def test_threads_may_send_at_once(attached: LiveSink, bus: Bus) -> None:
    def send() -> None:
        for _ in range(200):
            bus.publish(computed("acme/one", 0.001))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert row(shown(attached), "acme/one")[2] == "800"
    assert bus.failures == {}


def test_it_can_be_attached_again(console: Console, bus: Bus) -> None:
    sink = LiveSink(console)
    for _ in range(2):
        undo = sink.attach(bus=bus)
        bus.publish(computed("acme/one", 1.0))
        undo()
        undo()
    assert row(shown(sink), "acme/one")[2] == "2"


def test_the_registry_finds_it() -> None:
    assert registry.resolve("live", "sink") is LiveSink
    assert registry.spec("sdk/live", "sink").summary


def test_importing_it_does_not_import_rich() -> None:
    code = "import sys, polyattn.sinks; assert 'rich' not in sys.modules, 'rich'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
