"""What the families of this repository have in common, beyond what every plugin has to."""

from __future__ import annotations

import re
from typing import Any

import pytest

import polyattn_registry
from polyattn_core.spec import MechanismSpec, resolve
from workspace import FAMILIES, Distribution

each_family = pytest.mark.parametrize(
    "dist",
    [dist for dist in FAMILIES if dist.family != "report"],  # which has metrics and advice
    ids=lambda dist: dist.family,
)
WITHOUT_SHARPNESS = {
    "graph": {"gat", "gatv2", "edge-featured"},  # learned
    "moe": {"moe", "expert-choice", "mixture-of-heads"},  # an option of the experts
    "sparse": {"cosformer", "retention", "gated-linear", "delta-rule", "gated-delta", "mamba2"},
    "standard": {"additive"},  # learned
    "topology": {"topology-gated"},  # an option of what is gated
}
"""Mechanisms that have no option that sharpens their weights."""


def specs(dist: Distribution) -> list[MechanismSpec]:
    names = polyattn_registry.available(family=str(dist.family))
    return [polyattn_registry.spec(name) for name in names]


def rows(text: str, heading: str) -> list[str]:
    """First cells of the rows of all tables whose heading begins with this word."""
    tables = re.findall(rf"^\| {heading} \|.*\n\|[-|: ]+\n((?:\|.*\n)*)", text, re.MULTILINE)
    return re.findall(r"^\| `([a-z0-9-]+)`", "".join(tables), re.MULTILINE)


@each_family
def test_docstrings_say_what_and_whence(dist: Distribution) -> None:
    for spec in specs(dist):
        text = resolve(spec.factory).__doc__
        assert spec.papers, spec.name
        for paper in spec.papers:
            assert (paper if paper.startswith("10.") else f"arXiv:{paper}") in text
        for heading in ("References", "Examples"):
            assert f"{heading}\n    ---" in text, spec.name
        assert "O(" in text, spec.name


@each_family
def test_sharpness(dist: Distribution) -> None:
    without = {spec.name for spec in specs(dist) if not spec.sharpness}
    assert without == WITHOUT_SHARPNESS.get(str(dist.family), set())


@each_family
def test_readme_lists_what_there_is(dist: Distribution) -> None:
    text = (dist.folder / "README.md").read_text("utf-8")
    found = specs(dist)
    assert sorted(rows(text, "name")) == sorted(spec.name for spec in found)
    presets: Any = polyattn_registry.available(kind="preset", family=str(dist.family))
    assert sorted(rows(text, "preset")) == sorted(name.rpartition("/")[2] for name in presets)
    for spec in found:
        for paper in spec.papers:
            assert paper in text, (spec.name, paper)
