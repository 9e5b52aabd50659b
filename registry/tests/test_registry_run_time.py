from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from polyattn_core.errors import (
    AmbiguousNameError,
    ArgumentError,
    DuplicateNameError,
    ReservedNameError,
    UnknownFamilyError,
    UnknownNameError,
)
from polyattn_core.spec import EntrySpec, MechanismSpec


def spec(name: str, family: str = "local", package: str = "fake", **more: Any) -> MechanismSpec:
    return MechanismSpec(
        name=name,
        family=family,
        summary="",
        factory=f"{package}.mechanism:Mechanism",
        config=f"{package}.config:Config",
        reference=f"{package}.mechanism:reference",
        **more,
    )


def test_register_and_undo(site: Any) -> None:
    package = site.plugin("acme", ["one"])
    registry = site.registry()
    mine = spec("mine", package=package, aliases=("my-own",))
    undo = registry.register(mine)
    assert registry.available() == ["mine", "one"]
    assert registry.spec("My_Own") is mine
    assert registry.create("local/mine", dim=4).spec is mine
    assert registry.conformance_cases("mine") == []
    undo()
    undo()
    assert registry.available() == ["one"]
    with pytest.raises(UnknownNameError):
        registry.create("mine")
    with pytest.raises(UnknownFamilyError):
        registry.create("local/mine", dim=4)
    registry.register(mine)
    assert registry.create("mine", dim=4).spec is mine


def test_undo_does_not_undo_another_registration(site: Any) -> None:
    registry = site.registry()
    undo = registry.register(spec("mine"))
    undo()
    again = spec("mine")
    registry.register(again)
    undo()
    assert registry.spec("mine") is again


def test_register_replaces_nothing(site: Any) -> None:
    site.plugin("acme", ["one", "'two', aliases=('second',)"])
    registry = site.registry()
    for name, owner in (("one", "acme-attention"), ("second", "acme-attention")):
        with pytest.raises(DuplicateNameError) as caught:
            registry.register(spec(name, family="acme"))
        assert str(caught.value) == (
            f"the mechanism 'acme/{name}' is already registered by {owner}"
        )
    registry.register(spec("three", family="acme"))
    with pytest.raises(DuplicateNameError, match="already registered by a call of register"):
        registry.register(spec("three", family="acme"))
    with pytest.raises(DuplicateNameError, match="'acme/one' is already"):
        registry.register(spec("four", family="acme", aliases=("five", "one")))
    # All or nothing.
    assert registry.available() == ["one", "three", "two"]
    with pytest.raises(UnknownNameError):
        registry.spec("five")


def test_first_party_families_cannot_be_extended(site: Any) -> None:
    registry = site.registry()
    with pytest.raises(ReservedNameError) as caught:
        registry.register(spec("flash", family="sparse"))
    assert str(caught.value) == "the family 'sparse' is reserved for polyattn-sparse"
    site.plugin("sparse", ["flash"], distribution="polyattn-sparse")
    registry.refresh()
    with pytest.raises(DuplicateNameError):
        registry.register(spec("flash", family="sparse"))


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("flash", "spec: got flash; expected a MechanismSpec, or another EntrySpec"),
        (
            EntrySpec(kind="mechanism", name="x", family="local", summary="", factory="a:b"),
            "local/x: got EntrySpec; expected MechanismSpec, as its kind is 'mechanism'",
        ),
    ],
)
def test_register_wants_specifications(site: Any, entry: Any, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        site.registry().register(entry)
    assert str(caught.value) == text


def test_a_reference_of_the_program_that_cannot_be_imported(site: Any) -> None:
    registry = site.registry()
    registry.register(spec("mine", package="fake_nowhere"))
    with pytest.raises(ArgumentError) as caught:
        registry.create("mine", dim=4)
    assert str(caught.value) == (
        "local/mine: got fake_nowhere.config:Config; expected a reference that can be imported "
        "(ModuleNotFoundError: No module named 'fake_nowhere')"
    )


def test_other_kinds_can_be_registered(site: Any) -> None:
    registry = site.registry()
    entry = EntrySpec(kind="loss", name="mine", family="local", summary="", factory="math:sqrt")
    undo = registry.register(entry)
    assert registry.resolve("mine", "loss")(9.0) == 3.0
    assert registry.available() == []
    undo()
    assert registry.available(kind="loss") == []


def test_registered_names_can_clash(site: Any) -> None:
    site.plugin("acme", ["one", "flash"])
    registry = site.registry()
    registry.register(spec("one"))
    registry.register(spec("flash"))
    assert registry.available() == ["acme/flash", "acme/one", "local/flash", "local/one"]
    with pytest.raises(AmbiguousNameError):
        registry.spec("one")


def test_prefer_and_undo(site: Any) -> None:
    for family in ("acme", "beta", "gamma"):
        site.plugin(family, ["shared"])
    registry = site.registry()
    first = registry.prefer("Shared", "beta/shared")
    assert registry.create("shared", dim=4).spec.family == "beta"
    assert registry.available() == ["acme/shared", "gamma/shared", "shared"]
    second = registry.prefer("shared", "gamma/shared")
    assert registry.create("shared", dim=4).spec.family == "gamma"
    first()
    assert registry.create("shared", dim=4).spec.family == "gamma"
    second()
    second()
    with pytest.raises(AmbiguousNameError):
        registry.create("shared", dim=4)


def test_prefer_cannot_change_first_party_names(site: Any) -> None:
    site.plugin("sparse", ["brand-new"], distribution="polyattn-sparse")
    site.plugin("acme", ["flash", "brand-new", "'mine', aliases=('sdpa',)"])
    registry = site.registry()
    for short, full, owner in (
        ("flash", "acme/flash", "sparse/flash"),
        ("brand-new", "acme/brand-new", "sparse/brand-new"),
        ("sdpa", "acme/mine", "standard/scaled-dot-product"),
    ):
        with pytest.raises(ReservedNameError) as caught:
            registry.prefer(short, full)
        assert str(caught.value) == f"the mechanism {short!r} is reserved for {owner}"


@pytest.mark.parametrize(
    ("short", "full", "error", "text"),
    [
        (
            "shared",
            "acme/one",
            ArgumentError,
            (
                "full: got acme/one; expected the full name of a mechanism called 'shared': "
                "acme/shared, beta/shared"
            ),
        ),
        (
            "nothing",
            "acme/one",
            ArgumentError,
            (
                "full: got acme/one; expected the full name of a mechanism called 'nothing' "
                "(there is none)"
            ),
        ),
        ("shared", "acme/two", UnknownNameError, "no mechanism is called 'acme/two'"),
    ],
)
def test_prefer_wants_a_claim(
    site: Any, short: str, full: str, error: type[Exception], text: str
) -> None:
    site.plugin("acme", ["one", "shared"])
    site.plugin("beta", ["shared"])
    with pytest.raises(error) as caught:
        site.registry().prefer(short, full)
    assert str(caught.value) == text


def test_what_is_preferred_is_not_replaced_silently_when_it_goes(site: Any) -> None:
    site.plugin("acme", ["shared"])
    site.plugin("beta", ["shared"])
    registry = site.registry()
    undo = registry.prefer("shared", "acme/shared")
    (site.path / "acme_attention-1.0.dist-info" / "entry_points.txt").unlink()
    registry.refresh()
    with pytest.raises(UnknownFamilyError, match="no family is called 'acme'"):
        registry.create("shared", dim=4)
    undo()
    assert registry.create("shared", dim=4).spec.family == "beta"


def test_refresh(site: Any) -> None:
    package = site.plugin("acme", ["one"])
    registry = site.registry()
    kept = registry.create("one", dim=4)
    mine = spec("mine", package=package)
    undo = registry.register(mine)
    site.plugin("beta", ["two", "one"])
    assert registry.available() == ["mine", "one"]
    registry.refresh()
    assert registry.available() == ["acme/one", "beta/one", "mine", "two"]
    with pytest.raises(AmbiguousNameError):
        registry.create("one", dim=4)
    assert registry.create("acme/one", dim=4).spec == kept.spec
    assert registry.spec("mine") is mine
    undo()
    assert registry.available() == ["acme/one", "beta/one", "two"]


def test_refresh_tries_again_what_failed(site: Any) -> None:
    package = site.plugin("acme", ["one"], before="import fake_dependency")
    registry = site.registry()
    assert registry.available() == []
    (site.path / "fake_dependency.py").write_text("")
    assert registry.available() == []
    registry.refresh()
    assert registry.available() == ["one"]
    assert f"{package}.plugin" in sys.modules


def test_refresh_does_not_let_a_new_plugin_replace_what_the_program_registered(site: Any) -> None:
    registry = site.registry()
    mine = spec("one", family="acme")
    registry.register(mine)
    site.plugin("acme", ["one"])
    registry.refresh()
    assert registry.spec("acme/one") is mine
    assert registry.plugins()[0].reason == (
        "the mechanism 'acme/one' is already registered by a call of register()"
    )


def test_several_threads_come_first(site: Any) -> None:
    (site.path / "fake_counter.py").write_text("imports = []")
    slowly = "import time, fake_counter\nfake_counter.imports.append(__name__)\ntime.sleep(0.02)"
    for number in range(4):
        site.plugin(f"acme{number}", ["shared", f"own-{number}"], before=slowly)
    registry = site.registry()
    threads, results = 8, []
    barrier = threading.Barrier(threads)

    def work() -> None:
        barrier.wait()
        names = registry.available()
        results.append((tuple(names), registry.create("own-2", dim=4).spec))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == threads
    assert len(set(results)) == 1
    assert len(sys.modules["fake_counter"].imports) == 4


def test_threads_that_register_while_others_look(site: Any) -> None:
    package = site.plugin("acme", ["one"])
    registry = site.registry()
    errors: list[BaseException] = []
    stop = threading.Event()

    def look() -> None:
        try:
            while not stop.is_set():
                assert "one" in registry.available()
                assert registry.create("one", dim=4).spec.family == "acme"
        except BaseException as error:
            errors.append(error)

    def change(number: int) -> None:
        try:
            for turn in range(30):
                name = f"mine-{number}-{turn}"
                undo = registry.register(spec(name, package=package))
                assert registry.create(name, dim=4).spec.name == name
                undo()
                with pytest.raises(UnknownNameError):
                    registry.create(name, dim=4)
                if turn % 10 == 0:
                    registry.refresh()
        except BaseException as error:
            errors.append(error)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    changers = [threading.Thread(target=change, args=(number,)) for number in range(2)]
    for thread in lookers + changers:
        thread.start()
    for thread in changers:
        thread.join()
    stop.set()
    for thread in lookers:
        thread.join()
    assert errors == []
    assert registry.available() == ["one"]
