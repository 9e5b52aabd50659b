"""Which mechanisms take part in a comparison, and with which options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import polyattn as pa
from polyattn.compare._selection import parse_options, select, split_names
from polyattn.compare.settings import Settings
from polyattn_core.errors import ArgumentError, UnknownNameError

Register = Callable[..., pa.MechanismSpec]


@pytest.fixture(autouse=True)
def fakes(registered: Register) -> None:
    edges = pa.SideInput(name="edges", shape="(2, n)", description="Edges of a graph")
    optional = pa.SideInput(name="gate", shape="(n,)", description="A gate", required=False)
    for name, capabilities, tags in (
        ("plain", {}, ()),
        ("plainer", {"side_inputs": (optional,)}, ()),
        ("learned", {"parametric": True}, ()),
        ("untrained", {"parametric": True}, ("needs-training",)),
        ("placed", {"positional": True}, ()),
        ("linked", {"side_inputs": (edges,)}, ()),
        ("square", {"cross": False}, ()),
    ):
        registered(
            name,
            "Streamed",
            sharpness="scale",
            tags=tags,
            capabilities=pa.Capabilities(**capabilities),
            aliases=("simple",) if name == "plain" else (),
        )


def chosen(*mechanisms: str, **settings: Any) -> tuple[list[str], dict[str, str]]:
    candidates, left_out = select(Settings(mechanisms=mechanisms, **settings), dim=4)
    return [c.label for c in candidates], {item.name: item.reason for item in left_out}


def test_by_default_all_that_can_act_as_a_smoother() -> None:
    taken, left_out = chosen(family="acme")
    assert taken == ["learned", "plain", "plainer"]
    assert left_out == {
        "linked": "needs edges, which plain vectors do not have",
        "placed": "looks at positions, and training samples have no order",
        "square": "needs as many queries as keys",
        "untrained": "has parameters that would have to be learned first",
    }
    assert set(chosen()[0]) > set(taken)


def test_installed_families_take_part() -> None:
    pytest.importorskip("polyattn_standard")
    pytest.importorskip("polyattn_sparse")
    taken, left_out = chosen()
    assert {"scaled-dot-product", "l2", "cosine", "flash", "top-k"} <= set(taken)
    assert {"multi-head", "sliding-window"} <= set(left_out)


def test_names_wildcards_and_exclusions() -> None:
    assert chosen("plainer", "plain")[0] == ["plainer", "plain"]
    assert chosen("plain*", "acme/learned")[0] == ["plain", "plainer", "acme/learned"]
    assert chosen("acme/*", exclude=("plain*",))[0] == ["learned"]
    assert chosen("*", family="acme", exclude=("learned", "plainer"))[0] == ["plain"]


def test_what_is_asked_for_by_name_runs_with_a_caveat() -> None:
    candidates, left_out = select(Settings(mechanisms=("placed", "untrained", "p*")), dim=4)
    caveats = {c.label: c.caveats for c in candidates}
    assert caveats["placed"] == ("looks at positions, and training samples have no order",)
    assert caveats["untrained"] == ("has parameters that would have to be learned first",)
    assert caveats["plain"] == ()
    assert "placed" not in {item.name for item in left_out}


def test_what_cannot_run_is_left_out_even_if_asked_for() -> None:
    taken, left_out = chosen("plain", "linked", "square")
    assert taken == ["plain"]
    assert set(left_out) == {"linked", "square"}
    with pytest.raises(ArgumentError, match=r"mechanisms: got linked; .*linked needs edges"):
        chosen("linked")


def test_names_that_lead_nowhere() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'acme/plain'"):
        chosen("acme/plian")
    with pytest.raises(ArgumentError, match="a pattern that a mechanism of the family acme"):
        chosen("nothing-*", family="acme")


# ---- options ------------------------------------------------------------------------------------


def options_of(*mechanisms: str, **settings: Any) -> dict[str, dict[str, Any]]:
    candidates, _ = select(Settings(mechanisms=mechanisms, **settings), dim=4)
    return {candidate.label: candidate.options(None) for candidate in candidates}


def test_options_in_brackets() -> None:
    names = split_names('plain[softcap=2, causal=false], plain[position={"kind": "rope"}],plainer')
    assert options_of(*names) == {
        "plain[softcap=2, causal=false]": {"softcap": 2, "causal": False},
        'plain[position={"kind": "rope"}]': {"position": {"kind": "rope"}},
        "plainer": {},
    }
    assert options_of("plain[position=alibi]") == {"plain[position=alibi]": {"position": "alibi"}}
    assert options_of("plain[softcap=None]") == {"plain[softcap=null]": {"softcap": None}}


def test_options_by_name_wildcard_and_alias() -> None:
    given = parse_options(["plain*.softcap=3", "simple.causal=true", "acme/plainer.softcap=4"])
    assert options_of("plain", "plainer", "learned", options=given) == {
        "plain[softcap=3, causal=true]": {"softcap": 3, "causal": True},
        "plainer[softcap=4]": {"softcap": 4},
        "learned": {},
    }
    assert options_of("plain[softcap=5]", options={"plain": {"softcap": 3}}) == {
        "plain[softcap=5]": {"softcap": 5}
    }


def test_the_same_twice_is_once() -> None:
    assert chosen("plain", "plain*", "plain")[0] == ["plain", "plainer"]


@pytest.mark.parametrize("item", ["plain[", "plain]", "plain[scale]", "[scale=2]", "plain[=]x"])
def test_brackets_that_do_not_do(item: str) -> None:
    with pytest.raises(ArgumentError, match="mechanisms"):
        chosen(*split_names(item))


@pytest.mark.parametrize("pair", ["plain.scale", "scale=2", ".scale=2", "plain.=2"])
def test_settings_of_options_that_do_not_do(pair: str) -> None:
    with pytest.raises(ArgumentError, match=r"MECHANISM\.OPTION=VALUE"):
        parse_options([pair])


def test_options_of_what_does_not_take_part() -> None:
    with pytest.raises(ArgumentError, match=r"options: got learned; .*take part: plain"):
        chosen("plain", options={"learned": {"scale": 2}})


@pytest.mark.parametrize("option", ["dim", "heads", "kv-heads", "threads"])
def test_options_that_the_comparison_sets_itself(option: str) -> None:
    with pytest.raises(ArgumentError, match="compare sets the width"):
        chosen(f"plain[{option}=2]")
