"""Compiled code on disk: found again, never stale, and no trouble where there is trouble."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import pytest

from polyattn_core.diagnostics import KernelCompiled
from polyattn_core.simd import cache
from polyattn_core.simd.jit import Kernel

Scope = dict[str, Any]

PROGRAM = """
import ctypes
import numpy as np
from polyattn_core import kernel_events
from polyattn_core.diagnostics import KernelCompiled, subscribe
from polyattn_core.simd import target
from polyattn_core.simd.cache import KernelCache
from polyattn_core.simd.rules import score_rule

kernel_events.connect()
seen = []
subscribe(KernelCompiled, seen.append)

@score_rule
def {name}(score, factor):
    return score * factor + np.float32({constant})

wide = target.tile("float32").queries
scores, factor = np.ones(wide, np.float32), np.array([3.0], np.float32)
meta = np.array([0, 0, 0, 0, 1])
kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 6)
arguments = (scores, scores, meta, scores, scores, factor)
kind({name}.address("float32", backward=False))(*[a.ctypes.data for a in arguments])
assert (scores == 3 + {constant}).all(), scores
print(*[event.from_cache for event in seen], KernelCache.problem)
"""


def program(name: str = "shifted", constant: float = 1.0) -> str:
    return PROGRAM.format(name=name, constant=constant)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for compiled kernels; not made yet."""
    chosen = tmp_path / "kernels"
    monkeypatch.setenv("POLYATTN_CACHE_DIR", str(chosen))
    monkeypatch.setattr(cache.KernelCache, "problem", "")
    return chosen


@pytest.fixture
def compile_one(listen: Any) -> Callable[[], bool]:
    """Compile the same small kernel anew, call it; was it loaded?"""
    seen = listen(KernelCompiled)

    def run() -> bool:
        def doubled(x):  # type: ignore[no-untyped-def]
            return x + x

        kernel = Kernel(doubled, numba.float64(numba.float64), "test")
        assert kernel(21.0) == 42.0
        return bool(seen[-1].from_cache)

    return run


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---- finding it again -----------------------------------------------------------------------


def test_a_second_process_loads_what_the_first_compiled(folder: Path, run_python: Any) -> None:
    assert run_python(program()).split() == ["False"]
    assert run_python(program()).split() == ["True"]
    # Another constant in the code of the rule is another rule.
    assert run_python(program(constant=2.0)).split() == ["False"]
    assert len(files(folder)) == 2


def test_the_folder_belongs_to_the_user_and_to_one_generation(
    folder: Path, compile_one: Any
) -> None:
    assert compile_one() is False
    assert compile_one() is True
    (made,) = folder.iterdir()
    assert made.name == cache.generation()
    assert len(files(folder)) == 1
    if os.name == "posix":
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_other_sources_are_another_generation(tmp_path: Path) -> None:
    digests = []
    for number, (kernels, helper) in enumerate((("a", "b"), ("a", "b"), ("a", "c"), ("c", "b"))):
        package = tmp_path / str(number) / "kernels"
        (package / "inner").mkdir(parents=True)
        (package / "kernels.py").write_text(kernels)
        (package / "inner" / "helper.py").write_text(helper)
        (package / "notes.txt").write_text(str(number))
        digests.append(cache.sources_digest(package))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYATTN_CACHE_DIR", str(tmp_path))
    assert cache.folder().parent == tmp_path
    monkeypatch.delenv("POLYATTN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    if sys.platform == "linux":
        assert cache.base_folder() == tmp_path / "x" / "polyattn" / "kernels"


def test_clearing(folder: Path, compile_one: Any) -> None:
    compile_one()
    (folder / "older").mkdir()
    (folder / "older" / "x.kernel").touch()
    (folder / "older" / "notes.txt").touch()
    assert cache.clear() == 2
    assert [path.name for path in files(folder)] == ["notes.txt"]
    assert cache.clear() == 0
    assert compile_one() is False


# ---- trouble --------------------------------------------------------------------------------


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """One bit in the machine code."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [halved, flipped, lambda c: b"", lambda c: b"\x80\x04N.", lambda c: c + b"\0", os.urandom],
    ids=["halved", "flipped", "emptied", "another pickle", "longer", "noise"],
)
def test_a_damaged_file_is_replaced(
    folder: Path, compile_one: Any, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    compile_one()
    (file,) = files(folder)
    content = file.read_bytes()
    file.write_bytes(damage(4096 if damage is os.urandom else content))
    with caplog.at_level(logging.WARNING, "polyattn.cache"):
        assert compile_one() is False
    assert [record.getMessage() for record in caplog.records] == [
        f"{file} is damaged: the kernel is compiled anew"
    ]
    assert compile_one() is True
    assert files(folder) == [file]
    assert cache.KernelCache.problem == ""


def test_a_folder_that_cannot_be_made(
    tmp_path: Path,
    compile_one: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("POLYATTN_CACHE_DIR", str(file / "kernels"))
    monkeypatch.setattr(cache.KernelCache, "problem", "")
    with caplog.at_level(logging.WARNING, "polyattn.cache"):
        assert compile_one() is False
        assert compile_one() is False
    # Told once, and kept for whoever asks.
    (record,) = caplog.records
    assert record.getMessage().startswith("compiled kernels are not cached: cannot ")
    assert str(file) in cache.KernelCache.problem


_NOBODY = 65534


@contextlib.contextmanager
def not_root(folder: Path) -> Iterator[None]:
    """As a user that may not write everywhere, and to whom the folder belongs."""
    if os.geteuid() != 0:
        yield
        return
    os.chown(folder, _NOBODY, -1)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_folder_that_may_not_be_written(
    compile_one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as name:  # that of pytest may not be entered by others
        monkeypatch.setenv("POLYATTN_CACHE_DIR", name)
        monkeypatch.setattr(cache.KernelCache, "problem", "")
        with not_root(Path(name)):
            Path(name).chmod(0o500)
            assert compile_one() is False
            Path(name).chmod(0o700)
        assert "cannot write" in cache.KernelCache.problem
        assert name in cache.KernelCache.problem


def test_a_user_without_a_home(compile_one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("POLYATTN_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(cache.KernelCache, "problem", "")
    assert compile_one() is False
    assert "home directory" in cache.KernelCache.problem


def test_a_file_that_cannot_be_written_leaves_nothing_behind(
    folder: Path, compile_one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert compile_one() is False
    assert files(folder) == []
    assert "No space left" in cache.KernelCache.problem


def test_processes_that_compile_at_once_do_not_break_each_other(
    folder: Path, run_python: Any
) -> None:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    programs = [program(), program(), program("other", 5.0)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for code in programs
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert {file.suffix for file in files(folder)} == {".kernel"}
    assert len(files(folder)) == 2
    assert run_python(program()).split() == ["True"]
