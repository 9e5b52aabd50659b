"""Fake distributions: real metadata and modules in a folder on `sys.path`, nothing mocked."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from polyattn_core import diagnostics
from polyattn_registry import Registry

_numbers = itertools.count()

MANIFEST = """
from polyattn_core.hooks import hookimpl
from polyattn_core.spec import (
    Capabilities, ConformanceCase, EntrySpec, MechanismSpec, MetricSpec, PluginInfo, PresetSpec,
)


def mechanism(name, **more):
    return MechanismSpec(
        name=name, family={family!r}, summary=f"Attention called {{name}}",
        factory="{package}.mechanism:Mechanism", config="{package}.config:Config",
        reference="{package}.mechanism:reference", **more,
    )


@hookimpl
def polyattn_plugin_info():
    return PluginInfo(
        family={family!r}, summary="A fake", distribution={distribution!r}, version="1.0",
        api_version={api_version},
    )


@hookimpl
def polyattn_mechanisms():
    return [{mechanisms}]


{extra}
"""

CONFIG = """
from pydantic import Field
from polyattn_core.config import AttentionConfig


class Config(AttentionConfig):
    window: int = Field(default=4, ge=1, le=64)
    causal: bool = False
"""

MECHANISM = """
class Mechanism:
    def __init__(self, config, *, spec):
        self.config, self.spec = config, spec


def reference(query, key, value):
    return value
"""


class Site:
    """A folder in which distributions are installed, and registries that look nowhere else."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def registry(self) -> Registry:
        return Registry([str(self.path)])

    def install(
        self,
        distribution: str,
        files: Mapping[str, str],
        entry_points: str,
        *,
        version: str = "1.0",
        metadata: str | None = None,
    ) -> Path:
        """Write a distribution; returns its metadata folder."""
        for name, text in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        if metadata is None:
            metadata = f"Name: {distribution}\nVersion: {version}\nSummary: From the metadata"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{metadata}\n", "utf-8")
        (info / "entry_points.txt").write_text(entry_points, "utf-8")
        return info

    def plugin(
        self,
        family: str,
        mechanisms: Sequence[str] = (),
        *,
        distribution: str | None = None,
        extra: str = "",
        before: str = "",
        entry: str | None = None,
        api_version: object = 1,
        version: str = "1.0",
    ) -> str:
        """Install a plugin that works, as far as the arguments let it; returns its package.

        A mechanism is a name, or the arguments of `mechanism(…)` as source. `before` and `extra`
        are source that runs before and after the rest of the manifest.
        """
        distribution = distribution or f"{family}-attention"
        package = f"fake_{family.replace('-', '_')}_{next(_numbers)}"
        calls = (m if "'" in m else repr(m) for m in mechanisms)
        manifest = MANIFEST.format(
            family=family,
            package=package,
            distribution=distribution,
            api_version=api_version,
            mechanisms=", ".join(f"mechanism({call})" for call in calls),
            extra=textwrap.dedent(extra).replace("PACKAGE", package),
        )
        files = {
            f"{package}/__init__.py": "",
            f"{package}/plugin.py": textwrap.dedent(before) + manifest,
            f"{package}/config.py": CONFIG,
            f"{package}/mechanism.py": MECHANISM,
        }
        line = entry or f"{family} = {package}.plugin"
        self.install(distribution, files, f"[polyattn.plugins]\n{line}\n", version=version)
        return package


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty site on `sys.path`; what is imported from it is forgotten afterwards."""
    monkeypatch.delenv("POLYATTN_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("POLYATTN_STRICT", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]


@pytest.fixture
def listen() -> Iterator[Callable[[type[diagnostics.Event]], list[diagnostics.Event]]]:
    """Collect events of a type until the test ends."""
    undos = []

    def collect(event: type[diagnostics.Event]) -> list[diagnostics.Event]:
        seen: list[diagnostics.Event] = []
        undos.append(diagnostics.subscribe(event, seen.append))
        return seen

    yield collect
    for undo in undos:
        undo()
