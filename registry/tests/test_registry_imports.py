"""What is imported when, seen from a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import polyattn_core.resolver
import polyattn_registry

HEAVY = {"numpy", "pydantic", "numba", "scipy", "polyattn_core.config"}
FIRST_USE = {"pluggy", "importlib_metadata", "polyattn_core.hooks", "dataclasses"}


def modules_after(site: Any, code: str) -> set[str]:
    paths = [str(site.path), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    code = f"{code}\nimport sys\nprint(*sys.modules)"
    # -S: without the start-up files of other packages, which import what they like.
    command = [sys.executable, "-S", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_importing_the_registry_is_light(site: Any) -> None:
    loaded = modules_after(site, "import polyattn_registry")
    assert loaded.isdisjoint(HEAVY | FIRST_USE)


def test_listing_imports_manifests_only(site: Any) -> None:
    package = site.plugin("acme", ["one", "two"])
    code = """
from polyattn_registry import Registry
import sys
registry = Registry([sys.argv[0] or sys.path[1]])
assert registry.available() == ["one", "two"], registry.plugins()
assert registry.spec("one").full_name == "acme/one"
assert registry.available(capability="causal") == ["one", "two"]
assert registry.plugins()[0].state == "loaded"
assert registry.presets() == []
""".replace("sys.argv[0] or sys.path[1]", repr(str(site.path)))
    loaded = modules_after(site, code)
    assert loaded.isdisjoint(HEAVY)
    assert f"{package}.plugin" in loaded
    assert loaded.isdisjoint({f"{package}.config", f"{package}.mechanism"})


def test_the_default_registry_finds_what_is_on_the_path(site: Any) -> None:
    package = site.plugin("acme-of-the-tests", ["one"])
    loaded = modules_after(
        site,
        """
import polyattn_registry
from polyattn_core import resolver
assert "one" in polyattn_registry.available(family="acme-of-the-tests")
assert resolver.current() is polyattn_registry.default
assert resolver.current().create("acme-of-the-tests/one", dim=4).config.dim == 4
assert "one" in resolver.alternatives("causal", limit=1000)
""",
    )
    assert f"{package}.mechanism" in loaded


def test_the_default_registry_is_the_resolver() -> None:
    assert polyattn_core.resolver.current() is polyattn_registry.default


def test_everything_public_exists() -> None:
    for name in polyattn_registry.__all__:
        assert getattr(polyattn_registry, name).__doc__
