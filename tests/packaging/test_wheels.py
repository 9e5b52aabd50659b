"""What is in the wheels."""

from __future__ import annotations

import configparser
import email
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from workspace import DISTRIBUTIONS, FAMILIES, Distribution

each_distribution = pytest.mark.parametrize("dist", DISTRIBUTIONS, ids=lambda dist: dist.name)

ENTRY_POINTS = {
    "polyattn": {
        "console_scripts": {"polyattn": "polyattn.cli:main"},
        "polyattn.plugins": {"sdk": "polyattn.plugin"},
    },
    "polyattn-core": {"polyattn.plugins": {"core": "polyattn_core.plugin"}},
    "polyattn-testing": {"pytest11": {"polyattn": "polyattn_testing.pytest_plugin"}},
    **{
        family.name: {"polyattn.plugins": {family.family: f"{family.package}.plugin"}}
        for family in FAMILIES
    },
}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: Path) -> Message:
    (text,) = (data for name, data in contents(wheel).items() if name.endswith("/METADATA"))
    return email.message_from_bytes(text)


@each_distribution
def test_metadata(dist: Distribution, wheels: dict[str, Path]) -> None:
    about = metadata(wheels[dist.name])
    assert about["Name"] == dist.name
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "MIT OR Apache-2.0"
    assert set(about.get_all("License-File", [])) == {"LICENSE-MIT", "LICENSE-APACHE"}
    assert about["Summary"]
    assert str(about.get_payload()).startswith(f"# {dist.name}\n")


@each_distribution
def test_contents(dist: Distribution, wheels: dict[str, Path]) -> None:
    names = contents(wheels[dist.name])
    outside = [
        name
        for name in names
        if not name.startswith(f"{dist.package}/") and ".dist-info/" not in name
    ]
    assert not outside
    assert f"{dist.package}/py.typed" in names
    modules = {path.relative_to(dist.folder / "src").as_posix() for path in dist.modules().values()}
    assert {name for name in names if name.endswith(".py")} == modules


@each_distribution
def test_entry_points(dist: Distribution, wheels: dict[str, Path]) -> None:
    text = next(
        (
            data.decode()
            for name, data in contents(wheels[dist.name]).items()
            if name.endswith("/entry_points.txt")
        ),
        "",
    )
    parser = configparser.ConfigParser()
    parser.read_string(text)
    found = {section: dict(parser[section]) for section in parser.sections()}
    assert found == ENTRY_POINTS.get(dist.name, {})


@each_distribution
def test_requirements_admit_the_neighbours(dist: Distribution, wheels: dict[str, Path]) -> None:
    versions = {name: metadata(wheel)["Version"] for name, wheel in wheels.items()}
    for line in metadata(wheels[dist.name]).get_all("Requires-Dist", []):
        requirement = Requirement(line)
        assert requirement.url is None
        if requirement.name.startswith("polyattn"):
            assert requirement.specifier.contains(versions[requirement.name])
            assert "<" in str(requirement.specifier), "the next minor version may break it"


def test_workspace_holds_nothing_and_is_not_for_upload(wheels: dict[str, Path]) -> None:
    wheel = wheels["polyattn-workspace"]
    assert all(".dist-info/" in name for name in contents(wheel))
    about = metadata(wheel)
    assert about.get_all("Classifier") == ["Private :: Do Not Upload"]
    urls = {
        requirement.name: requirement.url
        for line in about.get_all("Requires-Dist", [])
        if (requirement := Requirement(line)).url
    }
    assert urls == {dist.name: dist.folder.as_uri() for dist in DISTRIBUTIONS}
