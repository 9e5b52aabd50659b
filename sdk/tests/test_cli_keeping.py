"""`polyattn plugins`, `doctor`, `warmup` and `cache`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import polyattn as pa
import polyattn_registry
from polyattn import _health, _warmup
from polyattn_core.mechanism import Mechanism
from polyattn_core.simd import halves
from polyattn_core.streaming import StreamingMechanism
from polyattn_registry import PluginStatus

Cli = Callable[..., Any]
FAILED = PluginStatus(
    family="acme", distribution="acme-attention", version="1.0", summary="", state="failed",
    reason="ImportError: no [tools]", error="Traceback …\nImportError: no [tools]\n",
)  # fmt: skip


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = polyattn_registry.plugins()
    monkeypatch.setattr(polyattn_registry, "plugins", lambda: [*found, FAILED])


def test_plugins(cli: Cli) -> None:
    result = cli("plugins")
    assert result.code == 0
    assert "polyattn-sparse" in result.out
    found = {plugin["family"]: plugin for plugin in cli("plugins", "--json").json}
    assert found["sparse"]["state"] == "loaded"
    assert found["sparse"]["mechanisms"] == len(pa.available(family="sparse"))


def test_plugins_in_a_narrow_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = cli("plugins").out.splitlines()
    assert "Version" in lines[0]
    assert len(lines) == 2 + len(polyattn_registry.plugins())


@pytest.mark.usefixtures("failing")
def test_plugins_say_what_failed(cli: Cli) -> None:
    result = cli("plugins")
    assert result.code == 0
    assert "acme acme-attention 1.0 failed 0 0 ms" in " ".join(result.out.split())
    assert result.err == "acme-attention: ImportError: no [tools]\n"


def test_no_plugins(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polyattn_registry, "plugins", list)
    assert "no plugin is installed; for a start: pip install" in cli("plugins").err
    assert cli("plugins", "--json").json == []
    assert "none is installed" in cli("doctor").out


def test_doctor(cli: Cli) -> None:
    result = cli("doctor")
    assert result.code == 0, result.out
    for text in ("numba", "processor", "vectors", "threads", "cache state", "polyattn-sparse"):
        assert text in result.out
    found = cli("doctor", "--json").json
    assert found["ok"] is True
    assert found["versions"]["polyattn"]["value"] == pa.__version__
    assert found["kernels"]["cache state"]["state"] == "ok"
    assert {plugin["family"] for plugin in found["plugins"]} >= {"sparse", "standard"}


@pytest.mark.usefixtures("failing")
def test_doctor_shows_the_whole_error_of_a_plugin(cli: Cli) -> None:
    result = cli("doctor")
    assert result.code == 1
    assert "Traceback …\nImportError: no [tools]" in result.out
    assert "1 problem found" in result.out
    assert cli("doctor", "--json").json["ok"] is False


def test_doctor_finds_a_cache_that_cannot_be_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("POLYATTN_CACHE_DIR", str(tmp_path / "file" / "kernels"))
    result = cli("doctor")
    assert result.code == 1
    assert "cannot be written: Not a directory" in result.out
    assert "set POLYATTN_CACHE_DIR to a folder that can be written" in result.out
    assert f"POLYATTN_CACHE_DIR  {tmp_path}" in result.out


def test_doctor_reports_kernels_of_other_versions(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYATTN_CACHE_DIR", str(tmp_path))
    assert "0 compiled, 0.0 MB (polyattn warmup compiles them" in cli("doctor").out
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.kernel").write_bytes(bytes(2_000_000))
    assert "1 of other versions, 2.0 MB (polyattn cache clear" in cli("doctor").out
    assert list(tmp_path.iterdir()) == [tmp_path / "old"]  # looking leaves no traces


def test_doctor_compares_vectors_with_those_of_the_machine(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyattn_core.simd import target

    monkeypatch.setattr(target, "machine_vector_bytes", target.vector_bytes)
    assert "the widest of this machine" in cli("doctor").out
    monkeypatch.setattr(target, "machine_vector_bytes", lambda: 2 * target.vector_bytes())
    narrow = cli("doctor", "--json").json["processor"]["vectors"]
    assert narrow["state"] == "warning"
    assert "slower than they could be; unset POLYATTN_VECTOR_BYTES" in narrow["advice"]
    monkeypatch.setattr(target, "machine_vector_bytes", lambda: target.vector_bytes() // 2)
    assert "may crash" in cli("doctor").out


def test_doctor_finds_what_cannot_be_imported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    result = cli("doctor")
    assert result.code == 1
    assert "ModuleNotFoundError: import of numba halted" in result.out


def test_doctor_survives_what_breaks_under_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyattn_core.simd import target

    def broken() -> int:
        raise ValueError("POLYATTN_VECTOR_BYTES: got '7'; expected 16, 32 or 64")

    monkeypatch.setattr(target, "vector_bytes", broken)
    found = cli("doctor", "--json")
    assert found.code == 1
    assert "expected 16, 32 or 64" in found.json["processor"]["processor"]["value"]


def test_doctor_finds_packages_of_different_series(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polyattn_registry, "__version__", "0.2.0")
    result = cli("doctor")
    assert result.code == 1
    assert "of several series: 0.1, 0.2 (upgrade them together)" in result.out


def test_doctor_remarks_on_switched_off_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    finding = next(f for f in _health.examine()["Kernels"] if f.name == "compilation")
    assert finding.state == "warning"


def test_warmup_compiles_what_a_mechanism_needs(cli: Cli, registered: Callable[..., Any]) -> None:
    registered("doubled", "Doubled", capabilities=pa.Capabilities(gradient=False))
    found = cli("warmup", "doubled", "--dtype", "float64", "--json").json
    assert found["mechanisms"] == ["doubled"]
    assert found["failures"] == {}
    (kernel,) = (k for k in found["kernels"] if "doubled" in k["kernel"])
    assert "float64" in kernel["kernel"]
    assert kernel["seconds"] > 0
    # Only once in a process: what is left is the other data type.
    result = cli("warmup", "doubled")
    assert result.out.count("score rule doubled") == 1
    assert "float32" in result.out
    assert "1 mechanism ready: " in result.out
    assert cli("warmup", "doubled").out == "1 mechanism ready: nothing had to be compiled\n"


@pytest.mark.parametrize(
    ("dtype", "storages"),
    [
        ("float32", {"float32", "float16", "bfloat16", "int8", "int4"}),
        ("float64", {"float64"}),
    ],
)
def test_warmup_decodes_from_caches_in_every_format(
    monkeypatch: pytest.MonkeyPatch, dtype: str, storages: set[str]
) -> None:
    decoded = []
    attend_cached = Mechanism.attend_cached

    def spy(self: Any, query: Any, cache: Any) -> Any:
        decoded.append(cache.storage)
        return attend_cached(self, query, cache)

    monkeypatch.setattr(Mechanism, "attend_cached", spy)
    _warmup.exercise(polyattn_registry.spec("flash"), (dtype,))
    assert set(decoded) == storages


def test_warmup_attends_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ml_dtypes")
    chosen = []
    forward = StreamingMechanism._forward_narrow

    def spy(self: Any, call: Any) -> Any:
        chosen.append(halves.pays(call.query, call.key))
        return forward(self, call)

    monkeypatch.setattr(StreamingMechanism, "_forward_narrow", spy)
    _warmup.exercise(polyattn_registry.spec("flash"), ("float32",))
    assert chosen
    assert all(chosen)


@pytest.mark.slow
def test_warmup_compiles_one_data_type_in_a_process_beside(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYATTN_CACHE_DIR", str(tmp_path))
    with _warmup.beside(["sliding-window"], ["float64"]) as helper:
        found = helper.wait()
    assert found
    assert not any("float32" in name for name in found)
    assert all(kernel.seconds > 0 for kernel in found.values())
    # Another process has nothing left to do.
    with _warmup.beside(["sliding-window"], ["float64"]) as helper:
        assert helper.wait() == {}


def test_warmup_does_itself_what_another_process_cannot() -> None:
    for names, dtypes in ((["no-such-mechanism"], ["float64"]), (["flash"], [])):
        with _warmup.beside(names, dtypes) as helper:
            assert helper.wait() == {}


def test_warmup_exercises_everything_installed(cli: Cli) -> None:
    found = cli("warmup", "--dtype", "float32", "--json")
    assert found.json["failures"] == {}
    assert found.json["mechanisms"] == pa.available()
    assert found.code == 0


def test_warmup_goes_on_after_a_failure(cli: Cli, registered: Callable[..., Any]) -> None:
    registered("broken", "Broken")
    registered("counting", "Counting", capabilities=pa.Capabilities(gradient=False))
    result = cli("warmup", "broken", "counting")
    assert result.code == 1
    assert result.err == "Error: broken: RuntimeError: out of [order]\n"
    found = cli("warmup", "broken", "counting", "--json")
    assert found.code == 1
    assert found.json["failures"] == {"broken": "RuntimeError: out of [order]"}


def test_warmup_looks_names_up_first(cli: Cli) -> None:
    result = cli("warmup", "flash", "flsh")
    assert result.code == 1
    assert "did you mean 'flash'?" in result.err
    assert cli("warmup", "--dtype", "int8").code == 2


def test_cache_clear(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYATTN_CACHE_DIR", str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.kernel").touch()
    (tmp_path / "a" / "notes.txt").touch()
    assert cli("cache", "clear").out == f"2 kernels deleted from {tmp_path}\n"
    assert cli("cache", "clear", "--json").json == {"folder": str(tmp_path), "deleted": 0}
    assert (tmp_path / "a" / "notes.txt").exists()
