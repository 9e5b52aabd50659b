"""`polyattn list`, `info`, `schema` and `presets`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import polyattn as pa
from polyattn.cli._schema import options

Cli = Callable[..., Any]


def names(cli: Cli, *arguments: object) -> list[str]:
    return [entry["name"] for entry in cli("list", *arguments, "--json").json]


def test_list_shows_what_is_available(cli: Cli) -> None:
    result = cli("list")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["Family", "Name", "Summary"]
    assert len(lines) == 2 + len(pa.available())
    flash = next(line for line in lines if " flash " in line)
    # In a pipe each line is whole and says everything.
    assert flash.split("  ")[0] == "sparse"
    assert flash.endswith(pa.spec("flash").summary)
    assert not any(line.endswith(" ") for line in lines)


def test_list_as_json(cli: Cli) -> None:
    entries = cli("list", "--json").json
    assert [entry["name"] for entry in entries] == pa.available()
    (flash,) = (entry for entry in entries if entry["name"] == "flash")
    assert flash["full_name"] == "sparse/flash"
    assert flash["capabilities"]["masks"][0] == "causal"


def test_list_filters(cli: Cli) -> None:
    assert names(cli, "window") == pa.available("*window*")
    assert names(cli, "l?") == ["l2"]
    assert names(cli, "--family", "sparse") == pa.available(family="sparse")
    assert names(cli, "--tag", "softmax", "--tag", "pattern") == pa.available(
        tags=("softmax", "pattern")
    )
    assert names(cli, "longformer", "--kind", "preset") == ["longformer-base"]
    assert names(cli, "zzz") == []


def test_list_says_why_there_is_nothing(cli: Cli) -> None:
    assert cli("list", "flsh").err == "no mechanism is called 'flsh'; did you mean 'flash'?\n"
    assert "not with what else" in cli("list", "flash", "--tag", "nope").err
    assert cli("list", "zz*").err == "no mechanism matches\n"
    result = cli("list", "--family", "nope")
    assert result.code == 1
    assert "no family is called 'nope'" in result.err


def test_list_shows_the_clashing_by_full_name(cli: Cli, registered: Callable[..., Any]) -> None:
    spec = registered("mine", "Streamed", summary="Mine [of course]", tags=("x",))
    undo = pa.register(
        pa.MechanismSpec(
            name="mine", family="other", summary="…", factory=spec.factory, config=spec.config,
            reference=spec.reference,
        )
    )  # fmt: skip
    try:
        assert names(cli, "mine") == ["acme/mine", "other/mine"]
    finally:
        undo()
    assert "Mine [of course]" in cli("list", "mine").out


def test_a_failed_plugin_is_not_passed_over(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import polyattn_registry
    from polyattn_registry import PluginStatus

    status = PluginStatus(
        family="acme", distribution="acme-attention", version="1", summary="", state="failed",
        reason="ImportError: gone",
    )  # fmt: skip
    monkeypatch.setattr(polyattn_registry, "plugins", lambda: [status])
    result = cli("list")
    assert result.code == 0
    assert result.err == ("acme-attention failed to load: ImportError: gone; run polyattn doctor\n")


@pytest.mark.parametrize("sinks_alone", [True, False])
def test_without_a_family(cli: Cli, monkeypatch: pytest.MonkeyPatch, sinks_alone: bool) -> None:
    import polyattn_registry

    found = [s for s in polyattn_registry.plugins() if s.family == "core"] if sinks_alone else []
    assert len(found) == sinks_alone
    monkeypatch.setattr(polyattn_registry, "plugins", lambda: found)
    assert "no family is installed; for a start: pip install" in cli("list").err


def test_info_explains(cli: Cli) -> None:
    result = cli("info", "longformer")
    assert result.code == 0
    for text in (
        "sparse/local-global   also called longformer",
        "A window around each query",
        pa.spec("longformer").formula,
        "O(n (w + g) d), O(n d)",
        "https://arxiv.org/abs/2004.05150",
        "@longformer-base",
        'pa.create("local-global", dim=64, heads=4)',
        "Options of its own",
        "whole number ≥ 1; default 512",
        "Options that others have too",
        "rope | alibi | t5 | null; default null",
        "position.base",
        "With position=rope:",
        "required",
    ):
        assert text in result.out, text
    own, others = result.out.split("Options that others have too")
    assert "global_tokens" in own
    assert "kv_heads" in others


def test_info_of_something_odd(cli: Cli, registered: Callable[..., Any]) -> None:
    gate = pa.SideInput(name="gate", shape="(…, n)", description="a gate", required=False)
    able = pa.Capabilities(
        gradient=False, masks=("causal",), side_inputs=(gate,), exact=False, dtypes=("float64",)
    )
    registered(
        "odd", "Gated", config="sdk_fakes:OddConfig", capabilities=able, formula="x[i]",
        papers=("A book",), tags=("strange",),
    )  # fmt: skip
    out = " ".join(cli("info", "odd").out.split())
    for text in (
        "x[i]",
        "Package the running program",
        "Result an approximation",
        "Lacks gradients, mergeable partial results, dropout",
        "Masks causal",
        "Statistics none",
        "Data types float64",
        "Tags strange",
        "Papers A book",
        'shape round | square; default {"kind": "round", "radius": 1.0}',
        "shape.radius number > 0; default 1.0 With shape=round: Half its width.",
        "sides list of whole number; default [1, 2]",
        "word text at most 9 characters; default a|b [c] A [bracketed] word.",
        "share number ≥ 0, < 1; default 0.5",
        "gate (…, n); optional a gate",
    ):
        assert text in out, text


def test_info_as_json(cli: Cli) -> None:
    found = cli("info", "flash", "--json").json
    assert found["full_name"] == "sparse/flash"
    assert found["schema"] == pa.config_schema("flash")
    assert found["links"] == ["https://arxiv.org/abs/2205.14135"]
    assert found["package"].startswith("polyattn-sparse")
    assert cli("info", "bigbird", "--json").json["presets"][0]["name"] == "bigbird-base"


@pytest.mark.parametrize("name", pa.available())
def test_every_option_is_shown(name: str, cli: Cli) -> None:
    out = cli("info", name).out
    for option in options(pa.config_schema(name)):
        assert f"\n{option.name} " in out
        assert option.description
        assert option.description in out


def test_schema(cli: Cli) -> None:
    assert cli("schema", "flash").json == pa.config_schema("flash")
    assert cli("schema", "flash", "--json").json == pa.config_schema("flash")


def test_presets(cli: Cli) -> None:
    found = cli("presets", "--json").json
    assert {preset["full_name"] for preset in found} == {p.full_name for p in pa.presets()}
    result = cli("presets", "multi-head")
    assert all(line.startswith("multi-head@") for line in result.out.splitlines())
    assert "dim=768, heads=12, dropout=0.1, causal=true" in result.out
    assert cli("presets", "l2").err == "l2 has no presets; polyattn list shows what is\n"


@pytest.mark.parametrize("command", ["info", "schema", "presets"])
def test_a_wrong_name(command: str, cli: Cli) -> None:
    result = cli(command, "flsh")
    assert (result.code, result.out) == (1, "")
    assert result.err == "Error: no mechanism is called 'flsh'; did you mean 'flash'?\n"
    result = cli(command, "flsh", "--json")
    assert result.code == 1
    assert result.json["error"]["type"] == "UnknownNameError"


def test_narrow_terminals_lose_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for arguments in (("list",), ("info", "flash"), ("presets",), ("plugins",)):
        out = cli(*arguments).out
        assert max(map(len, out.splitlines())) <= 60
        assert "…" not in out.replace("(…", "")


def test_a_schema_that_refers_to_itself_ends() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    schema = {"properties": {"first": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": node}}
    (first,) = options(json.loads(json.dumps(schema)))
    assert first.accepts == "Node"
    assert first.nested["Node"][0].accepts == "Node"
