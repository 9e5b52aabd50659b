"""Routing, gates, gradients and capacity against definitions and torch."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

import polyattn as pa
from polyattn_core.errors import (
    ArgumentError,
    CapabilityError,
    ConfigError,
    ShapeError,
    UnknownNameError,
)
from polyattn_core.masks import Causal
from polyattn_moe import mixture
from polyattn_moe.routing import balance, choose

Array = npt.NDArray[Any]
Create = Callable[..., Any]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
TRIO = (
    "scaled-dot-product",
    {"name": "gaussian", "bandwidth": 1.5},
    {"name": "scaled-dot-product", "scale": 2.0},
)


def inputs(tokens: int = 9, keys: int = 7, heads: int = 2, size: int = 4) -> tuple[Array, ...]:
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((2, heads, tokens, size)),
        rng.standard_normal((2, heads, keys, size)),
        rng.standard_normal((2, heads, keys, size)),
    )


def router_set(layer: Any, logits: Array) -> Array:
    """A query (1, 1, tokens, dim) for which the router has these logits."""
    tokens, experts = logits.shape
    weight = np.zeros((experts, layer.config.dim))
    weight[:, :experts] = np.eye(experts)
    layer.parameters.update({"router.weight": weight}, partial=True)
    query = np.zeros((1, 1, tokens, layer.config.dim))
    query[0, 0, :, :experts] = logits
    return query


def softmax(x: Array) -> Array:
    return np.asarray(scipy.special.softmax(x, axis=-1))


def attended(query: Array, key: Array, value: Array, scale: float) -> Array:
    return softmax(scale * query @ key.swapaxes(-1, -2)) @ value


# ---- moe ----


def test_by_hand(create: Create) -> None:
    """Two experts of three for each token, gates from the two logits."""
    layer = create("moe", dim=8, experts=TRIO, top_k=2)
    logits = np.array([[3.0, 1.0, 2.0], [0.0, 0.5, -1.0]])
    query = router_set(layer, logits)
    key, value = np.random.default_rng(0).standard_normal((2, 1, 1, 5, 8))
    near = softmax(-((query[..., None, :] - key[..., None, :, :]) ** 2).sum(-1) / 4.5) @ value
    plain, sharp = (attended(query, key, value, s) for s in (8**-0.5, 2.0))
    first, second = softmax(np.array([[3.0, 2.0], [0.0, 0.5]]))
    output = layer.attend(query, key, value)[0, 0]
    expected = first[0] * plain[0, 0, 0] + first[1] * sharp[0, 0, 0]
    np.testing.assert_allclose(output[0], expected, **CLOSE)
    expected = second[0] * plain[0, 0, 1] + second[1] * near[0, 0, 1]
    np.testing.assert_allclose(output[1], expected, **CLOSE)
    assert layer.last_routing.assigned[0].tolist() == [[True, False, True], [True, True, False]]


@pytest.mark.oracle
@pytest.mark.parametrize("normalise", [True, False])
def test_gradients_against_torch(create: Create, normalise: bool) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    layer = create("moe", dim=8, heads=2, experts=4, top_k=2, normalise=normalise)
    arrays = inputs()
    q, k, v = (torch.tensor(array, requires_grad=True) for array in arrays)
    p = {n: torch.tensor(np.array(a), requires_grad=True) for n, a in layer.parameters.items()}

    def flat(x: Any) -> Any:
        return x.transpose(1, 2).flatten(2)

    def heads(x: Any) -> Any:
        return x.unflatten(-1, (2, -1)).transpose(1, 2)

    logits = flat(q) @ p["router.weight"].T
    best = logits.topk(2, dim=-1).indices
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True)
    among = logits.masked_fill(~chosen, -torch.inf) if normalise else logits
    gates = torch.where(chosen, torch.softmax(among, -1), 0)
    expected = 0
    for e in range(4):
        own = heads(flat(q) @ p[f"experts.{e}.query.weight"].T)
        found = torch.softmax(own @ k.transpose(-1, -2) / 2, -1) @ v
        found = heads(flat(found) @ p[f"experts.{e}.output.weight"].T)
        expected = expected + gates[:, None, :, e, None] * found
    output, pullback = layer.attend_vjp(*arrays)
    np.testing.assert_allclose(output, expected.detach(), **CLOSE)
    incoming = np.random.default_rng(1).standard_normal(output.shape)
    expected.backward(torch.from_numpy(incoming))
    gradients = pullback(incoming)
    for name, tensor in (("query", q), ("key", k), ("value", v)):
        np.testing.assert_allclose(getattr(gradients, name), tensor.grad, **CLOSE)
    for name, tensor in p.items():
        np.testing.assert_allclose(gradients.parameters[name], tensor.grad, **CLOSE)


def test_capacity_drops_and_says_so(create: Create) -> None:
    """All want expert 0 first: room for ⌈0.75 · 4 · 1 / 2⌉ = 2, the first two."""
    options = {"dim": 4, "experts": TRIO[::2], "top_k": 1, "expert_capacity": 0.75}
    logits = np.array([[2.0, 1.0], [2.0, 0.0], [3.0, 1.0], [9.0, 8.0]])
    key, value = np.random.default_rng(0).standard_normal((2, 1, 1, 5, 4))
    layer = create("moe", **options)
    query = router_set(layer, logits)
    output = layer.attend(query, key, value)
    routing = layer.last_routing
    assert routing.capacity == 2
    assert routing.load.tolist() == [[2, 0]]
    assert routing.dropped.tolist() == [[0, 0, 1, 1]]
    assert not routing.rerouted.any()
    assert "dropped=2" in repr(routing)
    plain = attended(query, key, value, 0.5)
    np.testing.assert_allclose(output[..., :2, :], plain[..., :2, :], **CLOSE)
    assert not output[..., 2:, :].any()

    layer = create("moe", **options, overflow="reroute")
    query = router_set(layer, logits)
    output = layer.attend(query, key, value)
    routing = layer.last_routing
    assert routing.load.tolist() == [[2, 2]]
    assert not routing.dropped.any()
    assert routing.rerouted.tolist() == [[0, 0, 1, 1]]
    sharp = attended(query, key, value, 2.0)
    np.testing.assert_allclose(output[..., 2:, :], sharp[..., 2:, :], **CLOSE)


def test_reroute_drops_where_nothing_has_room() -> None:
    choice = choose(np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), 1, 1, reroute=True)
    assert choice.assigned.tolist() == [[True, False], [False, True], [False, False]]
    assert choice.dropped.tolist() == [0, 0, 1]
    assert choice.rerouted.tolist() == [0, 1, 0]


def test_jitter_is_for_training(create: Create) -> None:
    layer = create("moe", dim=8, heads=2, experts=4, jitter_noise=0.5)
    calm = create("moe", dim=8, heads=2, experts=4)
    arrays = inputs(tokens=40)
    np.testing.assert_array_equal(layer.attend(*arrays), calm.attend(*arrays))
    with pytest.raises(ArgumentError, match="rng"):
        layer.attend(*arrays, training=True)
    noisy = layer.attend(*arrays, training=True, rng=3)
    gates = layer.last_routing.gates
    assert (noisy != layer.attend(*arrays)).any()
    np.testing.assert_array_equal(noisy, layer.attend(*arrays, training=True, rng=3))
    output, pullback = layer.attend_vjp(*arrays, training=True, rng=3)
    np.testing.assert_array_equal(output, noisy)
    np.testing.assert_array_equal(layer.last_routing.gates, gates)
    # Finite difference through the noisy router, with the same noise.
    incoming = np.cos(output)
    along = np.random.default_rng(2).standard_normal((4, 8))
    weight = np.array(layer.parameters["router.weight"])
    sides = []
    for step in (1e-6, -1e-6):
        layer.parameters.update({"router.weight": weight + step * along}, partial=True)
        sides.append((layer.attend(*arrays, training=True, rng=3) * incoming).sum())
    found = (pullback(incoming).parameters["router.weight"] * along).sum()
    assert found == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5)


def test_experts_drop_weights_in_training(create: Create) -> None:
    layer = create("moe", dim=8, heads=2, experts=({"name": "sdpa", "dropout": 0.5}, "sdpa"))
    arrays = inputs()
    with pytest.raises(ArgumentError, match="rng"):
        layer.attend(*arrays, training=True)
    dropped = layer.attend(*arrays, training=True, rng=1)
    assert (dropped != layer.attend(*arrays)).any()
    np.testing.assert_array_equal(dropped, layer.attend(*arrays, training=True, rng=1))


def test_balance_loss(create: Create) -> None:
    """1 where loads and probabilities are equal; experts where one gets everything."""
    even = np.log(np.full((1, 4, 4), 0.25))
    assert balance(even, np.eye(4, dtype=bool)[None])[0] == pytest.approx(1)
    alone = np.array([[[100.0, 0, 0, 0]] * 4])
    assert balance(alone, alone > 0)[0] == pytest.approx(4)

    query, key, value = inputs()
    options: dict[str, Any] = {"dim": 8, "heads": 2, "experts": 4, "top_k": 1}
    plain = create("moe", **options)
    weighted = create("moe", **options, balance_weight=0.7)
    grown = []
    for layer in (plain, weighted):
        output, pullback = layer.attend_vjp(query, key, value)
        grown.append(pullback(np.ones_like(output)).parameters["router.weight"])
    probabilities = softmax(
        query.swapaxes(1, 2).reshape(2, 9, 8) @ plain.parameters["router.weight"].T
    )
    used = np.bincount(probabilities.argmax(-1).ravel(), minlength=4) / 18
    expected = 4 * (used * probabilities.mean((0, 1))).sum()
    assert plain.last_routing.balance_loss == pytest.approx(expected)
    along = np.random.default_rng(2).standard_normal((4, 8))
    weight, sides = np.array(plain.parameters["router.weight"]), []
    for step in (1e-6, -1e-6):
        plain.parameters.update({"router.weight": weight + step * along}, partial=True)
        plain.attend(query, key, value)
        sides.append(plain.last_routing.balance_loss)
    numeric = (sides[0] - sides[1]) / 2e-6
    assert ((grown[1] - grown[0]) * along).sum() == pytest.approx(0.7 * numeric, rel=1e-5)


def test_experts_work_for_their_own_tokens(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = create("moe", dim=8, heads=2, experts=8, top_k=2)
    seen: list[int] = []
    for expert in layer.experts:
        inner = expert.attend

        def spy(q: Array, *rest: Any, inner: Any = inner, **options: Any) -> Any:
            seen.append(q.shape[-2])
            return inner(q, *rest, **options)

        monkeypatch.setattr(expert, "attend", spy)
    layer.attend(*inputs(tokens=40))
    assert sum(seen) == 2 * 2 * 40  # sequences · top_k · tokens


def test_mixture_of_families(create: Create) -> None:
    """Standard, hyperbolic and linear, as they are, with their gates."""
    pytest.importorskip("polyattn_hyperbolic")
    pytest.importorskip("polyattn_sparse")
    names = ("scaled-dot-product", "hyperbolic", "linear")
    layer = create("moe", dim=8, heads=2, experts=names, top_k=3)
    arrays = inputs()
    output = layer.attend(*arrays)
    gates = layer.last_routing.gates
    expected = sum(
        gates[:, None, :, e, None] * pa.create(name, dim=8, heads=2).attend(*arrays)
        for e, name in enumerate(names)
    )
    np.testing.assert_allclose(output, expected, **CLOSE)


def test_positions_of_experts(create: Create) -> None:
    """One that looks at positions sees those of all queries, not of its own few."""
    options = ({"name": "sdpa", "position": "rope"}, {"name": "sdpa", "position": "alibi"})
    layer = create("moe", dim=8, heads=2, experts=options, top_k=1, causal=True)
    arrays = inputs(tokens=7)
    output = layer.attend(*arrays)
    picked = layer.last_routing.gates.argmax(-1)[:, None, :, None]
    both = [
        pa.create("sdpa", dim=8, heads=2, causal=True, position=one["position"]).attend(*arrays)
        for one in options
    ]
    np.testing.assert_allclose(output, np.where(picked == 0, *both), **CLOSE)


@pytest.mark.parametrize("name", ["moe", "mixture-of-heads"])
def test_masks_in_small_parts(create: Create, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    layer = create(name, dim=8, heads=2)
    arrays = inputs(tokens=65, keys=63)
    bias = np.random.default_rng(4).standard_normal((2, 1, 65, 1))

    def run() -> Any:
        output, pullback = layer.attend_vjp(*arrays, mask=Causal(), bias=bias)
        return output, pullback(np.cos(output))

    expected, gradients = run()
    monkeypatch.setattr(mixture, "_MASKED", 2 * 63 * 3)
    output, found = run()
    np.testing.assert_allclose(output, expected, **CLOSE)
    for part in ("query", "key", "value", "bias"):
        np.testing.assert_allclose(getattr(found, part), getattr(gradients, part), **CLOSE)


def test_parameters_reach_experts(create: Create) -> None:
    layer = create("moe", dim=8, heads=2, experts=3)
    arrays = inputs()
    before = layer.attend(*arrays)
    doubled = {n: 2 * a for n, a in layer.parameters.items() if n.endswith("output.weight")}
    layer.parameters.update(doubled, partial=True)
    np.testing.assert_allclose(layer.attend(*arrays), 2 * before, **CLOSE)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other.parameters.update({n: 2 * a for n, a in doubled.items()}, partial=True)
        np.testing.assert_allclose(other.attend(*arrays), 4 * before, **CLOSE)
        np.testing.assert_allclose(layer.attend(*arrays), 2 * before, **CLOSE)


def test_builder() -> None:
    layer = pa.moe(512, 8, 2).expert_capacity(1.25).jitter_noise(0.01).build()
    config = layer.config
    assert (config.dim, config.expert_count, config.top_k) == (512, 8, 2)
    assert (config.expert_capacity, config.jitter_noise) == (1.25, 0.01)
    x = np.random.default_rng(0).standard_normal((32, 512), np.float32)
    assert layer(x).shape == (32, 512)
    assert layer.last_routing.capacity == math.ceil(1.25 * 32 * 2 / 8)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("moe", {"experts": 1}, "a number from 2 to 4096, or names"),
        ("moe", {"experts": ("sdpa",)}, "at least 2"),
        ("moe", {"experts": ({"scale": 1.0}, "sdpa")}, "with a name"),
        ("moe", {"experts": ({"name": "sdpa", "dim": 3}, "sdpa")}, "dim of experts"),
        ("moe", {"experts": 2, "top_k": 3}, "there are 2 experts"),
        ("moe", {"overflow": "wait"}, "overflow"),
        ("expert-choice", {"expert_capacity": 0}, "greater than 0"),
        ("mixture-of-heads", {"shared_heads": 3}, "there are 2 heads"),
        ("mixture-of-heads", {"top_k": 2}, "there are 1 routed heads"),
        (
            "mixture-of-heads",
            {"attention": {"name": "sdpa", "position": "rope"}},
            "does not look at positions",
        ),
    ],
)
def test_option_errors(create: Create, name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        create(name, **{"dim": 8, "heads": 2, **options})


def test_errors_of_calls(create: Create) -> None:
    with pytest.raises(UnknownNameError):
        create("moe", dim=8, experts=("sdpa", "no-such-mechanism"))
    query, key, value = inputs()
    with pytest.raises(ShapeError, match="value"):
        create("moe", dim=8, heads=2, experts=2).attend(query, key, value[..., :3])
    pytest.importorskip("polyattn_sparse")
    layer = create("moe", dim=8, heads=2, experts=("linear", "sdpa"), top_k=2)
    with pytest.raises(CapabilityError, match="linear"):
        layer.attend(query, key, value, bias=np.zeros((9, 7)))


# ---- expert choice, mixture of heads ----


def test_experts_choose(create: Create) -> None:
    """Each takes its best ⌈4 · 1 / 2⌉ = 2 tokens; all prefer expert 0 by themselves but one."""
    layer = create("expert-choice", dim=4, experts=TRIO[::2], expert_capacity=1.0)
    shares = np.array([[0.7, 0.3], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    query = router_set(layer, np.log(shares))
    key, value = np.random.default_rng(0).standard_normal((2, 1, 1, 5, 4))
    output = layer.attend(query, key, value)[0, 0]
    plain, sharp = (attended(query, key, value, s)[0, 0] for s in (0.5, 2.0))
    assert layer.last_routing.load.tolist() == [[2, 2]]
    expected = np.zeros((4, 4))
    for token in (0, 1):
        expected[token] += shares[token, 0] * plain[token]
    for token in (2, 3):
        expected[token] += shares[token, 1] * sharp[token]
    np.testing.assert_allclose(output, expected, **CLOSE)


@pytest.mark.oracle
def test_mixture_of_heads_against_torch(create: Create) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    layer = create("mixture-of-heads", dim=20, heads=5, shared_heads=2, top_k=2)
    arrays = inputs(heads=5)
    q, k, v = (torch.tensor(array, requires_grad=True) for array in arrays)
    p = {n: torch.tensor(np.array(a), requires_grad=True) for n, a in layer.parameters.items()}
    x = q.transpose(1, 2).flatten(2)
    kinds = torch.softmax(x @ p["router.kind"].T, -1)
    shared = kinds[..., :1] * torch.softmax(x @ p["router.shared"].T, -1)
    routed = torch.softmax(x @ p["router.routed"].T, -1)
    least = routed.topk(2, dim=-1).values[..., -1:]
    routed = kinds[..., 1:] * torch.where(routed >= least, routed, 0)
    gates = torch.cat((shared, routed), -1).transpose(1, 2)[..., None]
    expected = gates * (torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v)
    output, pullback = layer.attend_vjp(*arrays)
    np.testing.assert_allclose(output, expected.detach(), **CLOSE)
    incoming = np.random.default_rng(1).standard_normal(output.shape)
    expected.backward(torch.from_numpy(incoming))
    gradients = pullback(incoming)
    for name, tensor in (("query", q), ("key", k), ("value", v)):
        np.testing.assert_allclose(getattr(gradients, name), tensor.grad, **CLOSE)
    for name, tensor in p.items():
        np.testing.assert_allclose(gradients.parameters[name], tensor.grad, **CLOSE)
