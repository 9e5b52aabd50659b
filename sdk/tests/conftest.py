"""What the tests of the SDK share: the command line in this process, and mechanisms to register."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import polyattn as pa
from polyattn.cli import app

sys.path.insert(0, str(Path(__file__).parent / "support"))


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run a command line; standard output is a pipe, as far as it can tell."""
    monkeypatch.delenv("COLUMNS", raising=False)  # which parallel runs of pytest set
    command = typer.main.get_command(app)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            command([str(argument) for argument in arguments], prog_name="polyattn")
        out, err = capsys.readouterr()
        return Result(int(caught.value.code or 0), out, err)

    return run


@pytest.fixture
def registered() -> Iterator[Callable[..., pa.MechanismSpec]]:
    """Register mechanisms of the module `sdk_fakes` until the test ends."""
    undo = []

    def register(name: str, factory: str, **options: Any) -> pa.MechanismSpec:
        spec = pa.MechanismSpec(
            name=name,
            family="acme",
            summary=options.pop("summary", f"The fake {name}"),
            factory=f"sdk_fakes:{factory}",
            config=options.pop("config", "sdk_fakes:Config"),
            reference="sdk_fakes:reference",
            **options,
        )
        undo.append(pa.register(spec))
        return spec

    yield register
    for call in undo:
        call()
