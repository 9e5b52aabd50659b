"""What has to agree between the distributions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from workspace import DISTRIBUTIONS, FAMILIES, ROOT, Distribution, read_toml

each_distribution = pytest.mark.parametrize("dist", DISTRIBUTIONS, ids=lambda dist: dist.name)

DISTRIBUTION_OF = {"sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}
"""Import name → distribution, where they differ by more than a hyphen."""


def requirements(dist: Distribution) -> list[str]:
    project = dist.manifest["project"]
    optional = project.get("optional-dependencies", {}).values()
    return [*project["dependencies"], *(line for group in optional for line in group)]


def required_name(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return name.group().lower().replace("_", "-")


def top_level_imports(source: str) -> set[str]:
    """First parts of all absolute imports, wherever they stand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


@each_distribution
def test_what_is_imported_is_required(dist: Distribution) -> None:
    declared = {required_name(line) for line in requirements(dist)}
    imported = {
        DISTRIBUTION_OF.get(name, name.replace("_", "-"))
        for path in dist.modules().values()
        for name in top_level_imports(path.read_text("utf-8"))
        if name not in sys.stdlib_module_names and name != dist.package
    }
    assert imported <= declared


@each_distribution
def test_versions_are_in_step(dist: Distribution) -> None:
    version = read_toml(ROOT / "pyproject.toml")["project"]["version"]
    text = (dist.source / "__init__.py").read_text("utf-8")
    written = re.search(r'^__version__ = "(.*)"$', text, re.MULTILINE)
    assert dist.manifest["project"]["version"] == version
    assert written is None or written.group(1) == version


@each_distribution
def test_licences_are_those_of_the_root(dist: Distribution) -> None:
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        assert (dist.folder / name).read_bytes() == (ROOT / name).read_bytes()


def test_every_family_is_an_extra() -> None:
    extras = read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    for family in FAMILIES:
        assert (
            f"{family.name} @ {{root:uri}}/{family.folder.relative_to(ROOT)}"
            in (extras[str(family.family)])
        )
        assert re.search(rf"[\[,]{family.family}[,\]]", everything)


def test_uv_finds_every_distribution_in_the_clone() -> None:
    sources = read_toml(ROOT / "pyproject.toml")["tool"]["uv"]["sources"]
    assert set(sources) == {dist.name for dist in DISTRIBUTIONS}


def test_coverage_watches_every_distribution() -> None:
    watched = read_toml(ROOT / "pyproject.toml")["tool"]["coverage"]["run"]["source_pkgs"]
    assert set(watched) == {dist.package for dist in DISTRIBUTIONS}


def test_no_lock_file_is_tracked() -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert {"uv.lock", "pylock.toml", "pylock.*.toml"} <= set(ignored)
    if (ROOT / ".git").exists():
        listing = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "--", "*uv.lock", "*pylock*.toml"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert listing.stdout == ""
