from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from polyattn_core.diagnostics import MechanismCreated
from polyattn_core.errors import (
    AmbiguousNameError,
    ArgumentError,
    ConfigError,
    PluginError,
    UnknownNameError,
)
from polyattn_registry import Registry

PRESETS = """
@hookimpl
def polyattn_presets():
    def preset(name, mechanism, **options):
        return PresetSpec(name=name, family="{family}", summary="", mechanism=mechanism,
                          options=options, aliases=(name + "-alias",))
    return [
        preset("base", "{mechanism}", dim=64, heads=8),
        preset("{family}-tiny", "{family}/{mechanism}", dim=8),
        preset("narrow", "flash", dim=32, window=2),
    ]
"""


@pytest.fixture
def registry(site: Any) -> Registry:
    site.plugin(
        "sparse",
        ["flash", "linear"],
        distribution="polyattn-sparse",
        extra=PRESETS.format(family="sparse", mechanism="flash"),
    )
    site.plugin("acme", ["wide"], extra=PRESETS.format(family="acme", mechanism="wide"))
    registry: Registry = site.registry()
    return registry


def test_options(registry: Registry) -> None:
    flash = registry.create("flash", dim=16, heads=4)
    assert flash.spec is registry.spec("flash")
    assert flash.config.model_dump(exclude_unset=True) == {"dim": 16, "heads": 4}


def test_options_as_a_mapping(registry: Registry) -> None:
    flash = registry.create("flash", config={"dim": 16, "heads": 4}, heads=2)
    assert (flash.config.dim, flash.config.heads) == (16, 2)


def test_options_as_an_instance(registry: Registry) -> None:
    config = registry.create("flash", dim=16, window=7).config
    assert registry.create("flash", config=config).config is config
    assert registry.create("flash", config=config, dim=32).config == config.model_copy(
        update={"dim": 32}
    )
    # What was not set on purpose is left to the preset.
    mixed = registry.create("flash@base", config=config).config
    assert (mixed.dim, mixed.heads, mixed.window) == (16, 8, 7)


def test_an_instance_of_a_subclass_stays_one(registry: Registry) -> None:
    class Special(type(registry.create("flash", dim=16).config)):  # type: ignore[misc]
        extra: int = 3

    assert type(registry.create("flash", config=Special(dim=8), heads=2).config) is Special


@pytest.mark.parametrize("config", [3, "dim=4", object()])
def test_config_of_another_type(registry: Registry, config: Any) -> None:
    with pytest.raises(ArgumentError, match="expected a mapping of options, or an instance of Con"):
        registry.create("flash", config=config)


def test_config_of_another_mechanism(registry: Registry) -> None:
    config = registry.create("wide", dim=4).config
    with pytest.raises(ArgumentError, match=r"^config: got Config"):
        registry.create("flash", config=config)


def test_config_with_names_that_are_no_strings(registry: Registry) -> None:
    with pytest.raises(ArgumentError, match="config: got 3; expected names of options"):
        registry.create("flash", config={3: 4})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "dim: got nothing; expected a value: sparse/flash requires it"),
        ({"dim": 0}, "dim: got 0; expected at least 1 and at most 1048576"),
        (
            {"dim": 4, "windw": 2},
            (
                "windw: got 2; expected one of the options of sparse/flash: dim, heads, kv_heads, "
                "threads, window, causal (did you mean 'window'?)"
            ),
        ),
        ({"dim": 4, "heads": 3}, "heads: got 3; expected another value: 3 does not divide dim 4"),
    ],
)
def test_options_are_checked(registry: Registry, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.create("flash", **options)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", [None, 3, ["flash"]])
def test_names_are_strings(registry: Registry, name: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^name: got .*; expected the name of a mechanism$"):
        registry.create(name)


@pytest.mark.parametrize(
    ("name", "preset", "dim"),
    [
        ("flash@base", None, 64),
        ("flash", "base", 64),
        ("flash", "BASE_ALIAS", 64),
        ("flash", "sparse/base", 64),
        ("sparse/flash@sparse/base", None, 64),
        ("flash", "sparse-tiny", 8),
        ("flash", "narrow", 32),
        ("wide@base", None, 64),
        ("wide@acme-tiny", None, 8),
        ("flash", "acme/narrow", 32),
    ],
)
def test_presets_give_options(registry: Registry, name: str, preset: str | None, dim: int) -> None:
    assert registry.create(name, preset=preset).config.dim == dim
    assert registry.create(name, preset=preset, dim=24).config.dim == 24
    assert registry.create(name, preset=preset, config={"dim": 40}).config.dim == 40


def test_presets_are_listed(registry: Registry) -> None:
    assert [preset.full_name for preset in registry.presets("sparse/flash")] == [
        "acme/narrow",
        "sparse/base",
        "sparse/narrow",
        "sparse/sparse-tiny",
    ]
    assert [preset.full_name for preset in registry.presets("wide")] == [
        "acme/acme-tiny",
        "acme/base",
    ]
    assert registry.presets("linear") == []
    assert len(registry.presets()) == 6
    assert registry.preset("base").full_name == "sparse/base"
    assert registry.preset("acme/base").mechanism == "wide"
    assert registry.available(kind="preset", family="acme") == [
        "acme-tiny",
        "acme/base",
        "acme/narrow",
    ]


@pytest.mark.parametrize(
    ("name", "preset", "error", "text"),
    [
        (
            "linear",
            "base",
            ArgumentError,
            (
                "preset: got base, which is for flash; "
                "expected a preset of sparse/linear (it has none)"
            ),
        ),
        (
            "wide",
            "narrow",
            ArgumentError,
            (
                "preset: got narrow, which is for flash; "
                "expected a preset of acme/wide (acme-tiny, base)"
            ),
        ),
        ("flash", "bsae", UnknownNameError, "no preset is called 'bsae'; did you mean 'base'?"),
        ("flash", "", ArgumentError, None),
        (
            "flash@base",
            "narrow",
            ArgumentError,
            "preset: got narrow; expected none, as 'flash@base' names a preset already",
        ),
    ],
)
def test_presets_that_do_not_fit(
    registry: Registry, name: str, preset: str, error: type[Exception], text: str | None
) -> None:
    with pytest.raises(error) as caught:
        registry.create(name, preset=preset)
    assert type(caught.value) is error
    if text is not None:
        assert str(caught.value) == text


def test_presets_of_several_families(site: Any) -> None:
    site.plugin("sparse", ["flash"], distribution="polyattn-sparse")
    for family in ("acme", "beta"):
        extra = PRESETS.format(family=family, mechanism="own")
        site.plugin(family, ["own"], extra=extra)
    registry = site.registry()
    # Each plugin means its own mechanism by a short name, before others.
    assert registry.create("beta/own@base").spec.family == "beta"
    with pytest.raises(AmbiguousNameError, match="'acme/narrow', 'beta/narrow'"):
        registry.create("flash@narrow")
    assert registry.create("flash@beta/narrow").config.dim == 32
    undo = registry.prefer("narrow", "acme/narrow", kind="preset")
    assert registry.create("flash@narrow").config.dim == 32
    undo()
    # Among presets that fit, the rules are those for all short names.
    extra = PRESETS.format(family="standard", mechanism="other")
    site.plugin("standard", ["other"], distribution="polyattn-standard", extra=extra)
    registry.refresh()
    assert registry.create("flash@narrow").config.dim == 32


def test_a_malformed_preset_harms_no_other(site: Any) -> None:
    site.plugin("acme", ["wide"], extra=PRESETS.format(family="acme", mechanism="wide"))
    site.plugin("beta", ["other"], extra=PRESETS.format(family="beta", mechanism="a/b/c"))
    registry = site.registry()
    assert len(registry.presets("wide")) == 2
    assert "mechanism of the preset beta/base: got a/b/c" in registry.plugins()[1].reason


def test_config_schema(registry: Registry) -> None:
    schema = registry.config_schema("flash")
    assert schema["properties"]["window"]["maximum"] == 64
    assert schema["additionalProperties"] is False


def test_references_are_imported_on_creation_and_once(site: Any) -> None:
    package = site.plugin("acme", ["one", "two"])
    registry = site.registry()
    registry.spec("one")
    assert f"{package}.config" not in sys.modules
    first = registry.create("one", dim=4)
    for module in ("config", "mechanism"):
        del sys.modules[f"{package}.{module}"]
    assert type(registry.create("one", dim=4)) is type(first)
    assert f"{package}.mechanism" not in sys.modules


@pytest.mark.parametrize("module", ["config", "mechanism"])
def test_references_that_cannot_be_imported(site: Any, module: str) -> None:
    package = site.plugin("acme", ["one"])
    (site.path / package / f"{module}.py").write_text("import fake_accelerator")
    registry = site.registry()
    assert registry.available() == ["one"]
    with pytest.raises(PluginError) as caught:
        registry.create("one", dim=4)
    assert str(caught.value) == (
        f"acme-attention is installed, but failed to load: acme/one refers to '{package}.{module}:"
        f"{module.title()}': ModuleNotFoundError: No module named 'fake_accelerator'; "
        "run polyattn doctor"
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_errors_of_the_mechanism_itself_pass_through(site: Any) -> None:
    package = site.plugin("acme", ["one"])
    source = "class Mechanism:\n    def __init__(self, config, *, spec): raise OSError('mine')"
    (site.path / package / "mechanism.py").write_text(source)
    with pytest.raises(OSError, match=r"^mine$"):
        site.registry().create("one", dim=4)


def test_creation_is_announced(registry: Registry, listen: Callable[..., list[Any]]) -> None:
    registry.create("flash", dim=4)
    events = listen(MechanismCreated)
    registry.create("flash@base", dim=4, heads=2)
    (event,) = events
    assert event.name == "sparse/flash"
    assert (event.options["dim"], event.options["window"]) == (4, 4)
    assert event.seconds > 0


CASES = """
@hookimpl
def polyattn_conformance_cases():
    return [
        ConformanceCase(mechanism="one", options={{"window": 3}}),
        ConformanceCase(mechanism="{second}", name="other"),
    ]
"""


def test_conformance_cases(site: Any) -> None:
    site.plugin("acme", ["one", "two"], extra=CASES.format(second="acme/one"))
    registry = site.registry()
    assert [case.name for case in registry.conformance_cases("one")] == ["default", "other"]
    assert registry.conformance_cases("two") == []


@pytest.mark.parametrize("second", ["three", "sparse/flash", "a/b/c"])
def test_conformance_cases_for_nothing(site: Any, second: str) -> None:
    site.plugin("acme", ["one"], extra=CASES.format(second=second))
    registry = site.registry()
    with pytest.raises(PluginError, match="polyattn_conformance_cases: "):
        registry.conformance_cases("one")
    assert registry.plugins()[0].state == "failed"
    assert registry.create("one", dim=4).spec.name == "one"
