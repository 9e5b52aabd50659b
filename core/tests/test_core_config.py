"""Schemas, and the errors in which their complaints are told."""

from __future__ import annotations

from typing import Any, Literal, Self

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from polyattn_core.config import AttentionConfig, Schema, build_config
from polyattn_core.errors import ConfigError
from polyattn_core.positions import Alibi, Rope, T5Bias
from polyattn_core.streaming import ScaledConfig


class Inner(Schema):
    width: int = Field(default=3, ge=1)
    """How wide."""


class Config(ScaledConfig):
    """One of everything that can be wrong."""

    window: int = Field(ge=2, le=64)
    """Keys on each side."""
    stride: int = Field(default=4, multiple_of=2)
    mode: Literal["strided", "fixed"] = "strided"
    sizes: tuple[int, ...] = ()
    inner: Inner = Inner()
    wave: float = 1.0

    @field_validator("wave")
    @classmethod
    def _check_wave(cls, value: float) -> float:
        if value == 13:
            raise ValueError("a number: any but 13")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.window < self.stride:
            raise ValueError(f"window: must be at least the stride {self.stride}")
        if self.sizes and self.mode == "fixed":
            raise ValueError("sizes and mode: choose one")
        if self.wave < 0:
            raise ValueError("waves go up")
        return self


OPTIONS = (
    "dim, heads, kv_heads, threads, causal, dropout, softcap, reproducible, position, score, "
    "score_params, scale, window, stride, mode, sizes, inner, wave"
)
ROPE = "kind, base, interleaved, size, factor, trained, ramp"


@pytest.mark.parametrize(
    ("options", "argument", "text"),
    [
        # Names
        (
            {"windw": 3},
            "windw",
            f"got 3; expected one of the options of acme/one: {OPTIONS} (did you mean 'window'?)",
        ),
        ({"zzz": None}, "zzz", f"got None; expected one of the options of acme/one: {OPTIONS}"),
        ({"window": ...}, "window", "got nothing; expected a value: acme/one requires it"),
        # Bounds and types
        ({"dim": 0}, "dim", "got 0; expected at least 1 and at most 1048576"),
        ({"window": 65}, "window", "got 65; expected at least 2 and at most 64"),
        ({"dropout": 1.0}, "dropout", "got 1.0; expected at least 0 and less than 1"),
        ({"scale": 0}, "scale", "got 0; expected greater than 0"),
        ({"scale": float("inf")}, "scale", "got inf; expected a finite number"),
        ({"scale": float("nan")}, "scale", "got nan; expected a finite number"),
        ({"stride": 3}, "stride", "got 3; expected a multiple of 2"),
        ({"mode": "both"}, "mode", "got both; expected 'strided' or 'fixed'"),
        (
            {"dim": 2.5},
            "dim",
            "got 2.5; expected a valid integer, got a number with a fractional part",
        ),
        (
            {"dim": "x"},
            "dim",
            "got x; expected a valid integer, unable to parse string as an integer",
        ),
        (
            {"causal": "maybe"},
            "causal",
            "got maybe; expected a valid boolean, unable to interpret input",
        ),
        # Inside others
        (
            {"sizes": (1, "x")},
            "sizes.1",
            "got x; expected a valid integer, unable to parse string as an integer",
        ),
        ({"inner": {"width": 0}}, "inner.width", "got 0; expected at least 1"),
        (
            {"inner": {"wdth": 2}},
            "inner.wdth",
            "got 2; expected one of the options of inner: width (did you mean 'width'?)",
        ),
        ({"position": "rope2"}, "position", "got rope2; expected one of 'rope', 'alibi', 't5'"),
        ({"position": {}}, "position", "got {}; expected a mapping that says 'kind'"),
        (
            {"position": {"kind": "rope", "bse": 3}},
            "position.rope.bse",
            f"got 3; expected one of the options of position.rope: {ROPE} (did you mean 'base'?)",
        ),
        (
            {"position": {"kind": "rope", "base": 1}},
            "position.rope.base",
            "got 1; expected greater than 1",
        ),
        # Rules
        ({"heads": 3}, "heads", "got 3; expected another value: 3 does not divide dim 8"),
        (
            {"heads": 4, "kv_heads": 3},
            "kv_heads",
            "got 3; expected another value: 3 does not divide heads 4",
        ),
        ({"window": 2}, "window", "got 2; expected another value: must be at least the stride 4"),
        ({"wave": 13.0}, "wave", "got 13.0; expected a number: any but 13"),
        (
            {"sizes": (1,), "mode": "fixed"},
            "sizes and mode",
            "got its default; expected another value: choose one",
        ),
        (
            {"position": {"kind": "t5", "max_distance": 4}},
            "position.t5.max_distance",
            "got 4; expected another value: must exceed the 8 exact distances",
        ),
        (
            {"position": {"kind": "t5", "buckets": 1024}},
            "position.t5.max_distance",
            "got its default; expected another value: must exceed the 256 exact distances",
        ),
    ],
)
def test_explanations(options: dict[str, Any], argument: str, text: str) -> None:
    given = {"dim": 8, "window": 8, **options}
    given = {name: value for name, value in given.items() if value is not ...}
    with pytest.raises(ConfigError) as caught:
        build_config(Config, given, mechanism="acme/one")
    assert caught.value.argument == argument
    assert str(caught.value) == f"{argument}: {text}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_rule_that_names_no_field() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(Config, {"dim": 8, "window": 8, "wave": -1}, mechanism="acme/one")
    assert caught.value.argument == "acme/one"
    assert caught.value.accepted == "waves go up"


def test_the_first_of_several_mistakes_is_told() -> None:
    with pytest.raises(ConfigError, match=r"^heads: got 0"):
        build_config(AttentionConfig, {"dim": 8, "heads": 0, "threads": -1}, mechanism="acme/one")


def test_heads() -> None:
    config = build_config(AttentionConfig, {"dim": 12, "heads": 6}, mechanism="acme/one")
    assert (config.head_dim, config.key_heads) == (2, 6)
    config = build_config(AttentionConfig, {"dim": 12, "heads": 6, "kv_heads": 2}, mechanism="a/b")
    assert (config.head_dim, config.key_heads) == (2, 2)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("alibi", Alibi()), ("rope", Rope()), ({"kind": "t5", "buckets": 8}, T5Bias(buckets=8))],
)
def test_positions_by_name(given: Any, meant: Schema) -> None:
    assert ScaledConfig(dim=8, position=given).position == meant


def test_schemas_are_frozen_and_survive_json() -> None:
    config = Config(dim=8, window=8, position="rope", sizes=(1, 2), dropout=0.1)
    with pytest.raises(ValidationError, match="frozen"):
        config.dim = 9
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert Config(**config.model_dump()) == config
    assert hash(config) == hash(Config(**config.model_dump()))


def test_attribute_docstrings_are_descriptions() -> None:
    schema = Config.model_json_schema()
    assert schema["properties"]["window"]["description"] == "Keys on each side."
    assert schema["properties"]["dim"]["minimum"] == 1
    assert schema["additionalProperties"] is False
    described = ScaledConfig.model_json_schema()
    for owner in (described, *described["$defs"].values()):
        for name, option in owner["properties"].items():
            assert name == "kind" or option.get("description"), name


class Counting(AttentionConfig):
    share: float | None = None
    either: bool | int = False


@pytest.mark.parametrize("name", ["heads", "kv_heads", "threads", "share"])
def test_truth_values_are_no_numbers(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: got True; expected another value: .* numbers"):
        build_config(Counting, {"dim": 4, name: True}, mechanism="counting")
    assert build_config(Counting, {"dim": 4, name: 1}, mechanism="counting")
    assert build_config(Counting, {"dim": 4, "either": True}, mechanism="counting").either is True
