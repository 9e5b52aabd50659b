"""Fluent builders: made from schemas, every option effective, what is wrong is said."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyattn as pa
from polyattn import flash, linear, local_global, multi_head
from polyattn._stubs import stub
from polyattn_core.errors import ArgumentError, ConfigError, UnknownOptionError

STUB = Path(pa.__file__).with_name("builders.pyi")


def test_a_builder_is_create_in_other_words() -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 16))
    built = flash(16, 32).heads(4).causal().scale(0.3).build()
    made = pa.create("flash", dim=16, block_size=32, heads=4, causal=True, scale=0.3)
    assert built.config == made.config  # type: ignore[attr-defined]
    np.testing.assert_array_equal(built(x), made(x))


@pytest.mark.parametrize(
    ("made", "name", "options"),
    [
        (
            multi_head(768, 12).dropout(0.1).causal(True),
            "multi-head",
            {"heads": 12, "dropout": 0.1},
        ),
        (flash(1024, 128).causal(True).dropout(0.1), "flash", {"block_size": 128}),
        (linear(512, 256), "favor", {"features": 256}),
        (linear(512), "linear", {}),
        (local_global(512, 512), "local-global", {"window": 512}),
        (pa.sliding_window(64, 16), "sliding-window", {"window": 16}),
        (pa.top_k(64, 8), "top-k", {"k": 8}),
        (pa.cosine(64, 4), "cosine", {"heads": 4}),
    ],
)
def test_what_is_taken_by_position(made: Any, name: str, options: dict[str, Any]) -> None:
    assert made.spec.name == name
    config = made.build().config
    assert {option: getattr(config, option) for option in options} == options


@pytest.mark.parametrize("name", pa.available())
def test_every_mechanism_has_one_with_every_option(name: str) -> None:
    function = getattr(pa, name.replace("-", "_"))
    made = pa.builder(name)
    fields = type(made)._fields
    assert "dim" in inspect.signature(function).parameters
    for option, field in fields.items():
        assert getattr(type(made), option).__doc__ == field.description
        other = getattr(made, option)("a value")  # checked when it is built
        assert other.options == {option: "a value"}


def test_builders_never_change() -> None:
    base = flash(64)
    sharp, soft = base.scale(2.0), base.scale(0.5)
    assert base.options == {"dim": 64}
    assert (sharp.options["scale"], soft.options["scale"]) == (2.0, 0.5)
    with pytest.raises(TypeError):
        base.options["scale"] = 1.0  # type: ignore[index]


def test_presets() -> None:
    made = pa.builder("multi-head").preset("gpt2").heads(6)
    config = made.build().config  # type: ignore[attr-defined]
    assert (config.dim, config.heads, config.causal) == (768, 6, True)
    assert pa.builder("multi-head@gpt2", heads=6) == made
    with pytest.raises(LookupError, match="gpt3"):
        made.preset("gpt3").build()


def pickled(builder: Any) -> Any:
    return pickle.loads(pickle.dumps(builder))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])
def test_copies(again: Callable[[Any], Any]) -> None:
    made = pa.builder("multi-head@gpt2").dropout(0.0)
    assert again(made) == made != made.dropout(0.1)


def test_what_it_looks_like() -> None:
    assert repr(flash(1024, 128).causal().dropout(0.1)) == "flash(1024, 128).causal().dropout(0.1)"
    assert repr(flash(64).heads(2)) == "flash(64).heads(2)"
    assert repr(pa.builder("multi-head@gpt2", 64, 2)) == "multi_head(64, 2).preset('gpt2')"


def test_an_option_that_another_mechanism_has() -> None:
    with pytest.raises(UnknownOptionError) as caught:
        flash(64).bandwidth(3)
    text = str(caught.value)
    assert text.startswith("bandwidth: got an option; expected one of the options of flash: dim, ")
    assert text.endswith("mechanisms which have 'bandwidth': gaussian")
    assert isinstance(caught.value, AttributeError | ConfigError)
    assert not hasattr(flash(64), "bandwidth")


def test_an_option_misspelt() -> None:
    with pytest.raises(UnknownOptionError, match=r"\(did you mean 'causal'\?\)$"):
        flash(64).casual()
    with pytest.raises(UnknownOptionError, match=r"\(did you mean 'heads'\?\)$"):
        flash(64, head=3)


def test_other_misuse() -> None:
    with pytest.raises(ArgumentError, match=r"got \(64, 32, 8\); expected at most dim, block_"):
        flash(64, 32, 8)
    with pytest.raises(ArgumentError, match="dim: got 32; expected one value, by position or by"):
        flash(64, dim=32)
    with pytest.raises(ConfigError, match="dropout: got 2; expected at least 0 and less than 1"):
        flash(64).dropout(2).build()
    with pytest.raises(ConfigError, match="dim: got nothing; expected a value"):
        flash().build()  # type: ignore[call-arg]
    with pytest.raises(LookupError, match="did you mean 'flash'"):
        pa.builder("flsh", 64)
    with pytest.raises(ArgumentError, match="at most dim, heads"):
        pa.cosine(64, 2, 3)  # type: ignore[call-arg]


def test_a_mechanism_of_somebody_else(registered: Callable[..., pa.MechanismSpec]) -> None:
    registered("mine", "Soft", leading=("window",))
    from polyattn.builders import mine  # type: ignore[attr-defined]

    assert mine(8).spec.full_name == "acme/mine"
    assert "mine" in dir(pa.builders)
    assert not hasattr(pa, "mine")  # names in polyattn itself mean its own mechanisms
    with pytest.raises(LookupError):
        pa.builders.nothing_of_this_name  # noqa: B018


def test_what_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from polyattn import flash"
    environment = {"POLYATTN_DISABLE_PLUGINS": "sparse", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 1
    assert "POLYATTN_DISABLE_PLUGINS" in done.stderr


def test_the_stub_is_that_of_the_schemas() -> None:
    """Where it is not: polyattn stubs --output sdk/src/polyattn/builders.pyi."""
    assert STUB.read_text("utf-8") == stub()


def test_stubs_on_the_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "builders.pyi"
    assert cli("stubs", "-o", file, "--family", "standard").code == 0
    text = file.read_text("utf-8")
    assert "def multi_head(dim: int, heads: int = ..., **options: Any)" in text
    assert "def flash" not in text
    assert cli("stubs", "--family", "standard").out.strip() == text.strip()
    assert "no family is called 'nobody'" in cli("stubs", "--family", "nobody").err


def test_type_checkers_know_the_options(tmp_path: Path) -> None:
    """What mypy says about right and wrong uses."""
    api = pytest.importorskip("mypy.api", reason="mypy is not installed: make setup")
    program = tmp_path / "program.py"
    program.write_text(
        "import polyattn as pa\n"
        "from polyattn import flash\n"
        "reveal_type(flash(64).causal())\n"
        "flash(64).jitter()\n"
        "pa.multi_head(64, 4).dropout('x')\n"
    )
    out, _, _ = api.run([str(program), "--config-file=", "--follow-imports=silent"])
    assert 'Revealed type is "polyattn.builders.SparseFlashConfig"' in out
    assert '"SparseFlashConfig" has no attribute "jitter"' in out
    assert 'Argument 1 to "dropout" of' in out
