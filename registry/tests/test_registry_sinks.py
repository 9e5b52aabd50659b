"""The families that are no family of mechanisms: core and the SDK, which offer sinks."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from polyattn_core.errors import NotInstalledError, ReservedNameError
from polyattn_core.sinks import JsonLinesSink, LogSink
from polyattn_core.spec import EntrySpec
from polyattn_registry import first_party


@pytest.fixture
def with_core(site: Any) -> Any:
    entry_points = "[polyattn.plugins]\ncore = polyattn_core.plugin\n"
    site.install("polyattn-core", {}, entry_points)
    return site


def test_core_offers_sinks(with_core: Any) -> None:
    registry = with_core.registry()
    assert registry.available(kind="sink") == ["json-lines", "log"]
    assert registry.resolve("log", "sink") is LogSink
    assert registry.resolve("core/Json_Lines", "sink") is JsonLinesSink
    assert registry.resolve("log", "sink")("warning").level == logging.WARNING
    assert registry.available() == []
    (status,) = registry.plugins()
    assert (status.state, status.mechanisms, status.family) == ("loaded", 0, "core")


def test_sinks_of_others_stand_beside_those_of_core(with_core: Any) -> None:
    with_core.plugin(
        "acme",
        extra="""
        @hookimpl
        def polyattn_entries():
            return [
                EntrySpec(kind="sink", name=name, family="acme", summary="", factory="math:sqrt")
                for name in ("log", "statsd")
            ]
        """,
    )
    registry = with_core.registry()
    assert registry.available(kind="sink") == ["acme/log", "json-lines", "log", "statsd"]
    assert registry.resolve("log", "sink") is LogSink
    with pytest.raises(ReservedNameError):
        registry.prefer("log", "acme/log", "sink")


@pytest.mark.parametrize(
    ("family", "distribution"), [("core", "polyattn-core"), ("sdk", "polyattn")]
)
def test_only_their_own_distribution_provides_them(
    site: Any, family: str, distribution: str
) -> None:
    assert first_party.distribution_of(family) == distribution
    site.plugin(family, ["one"], distribution=f"acme-{family}")
    registry = site.registry()
    (status,) = registry.plugins()
    assert status.reason == f"the family {family!r} is reserved for {distribution}"
    with pytest.raises(NotInstalledError) as caught:
        registry.spec(f"{family}/log", "sink")
    assert f"pip install {distribution}" in str(caught.value)
    entry = EntrySpec(kind="sink", name="log", family=family, summary="", factory="math:sqrt")
    with pytest.raises(ReservedNameError):
        registry.register(entry)
    site.plugin(family, ["two"], distribution=distribution)
    registry.refresh()
    assert registry.available() == ["two"]
