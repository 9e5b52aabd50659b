"""Losses, optimisers and schedules against torch, Riemannian Adam against geoopt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn import training

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")

TOLERANCES = {"float32": 2e-5, "float64": 1e-10}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES)


def normal(*shape: int, seed: int = 0, dtype: str = "float64") -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def compare(tensor: Any, close: Any, loss: Any, theirs: Any, inputs: dict[str, Any]) -> None:
    dtype = next(iter(inputs.values())).dtype.name
    value, gradients = loss(**inputs)
    tensors = {name: tensor(array, gradient=True) for name, array in inputs.items()}
    expected = theirs(**tensors)
    expected.backward()
    close(value, expected, TOLERANCES[dtype], "value")
    for name, found in tensors.items():
        close(gradients[name], found.grad, TOLERANCES[dtype], name)


@each_dtype
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("negatives", ["in-batch", "shared", "own"])
def test_info_nce(tensor: Any, close: Any, negatives: str, normalise: bool, dtype: str) -> None:
    tau = 0.2 if normalise else 2.0

    def theirs(query: Any, positive: Any, negatives: Any = None) -> Any:
        if normalise:
            query, positive, negatives = (
                None if t is None else torch.nn.functional.normalize(t, dim=-1)
                for t in (query, positive, negatives)
            )
        if negatives is None:
            logits, labels = query @ positive.mT, torch.arange(query.shape[-2]).expand(2, -1)
        else:
            own = (query * positive).sum(-1, keepdim=True)
            if negatives.ndim == query.ndim:
                others = query @ negatives.mT
            else:
                others = (negatives @ query[..., None])[..., 0]
            logits = torch.cat((own, others), -1)
            labels = torch.zeros(logits.shape[:-1], dtype=torch.long)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1) / tau, labels.flatten())

    inputs = {
        "query": normal(2, 65, 8, dtype=dtype),
        "positive": normal(2, 65, 8, seed=1, dtype=dtype),
    }
    if negatives != "in-batch":
        shape = (2, 63, 8) if negatives == "shared" else (2, 65, 3, 8)
        inputs["negatives"] = normal(*shape, seed=2, dtype=dtype)
    loss = training.make("loss", "info-nce", temperature=tau, normalise=normalise)
    compare(tensor, close, loss, theirs, inputs)


@each_dtype
@pytest.mark.parametrize("swap", [True, False])
def test_triplet(tensor: Any, close: Any, swap: bool, dtype: str) -> None:
    oracle = torch.nn.TripletMarginLoss(margin=0.7, swap=swap, eps=0.0)
    inputs = {
        name: normal(65, 8, seed=i, dtype=dtype)
        for i, name in enumerate(("anchor", "positive", "negative"))
    }
    loss = training.make("loss", "triplet", margin=0.7, swap=swap)
    compare(tensor, close, loss, oracle, inputs)


@each_dtype
@pytest.mark.parametrize("form", ["log-determinant", "spread"])
def test_spectral(tensor: Any, close: Any, form: str, dtype: str) -> None:
    def theirs(points: Any) -> Any:
        covariance = torch.stack([torch.cov(p.T) for p in points]) + 0.01 * torch.eye(
            6, dtype=points.dtype
        )
        if form == "log-determinant":
            return -torch.logdet(covariance).mean() / 6
        return torch.linalg.eigvalsh(covariance).log().var(-1, correction=0).mean()

    loss = training.make("loss", "spectral", form=form, epsilon=0.01)
    compare(tensor, close, loss, theirs, {"points": normal(2, 63, 6, dtype=dtype)})


@each_dtype
def test_local_contrastive(tensor: Any, close: Any, dtype: str) -> None:
    near = np.random.default_rng(5).random((9, 9)) < 0.3

    def theirs(points: Any) -> Any:
        off = ~torch.eye(9, dtype=torch.bool)
        differences = (points[:, None] - points[None])[off]
        distance, y = differences.norm(dim=-1), torch.from_numpy(near)[off]
        return torch.where(y, distance**2, (2.0 - distance).clamp(min=0) ** 2).mean() / 2

    loss = training.make("loss", "local-contrastive", margin=2.0)

    def ours(points: Any) -> Any:
        return loss(points, near)

    compare(tensor, close, ours, theirs, {"points": normal(9, 3, dtype=dtype)})


OPTIMISERS = {
    "sgd": ("sgd", "SGD", {}, {}),
    "decay": ("sgd", "SGD", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    "momentum": ("sgd", "SGD", {"momentum": 0.9}, {"momentum": 0.9}),
    "nesterov": (
        "sgd", "SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "adam": ("adam", "Adam", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    "betas": (
        "adam", "Adam", {"betas": (0.5, 0.9), "epsilon": 1e-3}, {"betas": (0.5, 0.9), "eps": 1e-3}
    ),
    "adamw": ("adamw", "AdamW", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
}  # fmt: skip


@each_dtype
@pytest.mark.parametrize("case", OPTIMISERS)
def test_optimisers_step_by_step(tensor: Any, close: Any, case: str, dtype: str) -> None:
    name, cls, options, their_options = OPTIMISERS[case]
    parameters = {"a": normal(65, 3, dtype=dtype), "b": normal(100_001, seed=1, dtype=dtype)}
    theirs = {k: tensor(a, gradient=True) for k, a in parameters.items()}
    ours = training.make("optimiser", name, learning_rate=0.05, **options)
    oracle = getattr(torch.optim, cls)(theirs.values(), lr=0.05, **their_options)
    for step in range(10):
        gradients = {k: normal(*a.shape, seed=step + 9, dtype=dtype) for k, a in parameters.items()}
        ours.step(parameters, gradients)
        for k, gradient in gradients.items():
            theirs[k].grad = tensor(gradient)
        oracle.step()
        for k, array in parameters.items():
            close(array, theirs[k], TOLERANCES[dtype], f"{k} after step {step + 1}")


@each_dtype
@pytest.mark.parametrize("case", OPTIMISERS)
def test_groups_step_by_step(tensor: Any, close: Any, case: str, dtype: str) -> None:
    name, cls, options, their_options = OPTIMISERS[case]
    shapes = {"a.weight": (65, 3), "a.bias": (65,), "b.weight": (30, 65), "b.bias": (30,)}
    parameters = {k: normal(*shape, seed=1, dtype=dtype) for k, shape in shapes.items()}
    theirs = {k: tensor(a, gradient=True) for k, a in parameters.items()}
    groups = {
        "*.bias": {"weight_decay": 0.0},
        "b.*": {"learning_rate": 0.01, "weight_decay": 0.3},
    }
    ours = training.make("optimiser", name, learning_rate=0.05, groups=groups, **options)
    oracle = getattr(torch.optim, cls)(
        [
            {"params": [theirs["a.weight"]]},
            {"params": [theirs["a.bias"], theirs["b.bias"]], "weight_decay": 0.0},
            {"params": [theirs["b.weight"]], "lr": 0.01, "weight_decay": 0.3},
        ],
        lr=0.05, **their_options,
    )  # fmt: skip
    for step in range(10):
        for k, array in parameters.items():
            theirs[k].grad = tensor(normal(*array.shape, seed=step + 9, dtype=dtype))
        ours.step(parameters, {k: x.grad.numpy() for k, x in theirs.items()})
        oracle.step()
        for k, array in parameters.items():
            close(array, theirs[k], TOLERANCES[dtype], f"{k} after step {step + 1}")


@pytest.mark.parametrize("curvature", [-1.0, -0.5])
@pytest.mark.parametrize("manifold", ["poincare", "lorentz"])
def test_riemannian_adam(tensor: Any, close: Any, manifold: str, curvature: float) -> None:
    geoopt = pytest.importorskip("geoopt", reason="geoopt is not installed: make oracles")
    x = 0.3 * normal(7, 4)
    if manifold == "poincare":
        space = geoopt.PoincareBallExact(c=-curvature)
    else:
        space = geoopt.Lorentz(k=-1 / curvature)
        x = np.concatenate((np.sqrt((x**2).sum(-1, keepdims=True) - 1 / curvature), x), -1)
    theirs = geoopt.ManifoldParameter(tensor(x), manifold=space)
    oracle = geoopt.optim.RiemannianAdam([theirs], lr=0.05)
    ours = training.make(
        "optimiser", "riemannian-adam", learning_rate=0.05, manifold=manifold, curvature=curvature
    )
    parameters = {"x": x.copy()}
    for step in range(10):
        gradient = normal(*x.shape, seed=step + 3)
        ours.step(parameters, {"x": gradient})
        theirs.grad = tensor(gradient)
        oracle.step()
        close(parameters["x"], theirs, 1e-7, f"step {step + 1}")


def rates(make: Any, steps: int) -> list[float]:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    found, schedule = [], make(optimiser)
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


def test_schedules() -> None:
    from torch.optim import lr_scheduler as theirs

    pairs = {
        "constant": (
            training.make("schedule", "constant", 1.0),
            lambda o: theirs.ConstantLR(o, factor=1.0),
        ),
        "warm-up": (
            training.make("schedule", "linear-warm-up", 1.0, warm_up=5),
            lambda o: theirs.LambdaLR(o, lambda step: min(1, (step + 1) / 5)),
        ),
        "cosine": (
            training.make("schedule", "cosine", 1.0, steps=20, least=0.1),
            lambda o: theirs.CosineAnnealingLR(o, 20, eta_min=0.1),
        ),
        "step": (
            training.make("schedule", "step", 1.0, every=4, factor=0.3),
            lambda o: theirs.StepLR(o, 4, 0.3),
        ),
        "linear": (
            training.make("annealing", "linear", 1.0, 0.1, steps=20),
            lambda o: theirs.LinearLR(o, 1.0, 0.1, 20),
        ),
        "exponential": (
            training.make("annealing", "exponential", 1.0, 0.5**20, steps=20),
            lambda o: theirs.ExponentialLR(o, 0.5),
        ),
        "cosine annealing": (
            training.make("annealing", "cosine", 1.0, 0.1, steps=20),
            lambda o: theirs.CosineAnnealingLR(o, 20, eta_min=0.1),
        ),
    }
    for name, (ours, make) in pairs.items():
        expected = rates(make, 20)
        np.testing.assert_allclose(
            [ours(step) for step in range(20)], expected, rtol=1e-9, err_msg=name
        )
