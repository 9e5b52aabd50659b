"""Wheels of every distribution, built once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from environments import run
from workspace import DISTRIBUTIONS, ROOT


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name → wheel, for each distribution and the workspace."""
    built: dict[str, Path] = {}
    folders = {dist.name: dist.folder for dist in DISTRIBUTIONS} | {"polyattn-workspace": ROOT}
    for name, folder in folders.items():
        target = tmp_path_factory.mktemp(name)
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target, cwd=folder)
        (built[name],) = target.glob("*.whl")
    return built
