"""What several tests of core need: a small mechanism on the engine, and fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polyattn_core import diagnostics
from polyattn_core.mechanism import Mechanism
from polyattn_core.spec import Capabilities, MechanismSpec
from polyattn_core.streaming import STREAMING_STATISTICS, ScaledConfig, StreamingMechanism

Run = Callable[..., str]


class Plain(StreamingMechanism):
    """Soft-max attention: the engine with nothing added."""


def specification(capabilities: Capabilities | None = None) -> MechanismSpec:
    default = Capabilities(statistics=STREAMING_STATISTICS, partial=True, dropout=True)
    return MechanismSpec(
        name="plain",
        family="tests",
        summary="Attention of the tests",
        factory="tests:Plain",
        config="tests:Config",
        reference="tests:reference",
        capabilities=capabilities or default,
    )


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """Build a mechanism: ``build(dim=8, heads=2, kind=…, schema=…, capabilities=…)``."""

    def make(
        kind: type[Mechanism] = Plain,
        schema: type[Any] = ScaledConfig,
        capabilities: Capabilities | None = None,
        **options: Any,
    ) -> Any:
        return kind(schema(**options), spec=specification(capabilities))

    return make


@pytest.fixture
def bus() -> diagnostics.Bus:
    """A bus that nobody else listens to."""
    return diagnostics.Bus()


@pytest.fixture
def listen() -> Iterator[Callable[[type[diagnostics.Event]], list[Any]]]:
    """Collect events of the process's bus until the test ends."""
    undos = []

    def collect(event: type[diagnostics.Event]) -> list[Any]:
        seen: list[Any] = []
        undos.append(diagnostics.subscribe(event, seen.append))
        return seen

    yield collect
    for undo in undos:
        undo()


@pytest.fixture(scope="session")
def run_python() -> Run:
    """Run a program in a fresh interpreter that imports from where this one does."""

    def run(
        code: str,
        *,
        cwd: Path | None = None,
        preexec: Callable[[], None] | None = None,
        **environment: str,
    ) -> str:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            preexec_fn=preexec,
        )
        assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
