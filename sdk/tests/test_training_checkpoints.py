"""Checkpoints: resuming bit for bit, and refusing with nothing half loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import polyattn as pa
from polyattn import training
from polyattn_core.errors import ArgumentError, FileFormatError, ParameterError


def optimisers() -> dict[str, Any]:
    rate = training.Cosine(0.05, steps=12, warm_up=2)
    return {
        "sgd": lambda: training.SGD(learning_rate=rate, momentum=0.9),
        "adamw": lambda: training.AdamW(learning_rate=rate),
        "natural": lambda: training.NaturalGradient(learning_rate=rate, decay=0.9),
        "riemannian": lambda: training.RiemannianAdam(learning_rate=rate),
        "grouped": lambda: training.AdamW(
            groups={"w": {"learning_rate": rate, "weight_decay": 0.2}}
        ),
    }


def train(parameters: Any, optimiser: Any, rng: np.random.Generator, steps: range) -> None:
    anneal = training.ExponentialAnnealing(1.0, 0.1, steps=12)
    miner = training.RandomMiner(rng=rng)
    for step in steps:
        x = rng.standard_normal((6, 4))
        found = miner(x, x, positive=np.arange(6))
        loss = training.InfoNCE()
        _, gradients = loss(x @ parameters["w"], x, x[found], temperature=anneal(step))
        optimiser.step(parameters, {"w": x.T @ gradients["query"]})


def fresh() -> dict[str, Any]:
    return {"w": 0.2 * np.eye(4), "still": np.float32([[1, 2]])}


@pytest.mark.parametrize("name", list(optimisers()))
def test_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole, rng = fresh(), np.random.default_rng(7)
    train(whole, optimisers()[name](), rng, range(12))
    part, optimiser, rng = fresh(), optimisers()[name](), np.random.default_rng(7)
    train(part, optimiser, rng, range(5))
    path = tmp_path / "run.safetensors"
    training.save_checkpoint(
        path, parameters=part, optimiser=optimiser, step=5, rng=rng, extra={"epoch": 1}
    )
    resumed, optimiser, rng = fresh(), optimisers()[name](), np.random.default_rng(0)
    kept = resumed["w"]
    found = training.load_checkpoint(path, parameters=resumed, optimiser=optimiser, rng=rng)
    assert found == training.Checkpoint(5, {"epoch": 1})
    assert resumed["w"] is kept
    train(resumed, optimiser, rng, range(5, 12))
    assert resumed["w"].tobytes() == whole["w"].tobytes()
    assert list(tmp_path.iterdir()) == [path]


def test_pipelines(tmp_path: Path) -> None:
    one, other = (
        pa.AttentionPipeline(8).add_norm("layer-norm").add_attention(pa.multi_head(8, 2))
        for _ in range(2)
    )
    one.initialise(1)
    other.initialise(2)
    path = tmp_path / "pipeline.safetensors"
    training.save_checkpoint(path, parameters=one.parameters, step=0)
    training.load_checkpoint(path, parameters=other.parameters)
    x = np.random.default_rng(0).standard_normal((2, 5, 8))
    np.testing.assert_array_equal(one.run(x), other.run(x))


@pytest.mark.parametrize("generator", [np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_generators(generator: Any, tmp_path: Path) -> None:
    one, other = np.random.Generator(generator(1)), np.random.Generator(generator(2))
    one.standard_normal(7)
    path = tmp_path / "c.safetensors"
    training.save_checkpoint(path, parameters=fresh(), step=0, rng=one)
    training.load_checkpoint(path, parameters=fresh(), rng=other)
    np.testing.assert_array_equal(one.integers(1 << 30, size=9), other.integers(1 << 30, size=9))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "c.safetensors"
    parameters, optimiser, rng = fresh(), training.Adam(), np.random.default_rng(0)
    train(parameters, optimiser, rng, range(2))
    training.save_checkpoint(path, parameters=parameters, optimiser=optimiser, step=2, rng=rng)
    return path


def altered(path: Path, **changes: Any) -> None:
    with safe_open(str(path), "np") as file:
        header = json.loads(file.metadata()["polyattn"])
    save_file(load_file(path), path, metadata={"polyattn": json.dumps({**header, **changes})})


def wider() -> dict[str, Any]:
    return {**fresh(), "w": np.eye(5)}


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "version": ({"version": 2}, {}, FileFormatError, "version: got 2; expected version 1"),
    "format": ({"format": "other"}, {}, FileFormatError, "polyattn-checkpoint"),
    "missing": ({}, {"parameters": {**fresh(), "b": np.ones(2)}}, ParameterError, "missing b"),
    "surplus": ({}, {"parameters": {"w": np.eye(4)}}, ParameterError, "surplus still"),
    "shape": ({}, {"parameters": wider()}, ParameterError, r"w: .*\(4, 4\).*\(5, 5\)"),
    "dtype": (
        {}, {"parameters": {**fresh(), "w": np.eye(4, dtype=np.float32)}}, ParameterError,
        "float64.*float32",
    ),
    "kind": ({}, {"optimiser": training.SGD()}, ParameterError, "adam in the file.*sgd"),
    "options": ({}, {"optimiser": training.Adam(epsilon=1.0)}, ParameterError, "1e-08.*1.0"),
    "groups": (
        {}, {"optimiser": training.Adam(groups={"w": {"weight_decay": 0.5}})}, ParameterError,
        r"\['w', \{'weight_decay': 0.5\}\]",
    ),
    "no state": ({"optimiser": None}, {}, FileFormatError, "optimiser: got none"),
    "generator": (
        {}, {"rng": np.random.Generator(np.random.MT19937(0))}, FileFormatError, "PCG64.*MT19937"
    ),
    "no generator": ({"rng": None}, {}, FileFormatError, "rng: got none"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_change_nothing(case: str, saved: Path) -> None:
    changes, targets, error, match = REFUSED[case]
    if changes:
        altered(saved, **changes)
    targets = {
        "parameters": fresh(), "optimiser": training.Adam(), "rng": np.random.default_rng(5),
        **targets,
    }  # fmt: skip
    before = {name: array.copy() for name, array in targets["parameters"].items()}
    state = repr(targets["rng"].bit_generator.state)
    with pytest.raises(error, match=match):
        training.load_checkpoint(saved, **targets)
    for name, array in before.items():
        np.testing.assert_array_equal(targets["parameters"][name], array)
    assert targets["optimiser"].steps == 0
    assert not targets["optimiser"].state()
    assert repr(targets["rng"].bit_generator.state) == state


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("no tensors")
    with pytest.raises(FileFormatError, match="safetensors"):
        training.load_checkpoint(path, parameters=fresh())
    save_file(fresh(), path)
    with pytest.raises(FileFormatError, match="polyattn-checkpoint"):
        training.load_checkpoint(path, parameters=fresh())


def test_a_refused_extra_keeps_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(ArgumentError, match="extra"):
        training.save_checkpoint(saved, parameters=fresh(), step=1, extra={"x": object()})
    assert saved.read_bytes() == before
