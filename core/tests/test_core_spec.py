"""Spec literals: what they refuse, how they read from files, how references resolve."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyattn_core import spec
from polyattn_core.spec import (
    Capabilities,
    ConformanceCase,
    EntrySpec,
    MechanismSpec,
    MetricSpec,
    PluginInfo,
    PresetSpec,
    SideInput,
    presets_from_toml,
    resolve,
)


def mechanism(**more: Any) -> MechanismSpec:
    given = {
        "name": "one",
        "family": "acme",
        "summary": "One",
        "factory": "acme.one:One",
        "config": "acme.config:OneConfig",
        "reference": "acme.reference:one",
    }
    return MechanismSpec(**{**given, **more})


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("name", "One", "name: 'One' is not lower-case kebab (a-z, 0-9, single -)"),
        ("name", "", "name: '' is not lower-case kebab (a-z, 0-9, single -)"),
        ("name", "a--b", "name: 'a--b' is not lower-case kebab (a-z, 0-9, single -)"),
        ("name", "-a", "name: '-a' is not lower-case kebab (a-z, 0-9, single -)"),
        ("name", "a_b", "name: 'a_b' is not lower-case kebab (a-z, 0-9, single -)"),
        ("name", "a\n", "name: 'a\\n' is not lower-case kebab (a-z, 0-9, single -)"),
        ("family", "a/b", "family: 'a/b' is not lower-case kebab (a-z, 0-9, single -)"),
        ("kind", "a b", "kind: 'a b' is not lower-case kebab (a-z, 0-9, single -)"),
        ("aliases", ("ok", "Ω"), "aliases: 'Ω' is not lower-case kebab (a-z, 0-9, single -)"),
        ("factory", "acme.one", "factory: 'acme.one' is not of the form 'package.module:Name'"),
        ("config", "a:b:c", "config: 'a:b:c' is not of the form 'package.module:Name'"),
        ("reference", ":one", "reference: ':one' is not of the form 'package.module:Name'"),
        ("reference", "a:b.c", "reference: 'a:b.c' is not of the form 'package.module:Name'"),
    ],
)
def test_malformed_mechanisms(option: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"(?s).") as caught:
        mechanism(**{option: value})
    assert str(caught.value) == text


def test_malformed_capabilities() -> None:
    with pytest.raises(ValueError, match=r"^masks: unknown kind 'casual'; known are \('causal', "):
        Capabilities(masks=("causal", "casual"))
    with pytest.raises(ValueError, match=r"^dtypes: unknown 'float8'; known are \('float16', "):
        Capabilities(dtypes=("float8",))


def test_malformed_conformance_cases() -> None:
    with pytest.raises(ValueError, match=r"^inputs: 'edges' is not of the form"):
        ConformanceCase(mechanism="one", inputs="edges")


def test_what_a_mechanism_says() -> None:
    one = mechanism(
        capabilities=Capabilities(side_inputs=(SideInput(name="e", shape="(n,)", description="E"),))
    )
    assert one.kind == "mechanism"
    assert one.full_name == "acme/one"
    assert one == mechanism(capabilities=one.capabilities)
    assert hash(one) == hash(mechanism(capabilities=one.capabilities))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "two"  # type: ignore[misc]
    as_json = json.loads(json.dumps(one.to_dict()))
    assert as_json["capabilities"]["side_inputs"] == [
        {"name": "e", "shape": "(n,)", "description": "E", "required": True}
    ]
    assert as_json["factory"] == "acme.one:One"


def test_what_a_preset_says() -> None:
    options = {"dim": 8, "sizes": (1, 2)}
    preset = PresetSpec(name="p", family="acme", summary="P", mechanism="one", options=options)
    options["dim"] = 9
    assert preset.options["dim"] == 8
    with pytest.raises(TypeError):
        preset.options["dim"] = 9  # type: ignore[index]
    assert json.loads(json.dumps(preset.to_dict()))["options"] == {"dim": 8, "sizes": [1, 2]}


def test_weights_of_a_preset() -> None:
    given: Any = {"c_attn.T": ["query", "key"], "c_proj": "output"}
    preset = PresetSpec(name="p", family="acme", summary="P", mechanism="one", weights=given)
    assert preset.weights == {"c_attn.T": ("query", "key"), "c_proj": ("output",)}
    assert json.loads(json.dumps(preset.to_dict()))["weights"]["c_proj"] == ["output"]
    with pytest.raises(ValueError, match=r"weights: .*does not map names to names"):
        PresetSpec(
            name="p", family="acme", summary="P", mechanism="one",
            weights={"c_attn": (1,)},  # type: ignore[dict-item]
        )  # fmt: skip


def test_kinds() -> None:
    metric = MetricSpec(name="m", family="acme", summary="M", factory="a:b", direction="lower")
    assert metric.kind == "metric"
    assert EntrySpec(kind="loss", name="l", family="acme", summary="", factory="a:b").kind == "loss"
    case = ConformanceCase(mechanism="one", options={"dim": 4}, expected_failures={"a": "b"})
    with pytest.raises(TypeError):
        case.expected_failures["c"] = "d"  # type: ignore[index]


def test_plugin_info_wants_names() -> None:
    with pytest.raises(TypeError):
        PluginInfo("acme", "", "acme-attention", "1", 1)  # type: ignore[misc]


# ---- references -----------------------------------------------------------------------------


def test_resolve() -> None:
    assert resolve("json.decoder:JSONDecoder") is json.JSONDecoder
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        resolve("no_such_module:Name")
    with pytest.raises(AttributeError, match="NoSuchName"):
        resolve("json:NoSuchName")
    with pytest.raises(ValueError, match=r"^reference: 'json' is not of the form"):
        resolve("json")


# ---- presets --------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "acme_presets"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "acme_presets", raising=False)
    return folder


def test_presets_from_toml(package: Path) -> None:
    (package / "presets.toml").write_text(
        """
        [longformer-base]
        mechanism = "local-global"
        summary = "Longformer, größe „base“"
        source = "arXiv:2004.05150, section 5"
        tags = ["long", "encoder"]
        options = { dim = 768, heads = 12, window = 512, causal = false, rope = { base = 1e4 } }

        [tiny]
        mechanism = "acme/one"
        summary = "Small"
        models = ["tiny-"]
        weights = { "c.T" = ["query", "key"], o = "output" }
        """,
        "utf-8",
    )
    longformer, tiny = presets_from_toml("acme_presets", "acme")
    assert longformer.full_name == "acme/longformer-base"
    assert longformer.mechanism == "local-global"
    assert longformer.summary == "Longformer, größe „base“"
    assert longformer.tags == ("long", "encoder")
    assert dict(longformer.options) == {
        "dim": 768, "heads": 12, "window": 512, "causal": False, "rope": {"base": 1e4},
    }  # fmt: skip
    assert (tiny.name, dict(tiny.options), tiny.source) == ("tiny", {}, "")
    assert tiny.models == ("tiny-",)
    assert tiny.weights == {"c.T": ("query", "key"), "o": ("output",)}


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("[a]\nsummary = 'x'", TypeError, "mechanism"),
        ("[a]\nmechanism = 'm'\nsummary = 's'\ncolour = 1", TypeError, "colour"),
        ("[A]\nmechanism = 'm'\nsummary = 's'", ValueError, "name: 'A' is not lower-case"),
        ("[a", ValueError, "Expected"),
    ],
)
def test_malformed_presets(package: Path, text: str, error: type[Exception], match: str) -> None:
    (package / "mine.toml").write_text(text, "utf-8")
    with pytest.raises(error, match=match):
        presets_from_toml("acme_presets", "acme", "mine.toml")


def test_a_presets_file_that_is_missing(package: Path) -> None:
    with pytest.raises(FileNotFoundError):
        presets_from_toml("acme_presets", "acme")


def test_reading_specs_imports_nothing_heavy(run_python: Any) -> None:
    code = """
import sys
import polyattn_core.hooks, polyattn_core.plugin
print(sorted({"numpy", "numba", "pydantic", "rich"} & set(sys.modules)))
"""
    assert run_python(code) == "[]\n"


def test_mask_kinds_are_those_of_the_masks() -> None:
    from polyattn_core import masks

    defined = {
        value.kind
        for value in vars(masks).values()
        if isinstance(value, type) and issubclass(value, masks.Mask) and value.kind
    }
    assert defined == set(spec.MASK_KINDS)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_literals_with_options_can_be_copied(copied: Callable[[Any], Any]) -> None:
    preset = PresetSpec(
        name="base", family="acme", summary="…", mechanism="one", options={"dim": 8}
    )
    case = ConformanceCase(mechanism="one", options={"dim": 8}, expected_failures={"check_x": "…"})
    for literal in (preset, case):
        again = copied(literal)
        assert again == literal
        with pytest.raises(TypeError):
            again.options["dim"] = 9
