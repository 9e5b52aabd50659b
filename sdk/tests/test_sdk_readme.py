"""What the readme shows is what happens."""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TEXT = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_python_runs() -> None:
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["out"].shape == (2, 128, 64)
    assert names["found"].shape == (64,)


SESSIONS = [
    (command, expected)
    for block in blocks("console")
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


@pytest.mark.parametrize(("command", "expected"), SESSIONS, ids=[c for c, _ in SESSIONS])
def test_commands_print_what_is_shown(
    command: str,
    expected: str,
    cli: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    rng = np.random.default_rng(0)
    np.save("query.npy", rng.standard_normal((2, 128, 64), dtype=np.float32))
    np.save("key.npy", rng.standard_normal((2, 512, 64), dtype=np.float32))
    result = cli(*shlex.split(command)[1:])
    found = result.out + result.err
    assert doctest.OutputChecker().check_output(expected, found, doctest.ELLIPSIS), found


def test_there_are_sessions() -> None:
    assert len(SESSIONS) == 5
