"""What all commands share: help, errors, exit codes, completion, what is imported."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer

import polyattn as pa
import polyattn_registry
from polyattn.cli import _lazy
from polyattn.cli._lazy import ENTRIES
from polyattn_core.errors import PolyattnError
from polyattn_core.spec import resolve

Cli = Callable[..., Any]
HEAVY = {"llvmlite", "numba", "numpy", "pydantic", "scipy"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "flash", "--json"],
        ["list", "--family", "sparse", "--tag", "softmax"],
        ["presets"],
        ["plugins"],
        ["run", "--help"],
        ["compare", "--help"],
        ["warmup", "--help"],
        ["cache", "clear", "--help"],
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    script = f"""
import json, sys
sys.argv = ["polyattn", *{arguments!r}]
from polyattn.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
print("\\n" + json.dumps([*sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not modules & HEAVY


def test_help_names_every_command(cli: Cli) -> None:
    result = cli("--help")
    assert result.code == 0
    for entry in ENTRIES:
        assert entry.name in result.out
        assert entry.help.split(":")[0] in result.out
    assert cli().code in (0, 2)  # depends on the version of typer


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_help_agrees_with_the_command(entry: _lazy.Entry, cli: Cli) -> None:
    target = resolve(entry.reference)
    text = target.info.help if isinstance(target, typer.Typer) else target.__doc__
    assert text.partition("\n")[0] == entry.help
    result = cli(entry.name, "--help")
    assert result.code == 0
    assert entry.help.split(":")[0] in " ".join(result.out.split())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_command_has_json(entry: _lazy.Entry, cli: Cli) -> None:
    arguments = ("cache", "clear") if entry.name == "cache" else (entry.name,)
    assert "--json" in cli(*arguments, "--help").out


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"polyattn {pa.__version__}\n"


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "polyattn", "nope"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Usage: polyattn " in done.stderr


def failing_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(polyattn_registry, "available", fail)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PolyattnError("a [tag]\n  of two lines"), "Error: a [tag] of two lines\n"),
        (PermissionError(errno.EACCES, "Permission denied", "x.npy"), "Permission denied: 'x.npy'"),
        (MemoryError(), "Error: MemoryError\n"),
        (MemoryError("Unable to allocate 9 TiB"), "Error: Unable to allocate 9 TiB\n"),
    ],
)
def test_errors_are_one_line(
    error: BaseException, text: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_with(error, monkeypatch)
    result = cli("list")
    assert (result.code, result.out) == (1, "")
    assert text in result.err
    assert result.err.count("\n") == 1
    result = cli("list", "--json")
    assert result.code == 1
    assert result.json["error"]["type"] == type(error).__name__


def test_notes_of_errors_are_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    error = PolyattnError("no")
    error.add_note("because of this")
    failing_with(error, monkeypatch)
    assert cli("list").err == "Error: no\nbecause of this\n"
    assert cli("list", "--json").json["error"]["notes"] == ["because of this"]


def test_mistakes_of_our_own_are_not_hidden(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        cli("list")


def test_a_reader_that_leaves_is_no_error_of_ours() -> None:
    command = f"{sys.executable} -m polyattn list | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("polyattn in", {"info"}),
        ("polyattn info fla", {"flash"}),
        ("polyattn run stri", {"strided"}),
        ("polyattn warmup flash slid", {"sliding-window"}),
        ("polyattn list --family sp", {"sparse"}),
    ],
)
def test_shells_complete_names(line: str, found: set[str]) -> None:
    # As the script that --install-completion writes asks.
    import os

    environment = {**os.environ, "_POLYATTN_COMPLETE": "complete_bash", "COMP_WORDS": line}
    environment["COMP_CWORD"] = str(len(line.split()) - 1)
    done = subprocess.run(
        [sys.executable, "-m", "polyattn"], capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    assert {*done.stdout.split()} == found, done.stderr
