"""Whole comparisons, on small data and mechanisms written out with NumPy."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import Field
from rich.console import Console

import polyattn as pa
from polyattn.compare import Progress, compare
from polyattn_core.config import AttentionConfig
from polyattn_core.errors import ConfigError, ShapeError, UnknownNameError
from polyattn_core.mechanism import Call, Mechanism

metrics = pytest.importorskip("sklearn.metrics")


class Options(AttentionConfig):
    scale: float = Field(default=1.0, gt=0)
    shift: float = 0.0


class CountOptions(AttentionConfig):
    k: int = Field(default=5, ge=1)


class Soft(Mechanism):
    """Soft-max of the scaled product."""

    seen: list[Any] = []  # noqa: RUF012

    def _scores(self, call: Call) -> Any:
        return call.query @ call.key.swapaxes(-1, -2)

    def _weights(self, call: Call) -> Any:
        scores = self.config.scale * self._scores(call)  # type: ignore[attr-defined]
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)

    def _forward(self, call: Call) -> Any:
        self.seen.append((self.config.threads, call.dtype))
        return self._weights(call) @ call.value

    def _observe(self, call: Call, wanted: frozenset[str]) -> Any:
        return self._forward(call), {"weights": self._weights(call)}


class Near(Soft):
    """Soft-max of the negative squared distance; has no statistics."""

    def _scores(self, call: Call) -> Any:
        difference = call.query[..., :, None, :] - call.key[..., None, :, :]
        return -(difference**2).sum(axis=-1)


class Flat(Soft):
    def _weights(self, call: Call) -> Any:
        return np.full((*call.query.shape[:3], call.key.shape[2]), 1 / call.key.shape[2])


class Nearest(Soft):
    """The mean of the k nearest: sharpness is an integer."""

    def _weights(self, call: Call) -> Any:
        k = min(self.config.k, call.key.shape[2])  # type: ignore[attr-defined]
        scores = Near._scores(self, call)  # type: ignore[arg-type]
        return (scores >= np.sort(scores, axis=-1)[..., [-k]]) / k


class Broken(Soft):
    def _forward(self, call: Call) -> Any:
        raise RuntimeError("out of order\nand more")


class Quitting(Soft):
    def _forward(self, call: Call) -> Any:
        raise SystemExit("gone")


class Undefined(Soft):
    def _forward(self, call: Call) -> Any:
        return super()._forward(call) * np.nan


class Slow(Soft):
    def _forward(self, call: Call) -> Any:
        time.sleep(0.02)
        return super()._forward(call)


class Narrow(Soft):
    """Its values are of the width of its queries."""

    def _forward(self, call: Call) -> Any:
        if call.value.shape[-1] != call.query.shape[-1]:
            raise ShapeError("value", f"head size {call.value.shape[-1]}", "that of queries")
        return super()._forward(call)


class Sleepy(Soft):
    """Half a second a call: no share of a small budget is enough for a search."""

    def _forward(self, call: Call) -> Any:
        time.sleep(0.5)
        return super()._forward(call)


def spec(name: str, factory: type, **more: Any) -> pa.MechanismSpec:
    capabilities = more.pop("capabilities", {})
    return pa.MechanismSpec(
        name=name,
        family="toy",
        summary=f"The toy {name}",
        factory=f"{__name__}:{factory.__name__}",
        config=f"{__name__}:{more.pop('config', 'Options')}",
        reference=f"{__name__}:spec",
        sharpness=more.pop("sharpness", "scale"),
        capabilities=pa.Capabilities(gradient=False, **capabilities),
        **more,
    )


SIDE = pa.SideInput(name="edges", shape="(2, n)", description="Edges of a graph")
SPECS = (
    spec("soft", Soft, capabilities={"statistics": ("weights",)}),
    spec("near", Near, aliases=("close",)),
    spec("flat", Flat, sharpness=""),
    spec("nearest", Nearest, sharpness="k", config="CountOptions"),
    spec("broken", Broken),
    spec("quitting", Quitting),
    spec("undefined", Undefined),
    spec("slow", Slow),
    spec("narrow", Narrow),
    spec("sleepy", Sleepy),
    spec("window", Soft, capabilities={"positional": True}),
    spec("graph", Soft, capabilities={"side_inputs": (SIDE,)}),
    spec("square", Soft, capabilities={"cross": False}),
    spec("raw", Soft, tags=("needs-training",)),
    spec("gone", Soft, sharpness="missing"),
)


@pytest.fixture(autouse=True, scope="module")
def toys() -> Iterator[None]:
    undo = [pa.register(entry) for entry in SPECS]
    yield
    for call in undo:
        call()


def run(data: Any = "iris", mechanisms: Any = ("soft", "near"), **settings: Any) -> Any:
    labels = settings.pop("labels", None)
    # One thread, as several that wait for each other on a busy machine take long over nothing.
    small = {"splits": 2, "limit": 100, "threads": 1}
    return compare(data, labels, mechanisms, **{**small, **settings})


@pytest.fixture(scope="module")
def result(toys: None) -> Any:
    return run("iris", "soft,near,flat,nearest,broken", limit=0)


# ---- what is computed ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["soft", "scaled-dot-product"])
def test_scores_are_those_of_a_kernel_smoother_written_out(name: str) -> None:
    if name != "soft":
        pytest.importorskip("polyattn_standard")
    selection = pytest.importorskip("sklearn.model_selection")
    datasets = pytest.importorskip("sklearn.datasets")
    vectors, labels = datasets.load_wine(return_X_y=True)
    splitter = selection.StratifiedShuffleSplit(n_splits=3, test_size=0.25, random_state=4)
    expected: dict[str, list[float]] = {"accuracy": [], "log-loss": [], "ndcg": []}
    for train, test in splitter.split(vectors, labels):
        z = (vectors - vectors[train].mean(axis=0)) / vectors[train].std(axis=0)
        kernel = np.exp(0.3 * z[test] @ z[train].T)
        weights = kernel / kernel.sum(axis=1, keepdims=True)
        one_hot = np.eye(3)[labels[train]]
        share = (len(train) * weights @ one_hot + one_hot.mean(axis=0)) / (len(train) + 1)
        expected["accuracy"].append(metrics.accuracy_score(labels[test], share.argmax(axis=1)))
        expected["log-loss"].append(metrics.log_loss(labels[test], share))
        relevant = labels[test][:, None] == labels[train]
        expected["ndcg"].append(metrics.ndcg_score(relevant, weights, k=10))
    found = compare(
        "wine",
        None,
        f"{name}[scale=0.3]",
        splits=3,
        test_size=0.25,
        seed=4,
        dtype="float64",
        threads=1,
    )
    row = found.row(f"{name}[scale=0.3]")
    for metric, values in expected.items():
        assert row.scores[metric].splits == pytest.approx(values)


def test_weights_of_a_mechanism_without_statistics_come_from_its_output(result: Any) -> None:
    # Both rank by distance, so that nDCG agrees whatever the sharpness.
    found = run("iris", "near[scale=1]", dtype="float64")
    near, nearest = found.row("near[scale=1]"), found.row("k nearest neighbours")
    assert near.scores["ndcg"].splits == pytest.approx(nearest.scores["ndcg"].splits)


def test_runs_repeat_themselves() -> None:
    def stable(**settings: Any) -> Any:
        found = run(mechanisms="soft,nearest", **settings).to_dict()
        for row in found["rows"]:
            del row["seconds"], row["memory"]
        rows = {row["label"]: row for row in found["rows"]}
        return rows, found["errors"]

    assert stable() == stable()
    assert stable() != stable(seed=1)


def test_an_equal_mechanism_is_tied(result: Any) -> None:
    again = run(mechanisms="soft,soft[shift=0]", dtype="float64")
    first, second = (row for row in again.rows if not row.anchor)
    assert first is again.best
    assert second.tied
    assert second.p_value == 1
    assert second.difference.mean == 0
    assert again.row("NumPy soft-max").scores["accuracy"].splits == first.scores["accuracy"].splits
    assert {row.label for row in again.tied} == {first.label, second.label}


def test_numbers_and_hidden_coordinates_are_predicted() -> None:
    found = run("diabetes", "near", limit=150)
    assert (found.task, found.metric.name, found.tuned_for.name) == ("regression", "r2", "r2")
    assert 0.2 < found.best.scores["r2"].mean < 0.7
    hidden = run("wine", "near,flat", task="reconstruction", limit=150)
    assert hidden.data.dim == 10
    assert hidden.best.label == "near"
    assert hidden.row("flat").scores["r2"].mean < 0.02
    assert hidden.errors.confusion == ()


# ---- rows ---------------------------------------------------------------------------------------


def test_rows_are_ranked_and_complete(result: Any) -> None:
    scores = [row.scores["accuracy"].mean for row in result.rows if not row.error]
    assert scores == sorted(scores, reverse=True)
    assert [row.label for row in result.failed] == ["broken"]
    assert result.rows[-1] is result.failed[0]
    assert result.best.label in ("near", "nearest")
    assert result.best.tied
    flat = result.row("flat")
    assert not flat.tied
    assert flat.difference.mean == pytest.approx(
        flat.scores["accuracy"].mean - result.best.scores["accuracy"].mean
    )
    assert flat.sharpness is None
    assert result.row("toy/soft").options["scale"] == result.row("soft").sharpness.value
    assert sum(map(sum, result.errors.confusion)) == 2 * result.data.test
    with pytest.raises(KeyError, match="'hard' is not among"):
        result.row("hard")


def test_sharpness_that_is_an_integer(result: Any) -> None:
    row = result.row("nearest")
    assert isinstance(row.options["k"], int)
    assert all(value == round(value) for value, _, _ in row.sharpness.curve)


def test_lower_is_better_for_some_metrics() -> None:
    found = run(mechanisms="soft,near,flat", metric="log-loss")
    scores = [row.scores["log-loss"].mean for row in found.rows]
    assert scores == sorted(scores)
    assert found.tuned_for.name == "log-loss"
    flat = found.row("flat")
    assert flat.difference.mean < 0
    assert run(metric="ndcg").tuned_for.name == "log-loss"


def test_a_broken_mechanism_has_a_row_that_says_why(result: Any) -> None:
    assert result.row("broken").error == "RuntimeError: out of order"
    found = run(mechanisms="soft,quitting,undefined,gone")
    errors = {row.label: row.error for row in found.failed}
    assert errors.pop("gone").startswith("toy/gone: got missing; expected one of its options")
    assert errors == {
        "quitting": "SystemExit: gone",
        "undefined": "60 of 60 outputs are not finite",
    }
    assert found.best.label == "soft"


def test_a_slow_mechanism_is_given_up() -> None:
    row = run(mechanisms="slow", time_limit=0.1).row("slow")
    assert row.error == "given up after 0.1 s (--time-limit)"


def test_what_cannot_take_the_values_is_left_out() -> None:
    found = run(mechanisms="soft,narrow")
    assert not found.failed
    (left_out,) = found.left_out
    assert left_out.name == "narrow"
    assert left_out.reason == (
        "cannot take these values: got head size 3; expected that of queries"
    )
    assert "left out: narrow" in rendered(found)
    alone = run(mechanisms="narrow")
    assert alone.best is None
    assert "left out: narrow" in rendered(alone)


def test_a_budget_bounds_everything_and_still_answers() -> None:
    start = time.perf_counter()
    found = run(mechanisms="soft,sleepy,near", budget=6)
    assert time.perf_counter() - start < 20
    assert {row.label for row in found.rows if not row.anchor} == {"soft", "near"}
    (left_out,) = found.left_out
    assert (left_out.name, left_out.reason) == ("sleepy", "takes more than its share of --budget 6")
    assert "--budget 6" in found.command


def test_a_budget_that_is_used_up_leaves_the_anchors() -> None:
    found = run(budget=1e-3)
    assert all(row.anchor for row in found.rows)
    assert {item.reason for item in found.left_out} == {"not reached within --budget 0.001"}
    with pytest.raises(ConfigError, match="budget"):
        run(budget=0)


def rendered(found: Any) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(found)
    return text.getvalue()


def test_where_all_fail_there_is_no_best() -> None:
    found = run(mechanisms="broken")
    assert found.best is None
    assert found.recommend() is None
    assert found.errors is None
    assert "No mechanism could be measured" in found.summary()[1]
    assert json.loads(found.to_json())["best"] is None


# ---- settings -----------------------------------------------------------------------------------


def test_settings_have_effect() -> None:
    Soft.seen.clear()
    found = run(mechanisms="soft", test_size=0.4, threads=1, dtype="float64", limit=90, splits=3)
    assert (found.data.samples, found.data.test, found.data.train) == (90, 36, 54)
    assert len(found.best.scores["accuracy"].splits) == 3
    assert set(Soft.seen) == {(1, np.dtype(np.float64))}
    Soft.seen.clear()
    raw = run(mechanisms="soft", scale="none", threads=None)
    assert set(Soft.seen) == {(None, np.dtype(np.float32))}
    unit = run(mechanisms="soft", scale="unit")
    accuracies = {x.best.scores["accuracy"].mean for x in (found, raw, unit)}
    assert len(accuracies) == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"splits": 1}, "splits: got 1; expected at least 2"),
        ({"test_size": 1.0}, "test_size: got 1.0; expected greater than 0 and less than 1"),
        ({"metric": "r2"}, "a metric of this task: accuracy, log-loss, ndcg"),
        ({"scale": "log"}, "scale: got log"),
        ({"colour": "red"}, "colour: got red; expected one of the options of compare"),
    ],
)
def test_settings_that_do_not_do(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(**settings)


def test_a_sharpness_that_is_given_is_not_tuned() -> None:
    in_brackets = run(mechanisms="near[scale=3]")
    by_pattern = run(mechanisms="near", options={"n*": {"scale": 3}})
    for found in (in_brackets, by_pattern):
        row = found.best
        assert row.label == "near[scale=3]"
        assert row.sharpness.fixed
        assert (row.sharpness.value, row.sharpness.curve) == (3, ())
        assert row.options == {"scale": 3}


def test_a_busy_machine_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    for load, noted in ((100.0, True), (0.1, False)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, load, load), raising=False)
        notes = run(mechanisms="flat").data.notes
        assert any("busy (load 100.0" in note for note in notes) == noted


def test_progress_is_told() -> None:
    seen: list[Progress] = []
    run(mechanisms="soft,broken", progress=seen.append)
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == seen[-1].total == 4 * 2
    assert not seen[0].warm
    assert {step.label for step in seen} >= {"soft", "broken", "NumPy soft-max"}
    best = [score for _, score in seen[-1].scores]
    assert best == sorted(best, reverse=True)


def test_arrays_and_lists() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    vectors = rng.standard_normal((60, 3)) + 3 * labels[:, None]
    found = run(vectors.tolist(), labels=[f"kind {x}" for x in labels])
    assert found.data.classes == ("kind 0", "kind 1")
    assert found.best.scores["accuracy"].mean > 0.9
    assert found.command == ""


def test_a_name_that_is_unknown_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        run(mechanisms="toy/sooft")
