"""Importing what everybody imports is cheap; importing anything works."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from workspace import DISTRIBUTIONS, FAMILIES

HEAVY = {"altair", "llvmlite", "numba", "numpy", "pandas", "pydantic", "scipy", "sklearn", "torch"}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has imported after running `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "code",
    [
        "import polyattn",
        "import polyattn; polyattn.available()",
        "import polyattn_registry",
        "import polyattn_core.hooks",
        "import polyattn_testing.pytest_plugin",
        *(f"import {family.package}.plugin" for family in FAMILIES),
    ],
)
def test_light_import(code: str) -> None:
    assert not modules_after(code) & HEAVY


@pytest.mark.parametrize(
    "name",
    [name for dist in DISTRIBUTIONS for name in dist.modules() if not name.endswith(".__main__")],
)
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)
