"""Pipelines: stages in order, residuals from the right place, gradients, refusals, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyattn as pa
from polyattn.pipeline import Flow, Stage, StageGradients
from polyattn_core.errors import (
    ArgumentError,
    FileFormatError,
    ParameterError,
    ShapeError,
    UnknownNameError,
)

Array = Any


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def layer_norm(x: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def rms_norm(x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


class Twice(Stage):
    """A stage of somebody else, with an option and a parameter."""

    def __init__(self, by: float = 2.0) -> None:
        super().__init__()
        self.by = by

    def run(self, flow: Flow) -> Array:
        return flow.stream * self.by * self.parameters["gain"]

    def vjp(self, flow: Flow) -> Any:
        gain, x = self.parameters["gain"], flow.stream

        def pullback(gradient: Array) -> StageGradients:
            d_gain = (gradient * x * self.by).reshape(-1, x.shape[-1]).sum(axis=0)
            return StageGradients(gradient * self.by * gain, {"gain": d_gain})

        return self.run(flow), pullback

    def initial_parameters(self, width: int, rng: np.random.Generator) -> dict[str, Array]:
        return {"gain": 1 + rng.random(width)}

    def options(self) -> dict[str, Any]:
        return {"by": self.by}


def test_the_readme_of_old() -> None:
    """norm, attention, dropout, residual, norm: the residual goes around the first three."""
    attention = pa.flash(16).heads(2).build()
    pipeline = (
        pa.AttentionPipeline()
        .add_norm("layer-norm")
        .add_attention(attention)
        .add_dropout(0.1)
        .add_residual()
        .add_norm("rms-norm")
    )
    x = normal(2, 7, 16)
    expected = rms_norm(x + attention(layer_norm(x)))
    np.testing.assert_allclose(pipeline.run(x), expected, atol=1e-12)
    key, value = normal(2, 9, 16, seed=1), normal(2, 9, 16, seed=2)
    expected = rms_norm(x + attention(layer_norm(x), key, value))
    np.testing.assert_allclose(pipeline.run(x, key, value), expected, atol=1e-12)
    expected = rms_norm(x[0, 0] + attention(layer_norm(x[0, 0]), key[0], value[0]))
    np.testing.assert_allclose(pipeline.run(x[0, 0], key[0], value[0]), expected, atol=1e-12)


def add(n: float) -> Any:
    return lambda x: x + n


def pre_norm(p: pa.AttentionPipeline) -> pa.AttentionPipeline:
    return p.add_norm().add(add(1)).add_residual().add_norm().add(add(2)).add_residual()


def post_norm(p: pa.AttentionPipeline) -> pa.AttentionPipeline:
    return p.add(add(1)).add_residual().add_norm().add(add(2)).add_residual().add_norm()


@pytest.mark.parametrize(
    ("build", "starts"),
    [
        (pre_norm, (0, 3)),
        (post_norm, (0, 3)),  # the second goes around what follows the norm
        (lambda p: p.add(add(1)).add(add(2)).add_residual(1), (1,)),
        (lambda p: p.add(add(1), name="a").add(add(2), name="b").add_residual("b"), (1,)),
        (lambda p: p.add(add(1)).add_residual().add(add(2)).add_residual(), (0, 2)),
    ],
)
def test_where_residuals_start(build: Any, starts: tuple[int, ...]) -> None:
    pipeline = build(pa.AttentionPipeline(dim=8))
    found = [stage.options()["start"] for stage in pipeline.stages if stage.kind == "residual"]
    assert tuple(found) == starts


def test_scaled_residual() -> None:
    pipeline = pa.AttentionPipeline().add(add(1)).add_residual(scale=0.5)
    np.testing.assert_allclose(pipeline.run(np.zeros((2, 3))), 0.5)


def everything() -> pa.AttentionPipeline:
    return (
        pa.AttentionPipeline()
        .add_norm("layer-norm")
        .add_attention(pa.multi_head(12, 3).kv_heads(1), source="self")
        .add_residual(scale=0.7)
        .add_attention(pa.cosine(12, 2), source="context")
        .add_norm("rms-norm", offset=1.0, epsilon=1e-4)
        .add_feed_forward(10, activation="silu", gated=True)
        .add_residual()
        .add(Twice(0.5))
        .add_feed_forward(7, activation="gelu-tanh", bias=False)
        .add(np.tanh, derivative=lambda x, g: g / np.cosh(x) ** 2)
    )


def test_gradients_by_finite_differences() -> None:
    pipeline = everything()
    pipeline.initialise(5)
    x, key, value = normal(2, 5, 12), normal(2, 6, 12, seed=1), normal(2, 6, 12, seed=2)
    mask, context_mask = pa.masks.Causal(), pa.masks.Padding((3, 6))
    options = {"mask": mask, "context_mask": context_mask}
    output, pullback = pipeline.vjp(x, key, value, **options)
    direction = normal(*output.shape, seed=3)
    found = pullback(direction)
    np.testing.assert_allclose(pipeline.run(x, key, value, **options), output, atol=1e-12)
    start = {name: np.array(array, np.float64) for name, array in pipeline.parameters.items()}

    def loss(inputs: dict[str, Array]) -> float:
        parameters = {n: a for n, a in inputs.items() if n in start}
        pipeline.parameters.update(parameters, partial=True)
        given = {"query": x, "key": key, "value": value, **inputs}
        result = pipeline.run(*(given[n] for n in ("query", "key", "value")), **options)
        pipeline.parameters.update({n: start[n] for n in parameters}, partial=True)
        return float((result * direction).sum())

    gradients = {"query": found.query, "key": found.key, "value": found.value, **found.parameters}
    assert set(found.parameters) == set(start)
    for name, gradient in gradients.items():
        base = {"query": x, "key": key, "value": value, **start}[name]
        along = normal(*base.shape, seed=4)
        # Norms and feed-forward layers hold float32.
        step = 1e-6 if name in ("query", "key", "value") else 1e-3
        change = (loss({name: base + step * along}) - loss({name: base - step * along})) / (
            2 * step
        )
        tolerance = 1e-6 if step == 1e-6 else 2e-4
        assert float((gradient * along).sum()) == pytest.approx(
            change, rel=tolerance, abs=tolerance
        ), name


def test_dropout_only_in_training_and_from_the_seed() -> None:
    pipeline = pa.AttentionPipeline(dim=64).add_dropout(0.5)
    x = np.ones((20, 64), np.float32)
    np.testing.assert_array_equal(pipeline.run(x), x)
    dropped = pipeline.run(x, training=True, rng=3)
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert abs(dropped.mean() - 1) < 0.1
    np.testing.assert_array_equal(dropped, pipeline.run(x, training=True, rng=3))
    output, pullback = pipeline.vjp(x, training=True, rng=3)
    np.testing.assert_array_equal(pullback(x).query, output)
    with pytest.raises(ArgumentError, match="rng: got None"):
        pipeline.run(x, training=True)


def test_dropout_inside_the_feed_forward_layer() -> None:
    pipeline = pa.AttentionPipeline(dim=6).add_feed_forward(500, dropout=0.5, bias=False)
    x = normal(3, 6)
    runs = [pipeline.run(x, training=True, rng=seed) for seed in range(200)]
    assert not np.array_equal(runs[0], runs[1])
    np.testing.assert_allclose(np.mean(runs, axis=0), pipeline.run(x), atol=0.4)
    output, pullback = pipeline.vjp(x, training=True, rng=7)
    direction, along, step = normal(3, 6, seed=1), normal(3, 6, seed=2), 1e-6
    ends = [pipeline.run(x + s * along, training=True, rng=7) for s in (step, -step)]
    moved = [(end * direction).sum() for end in ends]
    slope = (pullback(direction).query * along).sum()
    assert slope == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-6)
    np.testing.assert_array_equal(output, pipeline.run(x, training=True, rng=7))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes_and_layouts(dtype: str) -> None:
    pipeline = everything()
    x, key = normal(2, 5, 12).astype(dtype), normal(2, 6, 12, seed=1).astype(dtype)
    exact = pipeline.run(x.astype(np.float64), key.astype(np.float64))
    output = pipeline.run(x, key)
    assert output.dtype == dtype
    tolerance = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(output, exact, atol=tolerance, rtol=tolerance)
    turned = np.asarray(x.T, order="C").T
    turned.flags.writeable = False
    np.testing.assert_array_equal(pipeline.run(turned, key), output)


def test_widths_follow_from_the_stages() -> None:
    pipeline = pa.AttentionPipeline().add_norm().add_attention(pa.flash(24))
    assert pipeline.dim == 24
    assert pipeline.parameters["norm.weight"].shape == (24,)
    late = pa.AttentionPipeline().add_norm()
    with pytest.raises(ArgumentError, match=r"expected AttentionPipeline\(dim=…\), or a first run"):
        late.parameters  # noqa: B018
    late.run(np.ones((2, 5)))
    assert late.parameters["norm.weight"].shape == (5,)


def test_what_does_not_fit() -> None:
    pipeline = pa.AttentionPipeline().add_attention(pa.flash(16), name="first")
    with pytest.raises(
        ShapeError, match="second: got width 24; expected 16, as first before it gives 16"
    ):
        pipeline.add_attention(pa.flash(24), name="second")
    assert len(pipeline) == 1
    with pytest.raises(ShapeError, match=r"query: got .2, 8.; expected a last axis of 16"):
        pipeline.run(np.ones((2, 8)))
    with pytest.raises(ShapeError, match="attention: got width 8; expected 4, as dim is 4"):
        pa.AttentionPipeline(dim=4).add_attention(pa.flash(8))
    with pytest.raises(ShapeError, match=r"function: got .2, 3.; expected a stream of width 4"):
        pa.AttentionPipeline(dim=4).add(lambda x: x[:, :3]).run(np.ones((2, 4)))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p: p.add_residual(), "a stage to go around"),
        (lambda p: p.add(3), "stage: got 3; expected a Stage, or a function of the stream"),
        (lambda p: p.add_attention("flash"), "attention: got flash; expected a mechanism, or a bu"),
        (lambda p: p.add_attention(pa.flash(8), source="both"), "source: got both"),
        (lambda p: p.add_dropout(1.0), "probability: got 1.0; expected at least 0 and less than 1"),
        (lambda p: p.add_feed_forward(0), "hidden: got 0"),
        (lambda p: p.add_feed_forward(8, activation="swish"), "expected one of relu, gelu"),
        (lambda p: p.add_feed_forward(8, dropout=2), "dropout: got 2"),
        (lambda p: p.add_norm("layer-norm", epsilon=0), "epsilon: got 0"),
        (lambda p: p.add_norm("layer-norm", eps=1e-5), "options of layer-norm"),
        (lambda p: p.add_norm(name="a.b"), "name: got a.b"),
        (lambda p: p.add_norm().add_residual("x"), "stage: got x; expected a place"),
        (lambda p: p.add_norm().add_residual(scale=np.inf), "scale: got inf"),
        (lambda p: p.run(np.ones((2, 8)), None, np.ones((2, 8))), "value: got an array; expe"),
        (lambda p: p.add_attention(pa.flash(8), source="context").run(np.ones((2, 8))), "context"),
        (lambda p: pa.AttentionPipeline(dim=0), "dim: got 0"),
        (lambda p: p.add_norm().initialise(None), "rng: got None"),
    ],
)  # fmt: skip
def test_refusals(call: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call(pa.AttentionPipeline(dim=8))


def test_a_norm_that_nobody_has() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'layer-norm'"):
        pa.AttentionPipeline().add_norm("layer-nrm")


def test_a_norm_of_a_plugin() -> None:
    undo = pa.register(
        pa.EntrySpec(
            kind="norm", name="plain", family="acme", summary="…",
            factory="polyattn.pipeline.stages:LayerNorm",
        )
    )  # fmt: skip
    pipeline = pa.AttentionPipeline().add_norm("plain", bias=False)
    x = normal(3, 4)
    np.testing.assert_allclose(pipeline.run(x), layer_norm(x), atol=1e-6)
    assert list(pipeline.parameters) == ["norm.weight"]
    assert '"acme/plain"' in pipeline.to_json()
    undo()


def test_a_stage_has_one_place() -> None:
    stage = Twice()
    with pytest.raises(ArgumentError, match="a stage that is not in the pipeline yet"):
        pa.AttentionPipeline(dim=3).add(stage).add(stage)


def test_a_stage_without_derivative() -> None:
    pipeline = pa.AttentionPipeline(dim=3).add(np.abs)
    with pytest.raises(ArgumentError, match="a stage function without vjp"):
        pipeline.vjp(np.ones((2, 3)))


def test_parameters_are_set_all_or_none(tmp_path: Path) -> None:
    pipeline = everything()
    before = {name: array.copy() for name, array in pipeline.parameters.items()}
    good = {name: np.full(array.shape, 0.5) for name, array in before.items()}
    cases: list[tuple[dict[str, Array], str]] = [
        ({**good, "norm.width": np.ones(3)}, "surplus norm.width"),
        ({n: a for n, a in good.items() if n != "norm.bias"}, "missing norm.bias"),
        ({**good, "feed_forward.up.weight": np.ones(3)}, "up.weight: got .3,.; expected shape"),
    ]  # fmt: skip
    for arrays, text in cases:
        with pytest.raises(ParameterError, match=text):
            pipeline.parameters.update(arrays)
        for name, array in before.items():
            np.testing.assert_array_equal(pipeline.parameters[name], array)
    pipeline.parameters.update(good)
    assert all((array == 0.5).all() for array in pipeline.parameters.values())
    pipeline.parameters.save(tmp_path / "weights.safetensors")
    again = everything()
    again.parameters.load(tmp_path / "weights.safetensors")
    x, key = normal(2, 5, 12), normal(2, 6, 12)
    np.testing.assert_array_equal(again.run(x, key), pipeline.run(x, key))


def test_json_round_trip() -> None:
    pipeline = pa.AttentionPipeline(dim=12).add_norm("rms-norm", offset=1.0)
    pipeline.add_attention(pa.multi_head(12, 3).causal(), source="self").add_dropout(0.3)
    pipeline.add_residual(scale=0.5).add_feed_forward(9, gated=True).add(Twice(3.0), name="mine")
    text = pipeline.to_json()
    again = pa.AttentionPipeline.from_json(text, custom=[Twice])
    assert again.to_json() == text
    x = normal(2, 5, 12)
    np.testing.assert_array_equal(again.run(x), pipeline.run(x))
    with pytest.raises(FileFormatError, match="a class among custom= of from_json"):
        pa.AttentionPipeline.from_json(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "JSON that a pipeline wrote"),
        ("[1]", "JSON of format 'polyattn-pipeline'"),
        ('{"format": "polyattn-pipeline", "version": 2}', "version: got 2; expected version 1"),
        (
            '{"format": "polyattn-pipeline", "version": 1, "stages": [{"kind": "x"}]}',
            "a stage of a kind known here",
        ),
    ],
)  # fmt: skip
def test_texts_that_are_no_pipeline(text: str, said: str) -> None:
    with pytest.raises(FileFormatError, match=said):
        pa.AttentionPipeline.from_json(text)


def test_what_cannot_be_saved() -> None:
    with pytest.raises(FileFormatError, match="a class derived from Stage to be saved"):
        pa.AttentionPipeline(dim=3).add(np.tanh).to_json()
    masked = pa.AttentionPipeline().add_attention(pa.flash(8), mask=pa.masks.Causal())
    with pytest.raises(ArgumentError, match="a mask passed to run"):
        masked.to_json()


def test_a_mask_of_a_stage() -> None:
    x = normal(6, 8)
    flash = pa.flash(8).build()
    hidden = np.arange(6) != 2
    pipeline = pa.AttentionPipeline().add_attention(flash, mask=pa.masks.Causal())
    np.testing.assert_array_equal(pipeline.run(x), flash(x, mask=pa.masks.Causal()))
    both = pa.masks.Causal() & pa.masks.Dense(np.tile(hidden, (6, 1)))
    found = pipeline.run(x, mask=np.tile(hidden, (6, 1)))
    np.testing.assert_array_equal(found, flash(x, mask=both))


def test_summary() -> None:
    summary = pa.encoder_block(16, 4, 32).summary(batch=2, tokens=10)
    rows = {row.name: row for row in summary.rows}
    assert summary.parameters == 4 * (16 * 16 + 16) + (32 * 16 + 32) + (16 * 32 + 16) + 4 * 16
    assert rows["feed_forward"].flops == 2 * 2 * 10 * (2 * 16 * 32)
    assert rows["self_attention"].flops == 2 * 2 * (10 * 4 * 16 * 16 + 2 * 10 * 10 * 16)
    assert rows["norm1"].shape == (2, 10, 16)
    assert rows["self_attention"].detail == "standard/multi-head(dim=16, heads=4)"
    assert "self_attention" in str(summary)
    assert f"{summary.parameters:,}" in str(summary)
    assert json.loads(json.dumps(summary.to_dict()))["batch"] == 2
    unknown = pa.AttentionPipeline().add_attention(pa.linear(8)).summary()
    assert unknown.rows[0].flops is None
    assert "≥" in str(unknown)
    assert "<pre>" in unknown._repr_html_()


def test_picture() -> None:
    from xml.etree import ElementTree

    pipeline = pa.decoder_block(16, 4, norm_first=True, dropout=0.1)
    root = ElementTree.fromstring(pipeline.picture())
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "self attention: multi-head, 4 × 4" in texts
    assert texts.count("+") == 3
    assert "context" in texts
    assert pipeline._repr_html_() == pipeline.picture()


def test_looking_at_a_pipeline() -> None:
    pipeline = pa.AttentionPipeline().add_norm().add_norm().add_attention(pa.flash(8))
    assert repr(pipeline) == "<pipeline norm → norm2 → attention>"
    assert pipeline["norm2"] is pipeline.stages[1]
    assert repr(pa.AttentionPipeline()) == "<pipeline without stages>"
