from __future__ import annotations

import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyattn_core.errors import (
    AmbiguousNameError,
    ArgumentError,
    NotInstalledError,
    PluginDisabledError,
    ReservedNameError,
)
from polyattn_registry import first_party
from polyattn_registry.names import Name, closest, fold, natural_key, parse

WORD = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+){0,3}", fullmatch=True)
RELAXED = st.from_regex(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+){0,3}", fullmatch=True)


@given(st.text())
def test_folding_is_idempotent(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@given(RELAXED)
def test_folding_ignores_case_and_underscores(text: str) -> None:
    assert fold(text.upper()) == fold(text.lower()) == fold(text.replace("-", "_"))


@given(WORD)
def test_folding_leaves_proper_names_alone(word: str) -> None:
    assert fold(word) == word


def test_only_ascii_is_folded() -> None:
    assert fold("\N{KELVIN SIGN}-nn") == "\N{KELVIN SIGN}-nn"


@given(st.none() | WORD, WORD, st.none() | WORD)
def test_parsing_takes_apart_what_was_put_together(
    family: str | None, short: str, preset: str | None
) -> None:
    text = (f"{family}/" if family else "") + short + (f"@{preset}" if preset else "")
    parsed = parse(text.upper().replace("-", "_"))
    assert parsed == Name(family or "", short, preset or "")
    assert parsed.path == text.partition("@")[0]


@given(st.text(alphabet="ab/@"))
def test_parsing_raises_nothing_else(text: str) -> None:
    try:
        name = parse(text)
    except ArgumentError:
        return
    assert name.short
    assert "/" not in name.family


@pytest.mark.parametrize("text", ["", "/x", "x/", "a/b/c", "x@", "@y", "x@y@z", "x@/y", "x@a/b/c"])
def test_malformed_names(text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse(text)
    assert str(caught.value) == (
        f"name: got {text or repr(text)}; expected a name of the form [family/]name[@preset]"
    )


def test_names_are_strings() -> None:
    with pytest.raises(ArgumentError, match=r"name: got 3; expected"):
        parse(3)  # type: ignore[arg-type]


def test_a_preset_may_say_its_family() -> None:
    assert parse("flash@sparse/base") == Name("", "flash", "sparse/base")


def test_natural_order() -> None:
    shuffled = ["gat10", "b2-a", "gat2", "2d", "gat", "b10-a", "10d", "b2"]
    ordered = ["2d", "10d", "b2", "b2-a", "b10-a", "gat", "gat2", "gat10"]
    assert sorted(shuffled, key=natural_key) == ordered


@given(st.lists(st.text(alphabet="a1²٣-"), min_size=2))
def test_everything_can_be_ordered(texts: list[str]) -> None:
    ordered = sorted(texts, key=natural_key)
    assert Counter(ordered) == Counter(texts)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("flsh", ("flash",)),
        ("fashl", ("flash",)),
        ("sinkhron", ("sinkhorn",)),
        ("multihead", ("multi-head",)),
        ("spda", ("sdpa",)),
        ("scaled-dot", ("scaled-dot-product",)),
        ("flash-attention", ("flash",)),
        ("wasserstein", ("sliced-wasserstein",)),
        ("gated", ("gated-delta", "gated-linear", "mincut-gated")),
        ("something-else", ()),
    ],
)
def test_what_was_meant(wrong: str, meant: tuple[str, ...]) -> None:
    assert closest(wrong, first_party.RESERVED_NAMES) == meant


def test_reserved_names_are_unique_and_proper() -> None:
    reserved = first_party.RESERVED_NAMES
    assert len(set(reserved)) == len(reserved)
    assert all(parse(name) == Name("", name) for name in (*reserved, *first_party.FAMILIES))
    assert all(first_party.full_name_of(name) for name in reserved)


@pytest.mark.parametrize(
    "error",
    [
        NotInstalledError("mechanism", "sparse/flash", "polyattn-sparse", ["acme/flash"], "0.0.1"),
        AmbiguousNameError("mechanism", "x", ["a/x", "b/x"]),
        ReservedNameError("mechanism", "flash", "sparse/flash"),
        PluginDisabledError("polyattn-sparse", "disabled"),
    ],
)
def test_errors_can_be_pickled(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
