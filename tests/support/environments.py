"""Virtual environments for the tests that install something."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command; its output, or a failed test that shows it."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}", pytrace=False)
    return done.stdout


class Environment:
    """A virtual environment with nothing in it but pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        run(sys.executable, "-m", "venv", folder, cwd=folder.parent)

    def install(self, *arguments: str | Path) -> None:
        """Install by uv where it is there, which is much faster, else by pip."""
        if find_spec("uv"):
            uv = (sys.executable, "-m", "uv", "pip", "install", "--quiet")
            run(*uv, "--python", self.bin / "python", *arguments, cwd=self.folder)
        else:
            self.pip_install(*arguments, cwd=self.folder)

    def pip_install(self, *arguments: str | Path, cwd: Path) -> None:
        """Install by the pip that came with this Python."""
        pip = (self.bin / "python", "-m", "pip", "--disable-pip-version-check", "install")
        run(*pip, "--quiet", *arguments, cwd=cwd)

    def run(self, code: str) -> str:
        """What a program prints here, with nothing of the clone on its path."""
        return run(self.bin / "python", "-I", "-c", code, cwd=self.folder)
