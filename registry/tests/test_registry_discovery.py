from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyattn_core.diagnostics import PluginFailed
from polyattn_core.errors import ArgumentError, PluginDisabledError, PluginError
from polyattn_registry import PluginStatus, Registry


def status(registry: Registry, distribution: str) -> PluginStatus:
    (found,) = [s for s in registry.plugins() if s.distribution == distribution]
    return found


def test_a_plugin_that_works(site: Any) -> None:
    site.plugin("acme", ["one", "two"])
    registry = site.registry()
    assert registry.available() == ["one", "two"]
    found = status(registry, "acme-attention")
    assert found.milliseconds > 0
    assert found == PluginStatus(
        family="acme",
        distribution="acme-attention",
        version="1.0",
        summary="A fake",
        state="loaded",
        milliseconds=found.milliseconds,
        mechanisms=2,
    )


def test_nothing_is_installed(site: Any) -> None:
    registry = site.registry()
    assert registry.available() == []
    assert registry.plugins() == []


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "import error": (
        {"before": "import fake_that_does_not_exist"},
        "ModuleNotFoundError: No module named 'fake_that_does_not_exist'",
    ),
    "syntax error": ({"before": "def"}, "SyntaxError: invalid syntax (plugin.py, line 1)"),
    "exit": ({"before": "raise SystemExit(3)"}, "SystemExit: 3"),
    "error without text": ({"before": "raise RuntimeError"}, "RuntimeError"),
    "bad signature": (
        {"extra": "@hookimpl\ndef polyattn_presets(colour): return []"},
        (
            "Plugin 'broken' for hook 'polyattn_presets' hookimpl definition: "
            "polyattn_presets(colour) Argument(s) {'colour'} are declared in the hookimpl but "
            "can not be found in the hookspec"
        ),
    ),
    "bad signature of the introduction": (
        {"extra": "@hookimpl\ndef polyattn_plugin_info(colour): return None"},
        (
            "Plugin 'broken' for hook 'polyattn_plugin_info' hookimpl definition: "
            "polyattn_plugin_info(colour) Argument(s) {'colour'} are declared in the hookimpl but "
            "can not be found in the hookspec"
        ),
    ),
    "introduction that is no function": (
        {"extra": "polyattn_plugin_info = {}"},
        "polyattn_plugin_info returned None; expected PluginInfo",
    ),
    "an error that cannot say why": (
        {"before": "class Mute(Exception):\n    def __str__(self): 1 / 0\nraise Mute"},
        "Mute: it cannot say why",
    ),
    "malformed tags": (
        {"mechanisms": ["'a', tags='fast'"]},
        "ArgumentError: tags of broken/a: got fast; expected a tuple of strings",
    ),
    "malformed capabilities": (
        {"mechanisms": ["'a', capabilities=None"]},
        ("ArgumentError: capabilities of broken/a: got None; expected an instance of Capabilities"),
    ),
    "misspelt": (
        {"extra": "@hookimpl\ndef polyattn_preset(): return []"},
        "there is no hook called 'polyattn_preset'; did you mean 'polyattn_presets'?",
    ),
    "misspelt and unmarked": (
        {"extra": "def polyattn_mechanism(): return []"},
        "there is no hook called 'polyattn_mechanism'; did you mean 'polyattn_mechanisms'?",
    ),
    "no information": (
        {"extra": "del polyattn_plugin_info"},
        "the manifest has no hook polyattn_plugin_info",
    ),
    "information of another type": (
        {"extra": "@hookimpl\ndef polyattn_plugin_info(): return {'family': 'broken'}"},
        "polyattn_plugin_info returned {'family': 'broken'}; expected PluginInfo",
    ),
    "older interface": (
        {"api_version": 0},
        (
            "it is written for version 0 of the plugin interface, this is version 1: "
            "pip install --upgrade broken-attention"
        ),
    ),
    "newer interface with hooks of its own": (
        {"api_version": 2, "extra": "@hookimpl\ndef polyattn_dreams(): return []"},
        (
            "it is written for version 2 of the plugin interface, this is version 1: "
            "pip install --upgrade polyattn"
        ),
    ),
    "garbage": (
        {"extra": "@hookimpl\ndef polyattn_mechanisms(): return 42"},
        "polyattn_mechanisms returned 42; expected an iterable of MechanismSpec",
    ),
    "nothing": (
        {"extra": "@hookimpl\ndef polyattn_mechanisms(): return None"},
        "polyattn_mechanisms returned None; expected an iterable of MechanismSpec",
    ),
    "text": (
        {"extra": "@hookimpl\ndef polyattn_mechanisms(): return 'flash'"},
        "polyattn_mechanisms returned 'flash'; expected an iterable of MechanismSpec",
    ),
    "garbage inside": (
        {"extra": "@hookimpl\ndef polyattn_mechanisms(): return [mechanism('a'), 'b']"},
        "polyattn_mechanisms offers 'b'; expected MechanismSpec",
    ),
    "raises in the middle": (
        {"extra": "@hookimpl\ndef polyattn_mechanisms():\n    yield mechanism('a')\n    1 / 0"},
        "ZeroDivisionError: division by zero",
    ),
    "another family": (
        {"mechanisms": ["'b', kind='mechanism'"], "entry": "braken = PACKAGE.plugin"},
        "polyattn_plugin_info says family 'broken', its entry point is called 'braken'",
    ),
    "twice the same": (
        {"mechanisms": ["same", "same"]},
        "the mechanism 'broken/same' is already registered by broken-attention",
    ),
    "alias that is a name": (
        {"mechanisms": ["a", "'b', aliases=('a',)"]},
        "the mechanism 'broken/a' is already registered by broken-attention",
    ),
    "wrong kind": (
        {"mechanisms": ["'b', kind='loss'"]},
        "ArgumentError: broken/b: got MechanismSpec; expected EntrySpec, as its kind is 'loss'",
    ),
    "value without a module": (
        {"entry": "broken = "},
        "ImportError: the entry point value '' is not of the form 'package.module'",
    ),
    "value that is malformed": (
        {"entry": "broken = not a module!"},
        "ImportError: the entry point value 'not a module!' is not of the form 'package.module'",
    ),
    "value that names nothing": (
        {"entry": "broken = PACKAGE.plugin:nothing"},
        "AttributeError: module 'PACKAGE.plugin' has no attribute 'nothing'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_explained_and_harms_no_other(
    case: str, site: Any, listen: Callable[..., list[Any]], tmp_path: Path
) -> None:
    arguments, reason = BROKEN[case]
    # Before and after the broken one, in the order of loading.
    site.plugin("acme", ["one"])
    site.plugin("zebra", ["two"])
    entry = arguments.get("entry")
    package = site.plugin("broken", **{"mechanisms": ["bad"], **arguments})
    if isinstance(entry, str):
        file = tmp_path / "broken_attention-1.0.dist-info" / "entry_points.txt"
        file.write_text(file.read_text("utf-8").replace("PACKAGE", package), "utf-8")
    failures = listen(PluginFailed)
    registry = site.registry()
    assert registry.available() == ["one", "two"]
    found = status(registry, "broken-attention")
    assert found.state == "failed"
    assert found.reason == reason.replace("PACKAGE", package)
    assert found.error.startswith(("Traceback", "The above"))
    assert found.error.rstrip().splitlines()[-1]
    assert found.mechanisms == 0
    assert failures == [PluginFailed(plugin="broken-attention", reason=found.reason)]


def test_an_interrupt_is_not_swallowed_and_loading_may_be_tried_again(site: Any) -> None:
    package = site.plugin("acme", ["one"], before="import fake_flag\nfake_flag.interrupt()")
    flag = site.path / "fake_flag.py"
    flag.write_text("def interrupt(): raise KeyboardInterrupt")
    registry = site.registry()
    with pytest.raises(KeyboardInterrupt):
        registry.available()
    sys.modules["fake_flag"].interrupt = lambda: None  # type: ignore[attr-defined]
    assert registry.available() == ["one"]
    assert f"{package}.plugin" in sys.modules


def test_a_slow_plugin_is_measured(site: Any) -> None:
    site.plugin("acme", ["one"], before="import time\ntime.sleep(0.05)")
    site.plugin("sparse", ["flash"], distribution="polyattn-sparse")
    registry = site.registry()
    assert status(registry, "acme-attention").milliseconds >= 50
    assert status(registry, "polyattn-sparse").milliseconds < 50 * 20


def test_a_name_with_its_family_loads_that_plugin_only(site: Any) -> None:
    slow = site.plugin("slow", ["one"])
    acme = site.plugin("acme", ["two"])
    sparse = site.plugin("sparse", ["flash"], distribution="polyattn-sparse")
    registry = site.registry()
    registry.spec("acme/two")
    registry.spec("flash")
    assert f"{acme}.plugin" in sys.modules
    assert f"{sparse}.plugin" in sys.modules
    assert f"{slow}.plugin" not in sys.modules
    registry.spec("two")
    assert f"{slow}.plugin" in sys.modules


def test_unmarked_hooks_count(site: Any) -> None:
    site.plugin(
        "acme",
        extra="""
        def polyattn_plugin_info():
            return PluginInfo(family="acme", summary="Unmarked", distribution="acme-attention",
                              version="1.0", api_version=1)
        def polyattn_mechanisms():
            yield mechanism("one")
        """,
    )
    registry = site.registry()
    assert registry.available() == ["one"]
    assert status(registry, "acme-attention").summary == "Unmarked"


def test_a_manifest_can_be_an_object(site: Any) -> None:
    package = site.plugin(
        "acme",
        ["lost"],
        extra="""
        info = polyattn_plugin_info
        class Plugin:
            @hookimpl
            def polyattn_plugin_info(self):
                return info()
            @hookimpl
            def polyattn_mechanisms(self):
                return (mechanism("one"),)
        plugin = Plugin()
        """,
    )
    file = site.path / "acme_attention-1.0.dist-info" / "entry_points.txt"
    file.write_text(f"[polyattn.plugins]\nacme = {package}.plugin:plugin\n", "utf-8")
    assert site.registry().available() == ["one"]


def test_optional_hooks_of_later_versions_are_left_alone(site: Any) -> None:
    site.plugin(
        "acme", ["one"], extra="@hookimpl(optionalhook=True)\ndef polyattn_dreams(): return []"
    )
    registry = site.registry()
    assert registry.available() == ["one"]
    assert status(registry, "acme-attention").state == "loaded"


def test_modules_called_like_hooks_are_no_hooks(site: Any) -> None:
    site.plugin("acme", ["one"], before="import polyattn_core")
    assert site.registry().available() == ["one"]


def test_an_entry_that_is_listed_twice_counts_once(site: Any, tmp_path: Path) -> None:
    package = site.plugin("acme", ["one"])
    line = f"acme = {package}.plugin\n"
    file = tmp_path / "acme_attention-1.0.dist-info" / "entry_points.txt"
    file.write_text(f"[polyattn.plugins]\n{line}{line}", "utf-8")
    # As an editable install leaves it: the metadata of the build is found as well.
    egg = tmp_path / "Acme.Attention.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: Acme.Attention\nVersion: 1.0\n")
    (egg / "entry_points.txt").write_text(file.read_text("utf-8"))
    registry = site.registry()
    assert registry.available() == ["one"]
    assert [(s.state, s.mechanisms) for s in registry.plugins()] == [("loaded", 1)]


def test_a_family_that_two_distributions_claim(site: Any) -> None:
    site.plugin("acme", ["two"], distribution="acme-b")
    site.plugin("acme", ["one"], distribution="acme-a")
    registry = site.registry()
    assert registry.available() == ["one"]
    assert status(registry, "acme-b").state == "failed"
    assert status(registry, "acme-b").reason == (
        "the family 'acme' is already provided by acme-a; uninstall one of them"
    )


def test_a_family_claimed_twice_does_not_change_hands_when_its_owner_fails(site: Any) -> None:
    site.plugin("acme", ["two"], distribution="acme-b")
    site.plugin("acme", ["one"], distribution="acme-a", before="1 / 0")
    registry = site.registry()
    assert registry.available() == []
    with pytest.raises(PluginError, match="acme-a is installed, but failed to load: ZeroDivision"):
        registry.create("acme/two")


@pytest.mark.parametrize("key", ["sparse", "Sparse"])
def test_an_impostor_is_refused_without_being_imported(site: Any, key: str) -> None:
    package = site.plugin("sparse", ["flash"], distribution="evil")
    file = site.path / "evil-1.0.dist-info" / "entry_points.txt"
    file.write_text(f"[polyattn.plugins]\n{key} = {package}.plugin\n", "utf-8")
    genuine = site.plugin("sparse", ["flash"], distribution="polyattn-sparse")
    registry = site.registry()
    assert type(registry.create("flash", dim=4)).__module__ == f"{genuine}.mechanism"
    assert registry.available() == ["flash"]
    found = status(registry, "evil")
    assert (found.state, found.reason) == (
        "failed",
        "the family 'sparse' is reserved for polyattn-sparse",
    )
    assert package not in sys.modules


def test_a_plugin_cannot_speak_for_another_distribution(site: Any) -> None:
    package = site.plugin("acme", ["one"])
    entry_points = f"[polyattn.plugins]\nacme = {package}.plugin\n"
    (site.path / "acme_attention-1.0.dist-info" / "entry_points.txt").unlink()
    site.install("borrower", {}, entry_points)
    assert status(site.registry(), "borrower").reason == (
        "polyattn_plugin_info says distribution 'acme-attention', but it is provided by 'borrower'"
    )


def test_a_plugin_cannot_offer_names_of_another_family(site: Any) -> None:
    site.plugin("sparse", ["flash"], distribution="polyattn-sparse")
    site.plugin("acme", ["flash"])
    site.plugin(
        "thief",
        extra="""
        import dataclasses
        @hookimpl
        def polyattn_mechanisms():
            return [dataclasses.replace(mechanism("flash"), family="sparse")]
        """,
    )
    registry = site.registry()
    assert registry.available() == ["acme/flash", "flash"]
    assert status(registry, "thief-attention").reason == (
        "polyattn_mechanisms offers 'sparse/flash', outside its own family 'thief'"
    )


def test_damaged_metadata_is_reported(site: Any) -> None:
    site.plugin("acme", ["one"])
    site.install("nameless", {}, "[polyattn.plugins]\nx = y\n", metadata="Version: 1.0")
    site.install("jumbled", {}, "[polyattn.plugins]\nnothing but words\n")
    registry = site.registry()
    assert registry.available() == ["one"]
    failed = [s for s in registry.plugins() if s.state == "failed"]
    assert len(failed) == 2
    assert any("metadata of" in s.reason and "is damaged" in s.reason for s in failed)
    assert any("entry_points.txt of jumbled is damaged" in s.reason for s in failed)


def test_unreadable_metadata_of_others_is_logged(
    site: Any, caplog: pytest.LogCaptureFixture
) -> None:
    site.plugin("acme", ["one"])
    info = site.install("latin", {}, "")
    (info / "entry_points.txt").write_bytes(b"[console_scripts]\n\xe9t\xe9 = x:y\n")
    assert site.registry().available() == ["one"]
    assert "cannot read the entry points of" in caplog.text


def test_a_manifest_must_not_use_the_registry(site: Any) -> None:
    site.plugin("acme", ["one"], before="import fake_shared\nfake_shared.registry.available()")
    (site.path / "fake_shared.py").write_text("registry = None")
    registry = site.registry()
    import fake_shared  # type: ignore[import-not-found]

    fake_shared.registry = registry
    assert registry.available() == []
    assert "uses the registry while it is loaded" in status(registry, "acme-attention").reason


def test_a_subscriber_may_look_at_the_registry(site: Any) -> None:
    from polyattn_core import diagnostics

    site.plugin("acme", before="1 / 0")
    site.plugin("sparse", ["stolen"], distribution="evil")
    site.plugin("zebra", ["one"])
    registry = site.registry()
    seen: list[Any] = []
    undo = diagnostics.subscribe(PluginFailed, lambda _: seen.append(registry.plugins()))
    try:
        assert registry.available() == ["one"]
    finally:
        undo()
    assert [s.state for s in seen[0]] == ["failed", "failed", "loaded"]
    assert diagnostics.bus.failures == {}


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        ("", ["acme/one", "zebra/one"]),
        ("acme", ["zebra/one"]),
        (" ACME , unknown,", ["zebra/one"]),
        ("acme,zebra", []),
        ("all", []),
    ],
)
def test_disabled(
    site: Any, monkeypatch: pytest.MonkeyPatch, setting: str, left: list[str]
) -> None:
    packages = {family: site.plugin(family, ["one"]) for family in ("acme", "zebra")}
    monkeypatch.setenv("POLYATTN_DISABLE_PLUGINS", setting)
    registry = site.registry()
    full_names = [registry.spec(name).full_name for name in registry.available()]
    assert full_names == left
    for found in registry.plugins():
        on = f"{found.family}/one" in left
        assert found.state == ("loaded" if on else "disabled")
        assert (packages[found.family] in sys.modules) == on
        assert found.reason == (
            "" if on else f"disabled by POLYATTN_DISABLE_PLUGINS={setting.strip()}"
        )


def test_names_of_disabled_plugins(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.plugin("sparse", ["flash"], distribution="polyattn-sparse")
    monkeypatch.setenv("POLYATTN_DISABLE_PLUGINS", "sparse")
    registry = site.registry()
    for name in ("flash", "sparse/flash", "sparse/anything"):
        with pytest.raises(PluginDisabledError) as caught:
            registry.create(name)
        assert str(caught.value) == (
            "polyattn-sparse is installed, but disabled by POLYATTN_DISABLE_PLUGINS=sparse"
        )
    assert registry.available(family="sparse") == []


def test_strict(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.plugin("acme", ["one"])
    site.plugin("broken", ["two"], before="1 / 0")
    monkeypatch.setenv("POLYATTN_STRICT", "1")
    registry = site.registry()
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            registry.create("acme/one", dim=4)
        assert str(caught.value) == (
            "broken-attention is installed, but failed to load: "
            "ZeroDivisionError: division by zero; run polyattn doctor"
        )
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(PluginError):
        registry.available()
    # This is where to look up what is wrong, so it works all the same.
    assert [s.state for s in registry.plugins()] == ["loaded", "failed"]


def test_strict_without_failures(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.plugin("acme", ["one"])
    monkeypatch.setenv("POLYATTN_STRICT", "yes")
    assert site.registry().available() == ["one"]


def test_strict_is_a_switch(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.plugin("broken", before="1 / 0")
    monkeypatch.setenv("POLYATTN_STRICT", "off")
    assert site.registry().available() == []
    monkeypatch.setenv("POLYATTN_STRICT", "perhaps")
    with pytest.raises(ArgumentError, match="POLYATTN_STRICT: got perhaps; expected one of 0, f"):
        site.registry().available()
