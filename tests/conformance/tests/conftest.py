"""Mechanisms, good and wrong, in a registry of their own or in distributions that pretend to be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyattn_registry import Registry

MECHANISMS = Path(__file__).parent / "mechanisms"
README = {
    "acme": "Here are `plain`, `off` and `known`.\n\n```pycon\n>>> 1 + 1\n2\n```\n",
    "heavy": "Of nothing by name.\n\n```pycon\n>>> 1 + 1\n3\n```\n",
}


@pytest.fixture(scope="session", autouse=True)
def mechanisms_on_path() -> Iterator[Path]:
    """References such as "acme_plain:Plain" are imported from here."""
    sys.path.insert(0, str(MECHANISMS))
    yield MECHANISMS
    sys.path.remove(str(MECHANISMS))


@pytest.fixture
def registry() -> Registry:
    """A registry without plugins."""
    return Registry(path=[])


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the metadata of two distributions, acme-attention and heavy-attention."""
    folder = tmp_path / "installed"
    for family in ("acme", "heavy"):
        metadata = folder / f"{family}_attention-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {family}-attention\nVersion: 1.0\n\n{README[family]}",
            "utf-8",
        )
        (metadata / "entry_points.txt").write_text(
            f"[polyattn.plugins]\n{family} = {family}_plugin\n", "utf-8"
        )
    return folder
