from __future__ import annotations

from typing import Any

import pytest

from polyattn_core.errors import (
    AmbiguousNameError,
    ArgumentError,
    NotInstalledError,
    PluginError,
    UnknownFamilyError,
    UnknownNameError,
)

PRESETS = """
@hookimpl
def polyattn_presets():
    return [
        PresetSpec(name="bert-base", family="standard", summary="BERT", mechanism="multi-head",
                   options={"dim": 768, "heads": 12}),
    ]
"""


def standard(site: Any, **more: Any) -> str:
    names = ["'scaled-dot-product', aliases=('sdpa',)", "multi-head", "entmax15"]
    package: str = site.plugin("standard", names, distribution="polyattn-standard", **more)
    return package


def sparse(site: Any, **more: Any) -> str:
    names = ["flash", "'linear', tags=('fast', 'kernel')", "'top-k', tags=('fast',)"]
    package: str = site.plugin("sparse", names, distribution="polyattn-sparse", **more)
    return package


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("flash", "sparse/flash"),
        ("Sparse/FLASH", "sparse/flash"),
        ("top_k", "sparse/top-k"),
        ("sdpa", "standard/scaled-dot-product"),
        ("standard/SDPA", "standard/scaled-dot-product"),
        ("standard/multi_head", "standard/multi-head"),
        ("multi-head@bert-base", "standard/multi-head"),
    ],
)
def test_ways_to_write_a_name(site: Any, written: str, meant: str) -> None:
    standard(site)
    sparse(site)
    assert site.registry().spec(written).full_name == meant


def test_reserved_aliases_work_although_the_plugin_does_not_declare_them(site: Any) -> None:
    site.plugin("standard", ["scaled-dot-product"], distribution="polyattn-standard")
    registry = site.registry()
    assert registry.spec("sdpa") is registry.spec("standard/sdpa")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("flsh", "no mechanism is called 'flsh'; did you mean 'flash'?"),
        ("sinkhron", "no mechanism is called 'sinkhron'; did you mean 'sinkhorn'?"),
        ("Zzz", "no mechanism is called 'zzz'"),
        ("sparse/flsh", "no mechanism is called 'sparse/flsh'; did you mean 'sparse/flash'?"),
        ("standard/flash", "no mechanism is called 'standard/flash'; did you mean 'sparse/flash'?"),
        ("standard/flsh", "no mechanism is called 'standard/flsh'; did you mean 'flash'?"),
        ("acme/two", "no mechanism is called 'acme/two'"),
        (
            "bert-base",
            "no mechanism is called 'bert-base'; did you mean 'multi-head@bert-base'?",
        ),
        (
            "gated",
            (
                "no mechanism is called 'gated'; did you mean 'gated-delta' or 'gated-linear' or "
                "'mincut-gated'?"
            ),
        ),
    ],
)
def test_unknown_names(site: Any, name: str, text: str) -> None:
    standard(site, extra=PRESETS)
    sparse(site)
    site.plugin("acme", ["one"])
    with pytest.raises(UnknownNameError) as caught:
        site.registry().create(name)
    assert (type(caught.value), str(caught.value)) == (UnknownNameError, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("spars/flash", "no family is called 'spars'; did you mean 'sparse'?"),
        ("transprt/sinkhorn", "no family is called 'transprt'; did you mean 'transport'?"),
        ("acmee/one", "no family is called 'acmee'; did you mean 'acme'?"),
        ("nobody/flash", "no family is called 'nobody'"),
    ],
)
def test_unknown_families(site: Any, name: str, text: str) -> None:
    site.plugin("acme", ["one"])
    with pytest.raises(UnknownFamilyError) as caught:
        site.registry().create(name)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["sinkhorn", "transport/sinkhorn"])
def test_not_installed(site: Any, name: str) -> None:
    with pytest.raises(NotInstalledError) as caught:
        site.registry().create(name)
    assert str(caught.value) == (
        "the mechanism 'transport/sinkhorn' is not installed: pip install polyattn-transport"
    )
    assert caught.value.distribution == "polyattn-transport"


def test_another_package_does_not_stand_in_for_a_family_that_is_not_installed(site: Any) -> None:
    site.plugin("acme", ["flash", "'quick', aliases=('linear',)"])
    registry = site.registry()
    for short, other in (("flash", "acme/flash"), ("linear", "acme/quick")):
        with pytest.raises(NotInstalledError) as caught:
            registry.create(short)
        assert str(caught.value) == (
            f"the mechanism 'sparse/{short}' is not installed: pip install polyattn-sparse; "
            f"other packages offer '{other}'"
        )
    assert registry.available() == ["acme/flash", "quick"]
    assert registry.create("acme/flash", dim=4).spec.full_name == "acme/flash"


def test_an_impostor_does_not_stand_in_either(site: Any) -> None:
    site.plugin("sparse", ["flash"], distribution="evil")
    with pytest.raises(NotInstalledError, match="pip install polyattn-sparse") as caught:
        site.registry().create("flash")
    assert caught.value.__notes__ == [
        "evil was refused: the family 'sparse' is reserved for polyattn-sparse"
    ]


def test_an_installed_version_that_lacks_a_reserved_name(site: Any) -> None:
    site.plugin("sparse", ["flash"], distribution="polyattn-sparse", version="0.0.3")
    with pytest.raises(NotInstalledError) as caught:
        site.registry().create("linear")
    assert str(caught.value) == (
        "the mechanism 'sparse/linear' is not in polyattn-sparse 0.0.3: "
        "pip install --upgrade polyattn-sparse"
    )


@pytest.mark.parametrize("name", ["flash", "sparse/flash", "sparse/never-heard-of"])
def test_first_party_plugin_that_failed(site: Any, name: str) -> None:
    sparse(site, before="import fake_missing_dependency")
    site.plugin("acme", ["flash"])
    registry = site.registry()
    with pytest.raises(PluginError) as caught:
        registry.create(name)
    assert str(caught.value) == (
        "polyattn-sparse is installed, but failed to load: ModuleNotFoundError: "
        "No module named 'fake_missing_dependency'; run polyattn doctor"
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_plugins_that_failed_are_mentioned_where_a_name_is_unknown(site: Any) -> None:
    site.plugin("acme", ["solo"], before="1 / 0")
    registry = site.registry()
    with pytest.raises(UnknownNameError, match="no mechanism is called 'solo'") as caught:
        registry.create("solo")
    assert caught.value.__notes__ == [
        (
            "acme-attention, which failed to load (ZeroDivisionError: division by zero), "
            "may have it; run polyattn doctor"
        )
    ]
    with pytest.raises(PluginError, match="acme-attention is installed, but failed to load"):
        registry.create("acme/solo")


def test_first_party_names_mean_the_same_whatever_is_installed(site: Any) -> None:
    sparse(site)
    site.plugin("acme", ["flash", "'other', aliases=('linear',)"])
    registry = site.registry()
    assert registry.spec("flash").full_name == "sparse/flash"
    assert registry.spec("linear").full_name == "sparse/linear"
    assert registry.spec("acme/flash").full_name == "acme/flash"
    assert registry.available() == ["acme/flash", "flash", "linear", "other", "top-k"]


def test_new_names_of_a_first_party_family_win_too(site: Any) -> None:
    site.plugin("acme", ["brand-new"])
    site.plugin("sparse", ["brand-new"], distribution="polyattn-sparse")
    registry = site.registry()
    assert registry.spec("brand-new").full_name == "sparse/brand-new"
    assert registry.available() == ["acme/brand-new", "brand-new"]


def test_a_preset_given_as_a_mechanism_leads_to_the_mechanism_of_its_own_plugin(site: Any) -> None:
    extra = """
    @hookimpl
    def polyattn_presets():
        return [PresetSpec(name="tiny", family="acme", summary="", mechanism="flash")]
    """
    site.plugin("acme", ["flash"], extra=extra)
    with pytest.raises(UnknownNameError, match="did you mean 'acme/flash@tiny'") as caught:
        site.registry().create("tiny")
    assert caught.value.suggestions == ("acme/flash@tiny",)


def test_a_short_name_that_several_claim(site: Any) -> None:
    site.plugin("beta", ["'other', aliases=('shared',)"])
    site.plugin("acme10", ["shared"])
    site.plugin("acme9", ["shared"])
    registry = site.registry()
    with pytest.raises(AmbiguousNameError) as caught:
        registry.create("shared")
    assert str(caught.value) == (
        "several plugins provide a mechanism called 'shared'; write one of 'acme9/shared', "
        "'acme10/shared', 'beta/other', or choose with polyattn.prefer('shared', 'acme9/shared')"
    )
    assert registry.available() == ["acme9/shared", "acme10/shared", "other"]
    assert registry.create("acme10/shared", dim=4).spec.family == "acme10"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, ["acme/flash", "entmax15", "flash", "linear", "multi-head", "n2", "n10",
              "scaled-dot-product", "top-k"]),
        ({"pattern": "*l*"}, ["acme/flash", "flash", "linear", "multi-head", "scaled-dot-product"]),
        ({"pattern": "SPARSE/*"}, ["flash", "linear", "top-k"]),
        ({"pattern": "n?"}, ["n2"]),
        ({"pattern": "n[0-9]*"}, ["n2", "n10"]),
        ({"pattern": "top_k"}, ["top-k"]),
        ({"family": "Sparse"}, ["flash", "linear", "top-k"]),
        ({"family": "transport"}, []),
        ({"tags": "fast"}, ["linear", "top-k"]),
        ({"tags": ("fast", "kernel")}, ["linear"]),
        ({"exclude": "*a*"}, ["n2", "n10", "top-k"]),
        ({"exclude": ("acme/*", "standard/*", "l*")}, ["flash", "top-k"]),
        ({"capability": "dropout"}, ["n2"]),
        ({"capability": ("masks", "window"), "family": "acme"}, ["acme/flash", "n10"]),
        ({"capability": ("side_inputs", "edges")}, ["n2"]),
        ({"capability": "side_inputs"}, ["n2"]),
        ({"capability": ("time", "O(n)")}, ["n2"]),
        ({"kind": "preset"}, ["bert-base"]),
        ({"kind": "loss"}, []),
        ({"kind": "preset", "capability": "causal"}, []),
    ],
)  # fmt: skip
def test_what_is_available(site: Any, arguments: dict[str, Any], names: list[str]) -> None:
    standard(site, extra=PRESETS)
    sparse(site)
    capabilities = (
        "Capabilities(masks=('causal',), dropout=True, time='O(n)', side_inputs=("
        "SideInput(name='edges', shape='(2, E)', description='pairs'),))"
    )
    site.plugin(
        "acme",
        ["n10", "flash", f"'n2', capabilities={capabilities}"],
        before="from polyattn_core.spec import SideInput",
    )
    assert site.registry().available(**arguments) == names


def test_every_name_that_is_listed_leads_back(site: Any) -> None:
    standard(site)
    sparse(site)
    site.plugin("acme", ["flash", "one", "shared"])
    site.plugin("beta", ["shared", "'two', aliases=('one',)"])
    registry = site.registry()
    names = registry.available()
    assert len({registry.spec(name).full_name for name in names}) == len(names) == 11


def test_listing_an_unknown_or_failed_family_is_an_error(site: Any) -> None:
    site.plugin("acme", ["one"], before="1 / 0")
    registry = site.registry()
    with pytest.raises(UnknownFamilyError, match="did you mean 'sparse'"):
        registry.available(family="spares")
    with pytest.raises(PluginError, match="acme-attention"):
        registry.available(family="acme")


def test_capabilities_are_known_by_name(site: Any) -> None:
    sparse(site)
    registry = site.registry()
    assert registry.having("causal") == ["flash", "linear", "top-k"]
    assert registry.having("causal", False) == []
    assert registry.having("masks", "window") == ["flash", "linear", "top-k"]
    with pytest.raises(ArgumentError, match="capability: got casual; expected one of causal, m"):
        registry.having("casual")


ENTRIES = """
@hookimpl
def polyattn_entries():
    return [EntrySpec(kind="loss", name="info-nce", family="acme", summary="",
                      factory="PACKAGE.mechanism:reference")]

@hookimpl
def polyattn_metrics():
    return [MetricSpec(name="energy", family="acme", summary="",
                       factory="PACKAGE.mechanism:reference")]
"""


def test_entries_of_other_kinds(site: Any) -> None:
    package = site.plugin("acme", extra=ENTRIES)
    registry = site.registry()
    assert registry.available(kind="loss") == ["info-nce"]
    assert registry.available(kind="metric") == ["energy"]
    assert registry.spec("info_nce", "loss").kind == "loss"
    assert registry.resolve("acme/energy", "metric").__module__ == f"{package}.mechanism"
    with pytest.raises(UnknownNameError) as caught:
        registry.resolve("info-nec", "loss")
    assert str(caught.value) == "no loss is called 'info-nec'; did you mean 'info-nce'?"
    # A name that is reserved for a mechanism may be anything else.
    with pytest.raises(UnknownNameError, match=r"^no loss is called 'flash'$"):
        registry.resolve("flash", "loss")


def test_a_hook_is_not_called_before_its_kind_is_asked_for(site: Any) -> None:
    package = site.plugin(
        "acme",
        ["one"],
        extra="""
        calls = []
        @hookimpl
        def polyattn_presets():
            calls.append("presets")
            return []
        @hookimpl
        def polyattn_metrics():
            calls.append("metrics")
            return []
        """,
    )
    import importlib

    registry = site.registry()
    registry.available()
    registry.create("one", dim=4)
    calls = importlib.import_module(f"{package}.plugin").calls
    assert calls == []
    registry.presets()
    registry.presets("one")
    assert calls == ["presets"]
    registry.available(kind="metric")
    assert calls == ["presets", "metrics"]


def test_a_hook_that_fails_later_leaves_the_rest_of_its_plugin(site: Any) -> None:
    site.plugin("acme", ["one"], extra="@hookimpl\ndef polyattn_presets(): raise OSError('gone')")
    site.plugin(
        "beta",
        ["two"],
        extra="""
        @hookimpl
        def polyattn_presets():
            return [PresetSpec(name="small", family="beta", summary="", mechanism="two")]
        """,
    )
    registry = site.registry()
    assert [preset.name for preset in registry.presets()] == ["small"]
    assert registry.available() == ["one", "two"]
    failed = registry.plugins()[0]
    assert (failed.state, failed.mechanisms) == ("failed", 1)
    assert failed.reason == "polyattn_presets: OSError: gone"
    assert "Traceback" in failed.error
    with pytest.raises(PluginError, match="polyattn_presets: OSError: gone"):
        registry.preset("acme/large")
    assert registry.create("one", dim=4).spec.name == "one"


@pytest.mark.parametrize(
    ("offer", "reason"),
    [
        (
            "def polyattn_entries(): return [mechanism('sneaky')]",
            (
                "polyattn_entries offers 'acme/sneaky' of kind 'mechanism', "
                "which belongs into polyattn_mechanisms"
            ),
        ),
        (
            (
                "def polyattn_entries(): return [EntrySpec(kind='metric', name='m', family='acme', "
                "summary='', factory='a:b')]"
            ),
            "ArgumentError: acme/m: got EntrySpec; expected MetricSpec, as its kind is 'metric'",
        ),
    ],
)
def test_entries_in_the_wrong_hook(site: Any, offer: str, reason: str) -> None:
    site.plugin("acme", ["one"], extra=f"@hookimpl\n{offer}")
    registry = site.registry()
    assert registry.available(kind="loss") == []
    assert registry.plugins()[0].reason == f"polyattn_entries: {reason}"
    assert registry.available() == ["one"]
