"""Weights under the names of other libraries: all of them or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import polyattn as pa
from polyattn import weights
from polyattn_core.errors import ArgumentError, FileFormatError, ParameterError, UnknownNameError


def layer(preset: str = "gpt2", dim: int = 128, seed: int = 1) -> Any:
    made = pa.preset_builder(preset, dim).build()
    made.initialise(seed)
    return made


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(one.parameters[n], other.parameters[n]) for n in one.parameters)


WITH_WEIGHTS = [(preset.full_name, preset) for preset in pa.presets() if preset.weights]


@pytest.mark.parametrize(("name", "preset"), WITH_WEIGHTS, ids=[n for n, _ in WITH_WEIGHTS])
def test_there_and_back(name: str, preset: Any, tmp_path: Path) -> None:
    width = preset.options["dim"] // preset.options["heads"]
    one, other = (layer(name, 2 * width, seed) for seed in (1, 2))
    assert not same(one, other)
    path = tmp_path / "model.safetensors"
    weights.save(one, path, layout=name, prefix="h.0.")
    assert all(key.startswith("h.0.") for key in load_file(path))
    for source in (path, str(path), tmp_path, weights.state(one, layout=name, prefix="h.0.")):
        other.initialise(2)
        weights.load(other, source, layout=name, prefix="h.0.")
        for key, array in one.parameters.items():
            # Where 1 is subtracted and added again, the last bit may differ.
            np.testing.assert_allclose(other.parameters[key], array, rtol=1e-12, atol=1e-15)


def test_what_a_layout_means() -> None:
    one = layer("gpt2")
    state = weights.state(one, layout="gpt2")
    assert list(state) == ["c_attn.weight", "c_attn.bias", "c_proj.weight", "c_proj.bias"]
    p = one.parameters
    np.testing.assert_array_equal(state["c_attn.weight"][:, 128:256], p["key.weight"].T)
    np.testing.assert_array_equal(state["c_proj.weight"], p["output.weight"].T)
    gemma = layer("gemma-3-4b", 320)
    added = weights.state(gemma, layout="gemma-3-4b")["q_norm.weight"]
    np.testing.assert_array_equal(added, gemma.parameters["query_norm.weight"] - 1)
    t5 = layer("t5-base")
    table = weights.state(t5, layout="t5-base")["relative_attention_bias.weight"]
    np.testing.assert_array_equal(table, t5.parameters["position.table"].T)


def test_head_by_head() -> None:
    one = layer("deepseek-v3", 112)
    state = weights.state(one, layout="deepseek-v3")
    p = one.parameters
    both = state["kv_b_proj.weight"].reshape(2, 256, 512)
    np.testing.assert_array_equal(both[:, :128], p["key.up"].reshape(2, 128, 512))
    np.testing.assert_array_equal(both[:, 128:], p["value.up"].reshape(2, 128, 512))
    queries = state["q_b_proj.weight"].reshape(2, 192, 1536)
    np.testing.assert_array_equal(queries[:, 128:], p["query.rotary"].reshape(2, 64, 1536))
    joined = state["kv_a_proj_with_mqa.weight"]
    np.testing.assert_array_equal(joined, np.concatenate((p["compress.key"], p["key.rotary"])))


def test_heads_that_are_not_there() -> None:
    grouped = pa.create("multi-head", dim=8, heads=4, kv_heads=1, head_size=1, bias=False)
    mapping = {"qkv by heads": ["query", "key", "value"], "out": "output"}
    with pytest.raises(ArgumentError, match=r"layout: got qkv.weight by heads; .* of 4 heads"):
        weights.state(grouped, layout=mapping)
    pipeline = pa.AttentionPipeline(dim=4).add_norm("layer-norm")
    with pytest.raises(ArgumentError, match="no heads: AttentionPipeline has none"):
        weights.state(pipeline, layout={"norm by heads": list(pipeline.parameters)})


def test_own_names_and_own_layouts() -> None:
    one, other = layer("llama-2-7b", 256), layer("llama-2-7b", 256, 2)
    weights.load(other, weights.state(one))
    assert same(one, other)
    mapping = {"qkv": ["query", "key", "value"], "out.T": "output"}
    state = weights.state(one, layout=mapping)
    assert {n: a.shape for n, a in state.items()} == {
        "qkv.weight": (768, 256), "out.weight": (256, 256),
    }  # fmt: skip
    other.initialise(2)
    weights.load(other, state, layout=mapping)
    assert same(one, other)


def test_pipelines_too(tmp_path: Path) -> None:
    one, other = (pa.encoder_block(32, 4, 16) for _ in range(2))
    rng = np.random.default_rng(0)
    one.parameters.update({n: rng.standard_normal(a.shape) for n, a in one.parameters.items()})
    weights.save(one, tmp_path / "block.safetensors")
    weights.load(other, tmp_path / "block.safetensors")
    assert same(one, other)


def test_files_in_parts_and_bfloat16(tmp_path: Path) -> None:
    one = layer("llama-2-7b", 256)
    state = {k: v.astype(ml_dtypes.bfloat16) for k, v in weights.state(one, layout="llama").items()}
    names = list(state)
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({n: state[n] for n in names if places[n] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    other = layer("llama-2-7b", 256, 2)
    for source in (tmp_path, index):
        other.initialise(2)
        weights.load(other, source, layout="llama")
        for name, array in one.parameters.items():
            np.testing.assert_array_equal(
                other.parameters[name], array.astype(ml_dtypes.bfloat16).astype(np.float64)
            )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"c_attn.weight": None}, r"missing c_attn.weight \(query.weight, key.weight, value.wei"),
        ({"c_extra": np.ones(3)}, r"surplus c_extra; expected exactly c_attn.weight, c_attn.bias"),
        (
            {"c_attn.weight": np.ones((128, 383))},
            r"c_attn.weight: got \(128, 383\); expected shape \(128, 384\), for query.weight \(128",
        ),
        ({"c_attn.bias": np.ones(3)}, r"c_attn.bias: got \(3,\); expected shape \(384,\)"),
        ({"c_proj.bias": np.full(128, np.nan)}, "not finite"),
    ],
)
def test_nothing_is_half_loaded(change: dict[str, Any], text: str) -> None:
    one, other = layer(), layer()
    state = {**weights.state(layer(seed=2), layout="gpt2"), **change}
    state = {name: array for name, array in state.items() if array is not None}
    with pytest.raises(ParameterError, match=text):
        weights.load(one, state, layout="gpt2")
    assert same(one, other)


def test_what_may_be_there_besides() -> None:
    one, other = layer(), layer(seed=2)
    state = {**weights.state(one, layout="gpt2"), "masked_bias": np.ones(1), "mine.x": np.ones(1)}
    with pytest.raises(ParameterError, match=r"surplus mine\.x;"):
        weights.load(other, state, layout="gpt2")
    weights.load(other, state, layout="gpt2", ignore=["mine.*"])
    assert same(one, other)


def test_a_prefix_that_no_name_has() -> None:
    state = weights.state(layer(), layout="gpt2", prefix="transformer.h.0.attn.")
    with pytest.raises(ParameterError, match=r"did you mean prefix='transformer\.h\.0\.attn\.'"):
        weights.load(layer(), state, layout="gpt2", prefix="transformer.h.1.attn.")


@pytest.mark.parametrize(
    ("layout", "error", "text"),
    [
        ("gpt3", UnknownNameError, "did you mean"),
        ("longformer", ArgumentError, "a preset with weights: .*bert-base"),
        ({"q": "query"}, ParameterError, r"it without key\.weight.*expected exactly query\.weight"),
        ({"q": "querry"}, ParameterError, r"with querry\.weight"),
    ],
)
def test_layouts_that_do_not_fit(layout: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        weights.load(layer(), {}, layout=layout)
    with pytest.raises(error, match=text):
        weights.state(layer(), layout=layout)


def test_sources_that_are_none(tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x80pickled")
    index = tmp_path / "x.json"
    index.write_text("{}")
    for source in (bad, index, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileFormatError, match=r"safetensors file"):
            weights.load(layer(), source)
    with pytest.raises(ArgumentError, match="a mapping of names to arrays, or a path"):
        weights.load(layer(), 3)
