"""What is in this repository, for the tests that look at it as a whole."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Distribution:
    """One distribution: its folder, its manifest and its one import package."""

    folder: Path
    manifest: dict[str, Any]
    package: str

    @property
    def name(self) -> str:
        """The name that `pip install` knows it by."""
        return str(self.manifest["project"]["name"])

    @property
    def source(self) -> Path:
        """The folder of the import package."""
        return self.folder / "src" / self.package

    @property
    def family(self) -> str | None:
        """The family that it provides; None where it is not a plugin."""
        plugins = self.manifest["project"].get("entry-points", {}).get("polyattn.plugins", {})
        return next(iter(plugins), None)

    def modules(self) -> dict[str, Path]:
        """Dotted name → file, for every module."""
        files = sorted(self.source.rglob("*.py"))
        return {_dotted(file.relative_to(self.folder / "src")): file for file in files}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    return tomllib.loads(path.read_text("utf-8"))


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _distributions() -> list[Distribution]:
    members = read_toml(ROOT / "pyproject.toml")["tool"]["uv"]["workspace"]["members"]
    folders = [folder for pattern in members for folder in sorted(ROOT.glob(pattern))]
    found = []
    for folder in folders:
        manifest = read_toml(folder / "pyproject.toml")
        (package,) = manifest["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        found.append(Distribution(folder, manifest, Path(package).name))
    return found


DISTRIBUTIONS = _distributions()
FAMILIES = [d for d in DISTRIBUTIONS if d.folder.parent.name == "plugins"]
"""Those with mechanisms: core and the SDK offer sinks alone."""
