"""Optimisers: formulas, in place, mechanisms and pipelines, state, refusals."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polyattn as pa
from polyattn.training import SGD, Adam, AdamW, NaturalGradient, Optimiser, RiemannianAdam
from polyattn_core import geometry
from polyattn_core.errors import ArgumentError, DTypeError, ParameterError, ShapeError

ALL: dict[str, Callable[[], Optimiser]] = {
    "sgd": SGD,
    "momentum": lambda: SGD(momentum=0.9),
    "nesterov": lambda: SGD(momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda: Adam(weight_decay=0.1),
    "adamw": AdamW,
    "natural": lambda: NaturalGradient(decay=0.9),
    "categorical": lambda: NaturalGradient(metric="categorical"),
    "riemannian": RiemannianAdam,
    "grouped": lambda: AdamW(groups={"b": {"learning_rate": 0.1, "weight_decay": 0.0}}),
}


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def start(dtype: Any = np.float64) -> dict[str, Any]:
    return {"a": 0.1 * normal(3, 5, dtype=dtype), "b": 0.1 * normal(4, seed=1, dtype=dtype)}


def slopes(step: int = 0) -> dict[str, Any]:
    return {"a": normal(3, 5, seed=2 + step), "b": normal(4, seed=50 + step)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ALL)
def test_in_place_whatever_the_layout(name: str, dtype: Any) -> None:
    """The same arrays hold the same numbers, contiguous or not, in one step or two mappings."""
    plain, strided = start(dtype), start(dtype)
    wide = np.zeros((3, 10), dtype)
    wide[:, ::2] = strided["a"]
    strided["a"] = wide[:, ::2]
    kept = dict(plain)
    one, other = ALL[name](), ALL[name]()
    for step in range(3):
        one.step(plain, slopes(step))
        other.step(strided, slopes(step))
    assert plain["a"] is kept["a"]
    assert (plain["a"] != start(dtype)["a"]).all()
    for key, array in plain.items():
        np.testing.assert_array_equal(array, strided[key])
    assert not wide[:, 1::2].any()


@pytest.mark.parametrize("name", ALL)
def test_descends_and_resumes(name: str) -> None:
    optimiser, parameters = ALL[name](), start()
    optimiser.step(parameters, slopes())
    resumed, copies = ALL[name](), {k: a.copy() for k, a in parameters.items()}
    resumed.load_state(optimiser.state(), optimiser.steps)
    for step in (1, 2):
        optimiser.step(parameters, slopes(step))
        resumed.step(copies, slopes(step))
    for key in parameters:
        np.testing.assert_array_equal(parameters[key], copies[key])


@pytest.mark.parametrize("name", ALL)
def test_only_what_has_a_gradient_changes(name: str) -> None:
    parameters = start()
    ALL[name]().step(parameters, {"b": slopes()["b"]})
    np.testing.assert_array_equal(parameters["a"], start()["a"])
    assert (parameters["b"] != start()["b"]).all()


def test_mechanisms_and_pipelines() -> None:
    rng = np.random.default_rng(0)
    block = pa.AttentionPipeline().add_norm("layer-norm").add_attention(pa.multi_head(8, 2))
    block.initialise(0)
    target = rng.standard_normal((4, 6, 8))
    x = rng.standard_normal((4, 6, 8))
    optimiser = AdamW(learning_rate=0.02)
    losses = []
    for _ in range(40):
        output, pullback = block.vjp(x)
        losses.append(np.square(output - target).sum())
        optimiser.step(block.parameters, pullback(2 * (output - target)).parameters)
    assert losses[-1] < 0.8 * losses[0]
    attention = pa.create("multi-head", dim=8, heads=2)
    before = {k: v.copy() for k, v in attention.parameters.items()}
    output, pullback = attention.vjp(x)
    optimiser = SGD(learning_rate=0.1)
    gradients = pullback(output).parameters
    optimiser.step(attention.parameters, gradients)
    for key, value in attention.parameters.items():
        np.testing.assert_allclose(value, before[key] - 0.1 * gradients[key], rtol=1e-5, atol=1e-6)


def test_a_refused_update_changes_nothing() -> None:
    attention = pa.create("multi-head", dim=8, heads=2)
    before = {k: v.copy() for k, v in attention.parameters.items()}
    name = next(iter(before))
    optimiser = SGD(learning_rate=1e300, momentum=0.9)
    with pytest.raises(ParameterError, match="finite"):
        optimiser.step(attention.parameters, {name: np.full(before[name].shape, 1e300)})
    assert optimiser.steps == 0
    assert not any(array.any() for array in optimiser.state().values())
    np.testing.assert_array_equal(attention.parameters[name], before[name])


def test_allocates_nothing() -> None:
    parameters = {"w": np.ones(1 << 20, np.float32)}
    gradients = {"w": np.ones(1 << 20, np.float32)}
    optimiser = AdamW()
    optimiser.step(parameters, gradients)
    tracemalloc.start()
    try:
        for _ in range(3):
            optimiser.step(parameters, gradients)
        assert tracemalloc.get_traced_memory()[1] < 1 << 15
    finally:
        tracemalloc.stop()


def test_schedules_set_the_rate() -> None:
    parameters = {"w": np.zeros(1)}
    optimiser = SGD(learning_rate=pa.training.Step(1.0, every=2, factor=0.5))
    seen = []
    for _ in range(4):
        optimiser.step(parameters, {"w": -np.ones(1)})
        seen.append(float(parameters["w"][0]))
    np.testing.assert_allclose(np.diff([0, *seen]), [1, 1, 0.5, 0.5])


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "natural", "riemannian"])
def test_a_group_is_an_optimiser_of_its_own(name: str) -> None:
    """Bit for bit, with rates by schedules."""
    parameters, alone = start(), start()
    rate = pa.training.Step(0.1, every=2, factor=0.5)
    kinds = {
        "sgd": SGD, "momentum": lambda **o: SGD(momentum=0.9, **o), "adam": Adam, "adamw": AdamW,
        "natural": lambda **o: NaturalGradient(decay=0.9, **o), "riemannian": RiemannianAdam,
    }  # fmt: skip
    kind: Any = kinds[name]
    together = kind(learning_rate=0.01, groups={"b*": {"learning_rate": rate}})
    each = {"a": kind(learning_rate=0.01), "b": kind(learning_rate=rate)}
    for step in range(4):
        together.step(parameters, slopes(step))
        for key, optimiser in each.items():
            optimiser.step({key: alone[key]}, {key: slopes(step)[key]})
    for key, array in alone.items():
        np.testing.assert_array_equal(parameters[key], array)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_decay_of_groups(kind: Any) -> None:
    """The first wildcard that fits counts; where gradients are 0, only decay moves anything."""
    still = {name: np.zeros(3) for name in ("a.weight", "a.bias", "b.weight")}
    parameters = {name: np.ones(3) for name in still}
    groups = {"*.bias": {"weight_decay": 0.0}, "a.*": {"weight_decay": 0.5}}
    optimiser = kind(learning_rate=0.1, weight_decay=0.1, groups=groups)
    optimiser.step(parameters, still)
    alone = {name: np.ones(3) for name in still}
    for name, decay in (("a.weight", 0.5), ("a.bias", 0.0), ("b.weight", 0.1)):
        kind(learning_rate=0.1, weight_decay=decay).step({name: alone[name]}, {name: np.zeros(3)})
        np.testing.assert_array_equal(parameters[name], alone[name])
    np.testing.assert_array_equal(parameters["a.bias"], 1)
    assert (parameters["b.weight"] < 1).all()
    swapped = kind(groups=dict(reversed(groups.items())))
    assert swapped.options() != kind(groups=groups).options()
    assert "'*.bias': {'weight_decay': 0.0}" in repr(optimiser)


def test_groups_of_a_mechanism() -> None:
    attention = pa.create("multi-head", dim=8, heads=2)
    before = {k: v.copy() for k, v in attention.parameters.items()}
    optimiser = SGD(learning_rate=0.1, groups={"query.*": {"learning_rate": 0.0}})
    gradients = {k: np.ones(v.shape) for k, v in before.items()}
    optimiser.step(attention.parameters, gradients)
    for key, array in attention.parameters.items():
        step = 0.0 if key.startswith("query.") else 0.1
        np.testing.assert_allclose(array, before[key] - step, atol=1e-6)


def test_groups_that_fit_nothing_change_nothing() -> None:
    parameters = start()
    optimiser = SGD(groups={"a": {"weight_decay": 1.0}, "biases*": {"learning_rate": 0.1}})
    with pytest.raises(ParameterError, match=r"groups: got biases\*; expected wildcards for a, b"):
        optimiser.step(parameters, slopes())
    assert optimiser.steps == 0
    np.testing.assert_array_equal(parameters["a"], start()["a"])
    assert SGD().options() == SGD(groups={}).options()


def test_categorical_metric_is_solved_exactly() -> None:
    logits, gradient = normal(3, 5), normal(3, 5, seed=1)
    parameters = {"w": logits.copy()}
    NaturalGradient(metric="categorical", damping=0.01, learning_rate=1.0).step(
        parameters, {"w": gradient}
    )
    for row, g, found in zip(logits, gradient, parameters["w"], strict=True):
        p = np.exp(row) / np.exp(row).sum()
        fisher = np.diag(p) - np.outer(p, p) + 0.01 * np.eye(5)
        np.testing.assert_allclose(found, row - np.linalg.solve(fisher, g), rtol=1e-10)


def test_diagonal_fisher_of_single_examples() -> None:
    each = [normal(6, 4, seed=i) for i in range(3)]
    parameters = {"w": np.zeros(4)}
    optimiser = NaturalGradient(damping=0.1, decay=0.5, learning_rate=1.0)
    expected, fisher, weight = np.zeros(4), np.zeros(4), 0.0
    for gradients in each:
        optimiser.step(parameters, {"w": gradients})
        fisher, weight = 0.5 * fisher + 0.5 * (gradients**2).mean(0), 0.5 * weight + 0.5
        expected -= gradients.mean(0) / (fisher / weight + 0.1)
    np.testing.assert_allclose(parameters["w"], expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("curvature", [-1.0, -0.5])
@pytest.mark.parametrize("manifold", ["poincare", "lorentz"])
def test_points_reach_their_target(manifold: str, curvature: float, dtype: Any) -> None:
    """Minimises the squared distance to a point; only points leave the rule of Adam."""
    target, x = np.array([0.4, -0.3, 0.2]), np.array([[-0.5, 0.1, 0.0], [0.0, 0.0, 0.0]])

    def lifted(v: Any) -> Any:
        return np.concatenate((np.sqrt((v**2).sum(-1, keepdims=True) - 1 / curvature), v), -1)

    lorentz = manifold == "lorentz"
    points = {"x": (lifted(x) if lorentz else x).astype(dtype), "flat": np.ones(2, dtype)}
    goal = lifted(target) if lorentz else target
    optimiser = RiemannianAdam(
        learning_rate=0.02, manifold=manifold, curvature=curvature, points=["x"]
    )

    def distance(v: Any) -> Any:
        if lorentz:
            inner = (v[..., 1:] * goal[1:]).sum(-1) - v[..., 0] * goal[0]
            return np.arccosh(np.maximum(inner * curvature, 1)) / np.sqrt(-curvature)
        return geometry.distance(v, goal, curvature)

    for _ in range(400):
        v = points["x"].astype(np.float64)
        gradient = np.empty_like(v)
        for j in range(v.shape[1]):
            ends = []
            for h in (1e-5, -1e-5):
                moved = v.copy()
                moved[:, j] += h
                ends.append(distance(moved) ** 2)
            gradient[:, j] = (ends[0] - ends[1]) / 2e-5
        optimiser.step(points, {"x": gradient, "flat": np.ones(2)})
    assert (distance(points["x"].astype(np.float64)) < 0.02).all()
    np.testing.assert_allclose(points["flat"], 1 - 400 * 0.02, rtol=1e-3)


def test_points_stay_inside() -> None:
    for dtype in (np.float32, np.float64):
        points = {"x": np.array([[0.9, 0.0], [0.0, 0.99]], dtype)}
        optimiser = RiemannianAdam(learning_rate=5.0)
        for _ in range(20):
            optimiser.step(points, {"x": np.array([[-1.0, 0.0], [0.0, -1.0]])})
            assert (geometry.lengths(points["x"]) < 1).all()


def step(optimiser: Optimiser, parameter: Any = None, gradient: Any = None) -> Callable[[], None]:
    parameter = np.zeros(3) if parameter is None else parameter
    gradient = np.ones(3) if gradient is None else gradient
    return lambda: optimiser.step({"w": parameter}, {"w": gradient})


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "rate": (lambda: SGD(learning_rate=-1), ArgumentError, "learning_rate.*at least 0"),
    "momentum": (lambda: SGD(momentum=1), ArgumentError, "momentum.*below 1"),
    "nesterov": (lambda: SGD(nesterov=True), ArgumentError, "momentum above 0"),
    "betas": (lambda: Adam(betas=(0.9,)), ArgumentError, "two numbers"),  # type: ignore[arg-type]
    "epsilon": (lambda: Adam(epsilon=0), ArgumentError, "epsilon"),
    "metric": (lambda: NaturalGradient(metric="full"), ArgumentError, "'categorical'"),
    "decay": (lambda: NaturalGradient(metric="categorical", decay=0.5), ArgumentError, "decay"),
    "manifold": (lambda: RiemannianAdam(manifold="sphere"), ArgumentError, "'lorentz'"),
    "curvature": (lambda: RiemannianAdam(curvature=1), ArgumentError, "curvature.*below 0"),
    "outside": (step(RiemannianAdam(), np.ones(3)), ParameterError, "inside the ball"),
    "off": (step(RiemannianAdam(manifold="lorentz"), np.ones(3)), ParameterError, "hyperboloid"),
    "shape": (step(SGD(), gradient=np.ones(2)), ShapeError, r"gradients\['w'\].*\(3,\)"),
    "dtype": (step(Adam(), np.zeros(3, np.int64)), DTypeError, "float32 or float64"),
    "surplus": (lambda: SGD().step({}, {"w": np.ones(3)}), ParameterError, "gradients"),
    "groups": (lambda: SGD(groups=["a"]), ArgumentError, "a mapping of wildcards"),  # type: ignore[arg-type]
    "group": (lambda: SGD(groups={"a": 0.1}), ArgumentError, "a mapping"),  # type: ignore[dict-item]
    "of a group": (
        lambda: AdamW(groups={"a": {"epsilon": 1}}),
        ArgumentError,
        r"groups\['a'\]: got epsilon; expected options learning_rate, weight_decay",
    ),
    "no decay": (
        lambda: RiemannianAdam(groups={"a": {"weight_decay": 1}}),
        ArgumentError,
        "expected options learning_rate$",
    ),
    "in a group": (
        lambda: Adam(groups={"a": {"learning_rate": -1}}),
        ArgumentError,
        r"groups\['a'\]: learning_rate: got -1",
    ),
    "slot": (lambda: Adam().load_state({"velocity/w": 1}, 1), ParameterError, "first, second"),
    "half": (lambda: Adam().load_state({"first/w": 1}, 1), ParameterError, "no second/w"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    call, error, match = REFUSED[case]
    with pytest.raises(error, match=match):
        call()


def test_a_refused_step_changes_nothing() -> None:
    parameters = start()
    optimiser = Adam()
    bad = slopes()
    bad["b"][1] = np.inf
    with pytest.raises(ParameterError):
        optimiser.step(parameters, bad, check_finite=True)
    assert optimiser.steps == 0
    np.testing.assert_array_equal(parameters["a"], start()["a"])
