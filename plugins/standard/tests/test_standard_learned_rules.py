"""Additive, differential, talking heads, Hopfield, stick-breaking: by their definitions."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

from polyattn_core.errors import ConfigError, ShapeError
from polyattn_core.masks import Causal, Padding
from polyattn_standard import panels
from torch_layers import learned, softmax, torch_gradients

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


# ---- additive ----


def additive(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
    left = torch.einsum("hud,bhqd->bhqu", p["query.weight"], q)[..., :, None, :]
    right = torch.einsum("hud,bhkd->bhku", p["key.weight"], k)[..., None, :, :]
    scores = torch.einsum("bhqku,hu->bhqk", torch.tanh(left + right), p["vector"])
    return torch.softmax(scores, -1) @ v


@pytest.mark.oracle
@pytest.mark.parametrize("hidden", [None, 1, 9])
def test_additive(create: Create, arrays: Arrays, hidden: int | None) -> None:
    layer = learned(create("additive", dim=12, heads=3, hidden=hidden))
    torch_gradients(layer, arrays(), additive)


def test_additive_one_unit_by_hand(create: Create) -> None:
    layer = create("additive", dim=1)
    layer.parameters.update({"query.weight": [[[2.0]]], "key.weight": [[[3.0]]], "vector": [[5.0]]})
    scores = [5 * math.tanh(2 * 0.1 + 3 * k) for k in (0.2, -0.4, 7.0)]
    output = layer([0.1], [[0.2], [-0.4], [7.0]], np.eye(3))
    np.testing.assert_allclose(output, softmax(np.array(scores)), **CLOSE)


def test_additive_wants_its_head_size(create: Create, arrays: Arrays) -> None:
    with pytest.raises(ShapeError, match="3 heads of size 5"):
        create("additive", dim=15, heads=3).attend(*arrays())


# ---- differential ----


def differential(torch: Any, q: Any, k: Any, v: Any, p: Any, norm: bool = False) -> Any:
    maps = [
        torch.softmax(a @ b.transpose(-1, -2) / math.sqrt(2), -1)
        for a, b in zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
    ]
    one, two = torch.exp((p["lambda.query"] * p["lambda.key"]).sum(1))
    output = (maps[0] - (one - two + 0.3) * maps[1]) @ v
    if not norm:
        return output
    return 0.7 * torch.nn.functional.rms_norm(output, output.shape[-1:], eps=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("norm", [False, True])
def test_differential(create: Create, arrays: Arrays, norm: bool) -> None:
    layer = learned(create("differential", dim=12, heads=3, lambda_init=0.3, norm=norm))
    torch_gradients(layer, arrays(), lambda *a: differential(*a, norm=norm))


def test_differential_cancels_what_maps_share(create: Create, arrays: Arrays) -> None:
    layer = create("differential", dim=12, heads=3, lambda_init=0.25)
    layer.parameters.update({n: np.zeros((2, 2)) for n in layer.parameters})
    assert layer.balance() == 0.25
    query, key, value = arrays()
    query[..., 2:], key[..., 2:] = query[..., :2], key[..., :2]
    half = create("scaled-dot-product", dim=6, heads=3)
    expected = 0.75 * half.attend(query[..., :2], key[..., :2], value)
    np.testing.assert_allclose(layer.attend(query, key, value), expected, **CLOSE)


def test_differential_needs_halves(create: Create) -> None:
    with pytest.raises(ConfigError, match="odd"):
        create("differential", dim=9, heads=3)


# ---- talking heads ----


def talking(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
    scores = torch.einsum("gh,bhqd,bhkd->bgqk", p["scores.mix"], q, k) / 2
    return torch.einsum("gh,bhqk->bgqk", p["weights.mix"], torch.softmax(scores, -1)) @ v


@pytest.mark.oracle
def test_talking_heads(create: Create, arrays: Arrays) -> None:
    torch_gradients(learned(create("talking-heads", dim=12, heads=3)), arrays(), talking)


def test_talking_heads_start_silent(create: Create, arrays: Arrays) -> None:
    expected = create("scaled-dot-product", dim=12, heads=3).attend(*arrays())
    output = create("talking-heads", dim=12, heads=3).attend(*arrays())
    np.testing.assert_allclose(output, expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("talking-heads", {}), ("additive", {}), ("stick-breaking", {}),
        ("talking-heads", {"position": "t5"}), ("talking-heads", {"position": "rope"}),
        ("additive", {"position": "alibi"}),
    ],
)  # fmt: skip
def test_small_panels_and_threads(
    create: Create, arrays: Arrays, monkeypatch: pytest.MonkeyPatch, name: str,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """However queries are divided among panels and threads, nothing changes but rounding."""
    query, key, value = arrays(queries=65, keys=63)
    bias = np.random.default_rng(5).standard_normal((2, 1, 65, 1))
    mask = Causal() & Padding(np.array([63, 40]))

    def run(threads: int) -> Any:
        layer = learned(create(name, dim=12, heads=3, threads=threads, **options))
        output, pullback = layer.attend_vjp(query, key, value, mask=mask, bias=bias)
        return output, pullback(np.cos(output))

    expected, gradients = run(1)
    monkeypatch.setattr(panels, "_PANEL", 3 * 63 * 4)
    for threads in (1, 2):
        output, found = run(threads)
        np.testing.assert_allclose(output, expected, **CLOSE)
        for part in ("query", "key", "value", "bias"):
            np.testing.assert_allclose(getattr(found, part), getattr(gradients, part), **CLOSE)
        for part, array in gradients.parameters.items():
            np.testing.assert_allclose(found.parameters[part], array, **CLOSE)


# ---- positions and dropout of panels, and of Hopfield networks ----

POSITIONS = ["rope", {"kind": "rope", "interleaved": True, "size": 2}, "alibi", "t5"]


def placed(torch: Any, plain: Any, position: Any, p: Any) -> tuple[Callable[..., Any], Any]:
    """What turns an array, and what is added to the scores of 5 queries and 7 keys."""
    if position == "alibi":
        return lambda x, first: x, torch.tensor(plain.alibi(3, 5, 7))
    if position == "t5":
        which = [[plain.bucket(j - (i + 2)) for j in range(7)] for i in range(5)]
        return lambda x, first: x, p["position.table"][:, which]
    options = {} if position == "rope" else {k: v for k, v in position.items() if k != "kind"}

    def turned(x: Any, first: int) -> Any:
        # A linear map of each token, found by turning unit vectors.
        unit = np.broadcast_to(np.eye(4)[:, None], (4, x.shape[-2], 4)).copy()
        maps = torch.tensor(plain.rope(unit, first, **options))  # (in, token, out)
        return torch.einsum("bhni,ino->bhno", x, maps)

    return turned, 0


@pytest.mark.oracle
@pytest.mark.parametrize("position", POSITIONS, ids=str)
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_talking_heads_with_positions(
    create: Create, arrays: Arrays, plain: Any, position: Any, softcap: float | None
) -> None:
    """As the streaming engine has them: ALiBi, cap, T5."""

    def rule(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
        turned, added = placed(torch, plain, position, p)
        q, k = turned(q, 2), turned(k, 0)
        scores = torch.einsum("gh,bhqd,bhkd->bgqk", p["scores.mix"], q, k) / 2
        scores = scores + added if position == "alibi" else scores
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        scores = scores if position == "alibi" else scores + added
        return torch.einsum("gh,bhqk->bgqk", p["weights.mix"], torch.softmax(scores, -1)) @ v

    layer = learned(create("talking-heads", dim=12, heads=3, position=position, softcap=softcap))
    torch_gradients(layer, arrays(), rule)


@pytest.mark.oracle
@pytest.mark.parametrize("position", ["alibi", "t5"])
def test_additive_with_positions(create: Create, arrays: Arrays, plain: Any, position: Any) -> None:
    def rule(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
        left = torch.einsum("hud,bhqd->bhqu", p["query.weight"], q)[..., :, None, :]
        right = torch.einsum("hud,bhkd->bhku", p["key.weight"], k)[..., None, :, :]
        scores = torch.einsum("bhqku,hu->bhqk", torch.tanh(left + right), p["vector"])
        return torch.softmax(scores + placed(torch, plain, position, p)[1], -1) @ v

    torch_gradients(learned(create("additive", dim=12, heads=3, position=position)), arrays(), rule)


@pytest.mark.oracle
@pytest.mark.parametrize("position", POSITIONS, ids=str)
def test_hopfield_with_positions(create: Create, arrays: Arrays, plain: Any, position: Any) -> None:
    """In each step; queries and patterns are turned once."""

    def rule(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
        turned, added = placed(torch, plain, position, p)
        q, k = turned(q, 2), turned(k, 0)
        for _ in range(3):
            q = torch.softmax(0.6 * q @ k.transpose(-1, -2) + added, -1) @ k
        return torch.softmax(0.6 * q @ k.transpose(-1, -2) + added, -1) @ v

    options = {"beta": 0.6, "iterations": 3, "tolerance": 0, "position": position}
    layer = learned(create("hopfield", dim=12, heads=3, **options))
    torch_gradients(layer, arrays(), rule)
    copied = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(copied.attend(*arrays()), layer.attend(*arrays()))


def test_hopfield_retrieves_where_the_query_is(create: Create, arrays: Arrays) -> None:
    query, key, _ = arrays()
    still = create("hopfield", dim=12, heads=3, iterations=0, position="rope")
    np.testing.assert_allclose(still.retrieve(query, key), query, **CLOSE)
    layer = create("hopfield", dim=12, heads=3, iterations=1, position="rope")
    state = layer.retrieve(query, key)
    once = create("scaled-dot-product", dim=12, heads=3, position="rope")
    expected = once.attend(state, key, key)
    two = create("hopfield", dim=12, heads=3, iterations=1, tolerance=0, position="rope")
    np.testing.assert_allclose(two.attend(query, key, key), expected, **CLOSE)


def test_additive_scores_are_no_products_to_turn(create: Create) -> None:
    with pytest.raises(ConfigError, match=r"position: got rope; expected one of 'alibi', 't5'"):
        create("additive", dim=12, heads=3, position="rope")
    with pytest.raises(ConfigError, match="position"):
        create("stick-breaking", dim=12, heads=3, position="alibi")


@pytest.mark.parametrize("name", ["talking-heads", "hopfield"])
def test_dropout_is_that_of_the_engine(create: Create, arrays: Arrays, name: str) -> None:
    """Silent heads and networks without steps are plain attention: the same weights are dropped."""
    options: dict[str, Any] = {"iterations": 0} if name == "hopfield" else {}
    layer = create(name, dim=12, heads=3, dropout=0.3, **options)
    plain = create("scaled-dot-product", dim=12, heads=3, dropout=0.3)
    given = arrays(queries=65, keys=63)
    for seed in (0, 7, (1 << 31) - 1):
        output, pull = layer.attend_vjp(*given, training=True, rng=seed)
        expected, pull_plain = plain.attend_vjp(*given, training=True, rng=seed)
        np.testing.assert_allclose(output, expected, **CLOSE)
        found, wanted = pull(np.cos(output)), pull_plain(np.cos(output))
        for part in ("query", "key", "value"):
            np.testing.assert_allclose(getattr(found, part), getattr(wanted, part), **CLOSE)


@pytest.mark.parametrize("name", ["talking-heads", "additive", "stick-breaking", "hopfield"])
def test_dropout_drops_weights(
    create: Create, arrays: Arrays, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Values that are unit vectors show the weights, of which some are 0 and others larger."""
    query, key, _ = arrays(queries=65, keys=63)
    value = np.broadcast_to(np.eye(63), (2, 3, 63, 63))
    layer = learned(create(name, dim=12, heads=3, dropout=0.3))
    weights = layer.attend(query, key, value)
    dropped = layer.attend(query, key, value, training=True, rng=3)
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], weights[kept] / 0.7, rtol=1e-9)
    assert 0.68 < kept.mean() < 0.72
    monkeypatch.setattr(panels, "_PANEL", 3 * 63 * 4)
    again = layer.attend(query, key, value, training=True, rng=3)
    np.testing.assert_allclose(again, dropped, **CLOSE)
    assert ((layer.attend(query, key, value, training=True, rng=4) != 0) != kept).any()


@pytest.mark.oracle
def test_gradients_of_what_was_dropped(create: Create, arrays: Arrays) -> None:
    query, key, value = arrays()
    options = {"training": True, "rng": 3}
    units = np.broadcast_to(np.eye(7), (2, 3, 7, 7))
    for name, weigh in (("additive", additive), ("stick-breaking", broken)):
        layer = learned(create(name, dim=12, heads=3, dropout=0.4))
        kept = layer.attend(query, key, units, **options) != 0

        def rule(
            torch: Any, q: Any, k: Any, v: Any, p: Any, weigh: Any = weigh, kept: Any = kept
        ) -> Any:
            weights = weigh(torch, q, k, torch.eye(7, dtype=v.dtype), p)
            return (weights * torch.tensor(kept) / 0.6) @ v

        torch_gradients(layer, (query, key, value), rule, **options)


def broken(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
    """Stick-breaking without a mask."""
    share = torch.sigmoid(q @ k.transpose(-1, -2) / 2)
    left = torch.cumprod((1 - share).flip(-1), -1).flip(-1)
    left = torch.cat((left[..., 1:], torch.ones_like(left[..., :1])), -1)
    return (share * left) @ v


# ---- Hopfield ----


def test_hopfield_without_steps_is_attention(create: Create, arrays: Arrays) -> None:
    expected = create("scaled-dot-product", dim=12, heads=3).attend(*arrays())
    output = create("hopfield", dim=12, heads=3, iterations=0).attend(*arrays())
    np.testing.assert_allclose(output, expected, **CLOSE)


def test_hopfield_settles_on_a_fixed_point(create: Create, arrays: Arrays) -> None:
    query, key, _ = arrays()
    layer = create("hopfield", dim=12, heads=3, beta=0.7, iterations=1000, tolerance=1e-13)
    state = layer.retrieve(query, key)
    again = softmax(0.7 * state @ key.swapaxes(-1, -2)) @ key
    np.testing.assert_allclose(again, state, atol=1e-11)


def test_hopfield_retrieves_in_one_step(create: Create) -> None:
    """Theorem 4 of the paper: patterns far apart are retrieved up to a tiny error."""
    rng = np.random.default_rng(0)
    patterns = rng.choice([-1.0, 1.0], (1, 20, 64))
    noisy = patterns + 0.3 * rng.standard_normal(patterns.shape)
    layer = create("hopfield", dim=64, beta=1.0, iterations=1)
    np.testing.assert_allclose(layer.retrieve(noisy, patterns), patterns, atol=1e-6)


def test_hopfield_energy_falls(create: Create, arrays: Arrays) -> None:
    query, key, _ = arrays()

    def energy(state: Array) -> Array:
        products = 0.9 * state @ key.swapaxes(-1, -2)
        lse = scipy.special.logsumexp(products, axis=-1) / 0.9
        return np.asarray(0.5 * (state**2).sum(-1) - lse)

    energies = [
        energy(create("hopfield", dim=12, heads=3, beta=0.9, iterations=n).retrieve(query, key))
        for n in range(6)
    ]
    for before, after in itertools.pairwise(energies):
        assert (after <= before + 1e-12).all()


@pytest.mark.oracle
def test_hopfield_gradients(create: Create, arrays: Arrays) -> None:
    def rule(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
        for _ in range(4):
            q = torch.softmax(0.6 * q @ k.transpose(-1, -2), -1) @ k
        return torch.softmax(0.6 * q @ k.transpose(-1, -2), -1) @ v

    layer = create("hopfield", dim=12, heads=3, beta=0.6, iterations=4, tolerance=0)
    torch_gradients(layer, arrays(), rule)


# ---- stick-breaking ----


@pytest.mark.oracle
@pytest.mark.parametrize("diagonal", [True, False])
def test_stick_breaking(create: Create, arrays: Arrays, diagonal: bool) -> None:
    """The paper's product, key by key."""

    def rule(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
        share = torch.sigmoid(q @ k.transpose(-1, -2) / 2)
        visible = torch.ones(7, 7, dtype=torch.bool).tril(0 if diagonal else -1)
        share = torch.where(visible, share, 0)
        left = torch.cumprod((1 - share).flip(-1), -1).flip(-1)
        left = torch.cat((left[..., 1:], torch.ones_like(left[..., :1])), -1)
        return (share * left) @ v

    layer = create("stick-breaking", dim=12, heads=3, causal=True, diagonal=diagonal)
    torch_gradients(layer, arrays(queries=7), rule)


def test_stick_breaking_long_and_certain(create: Create) -> None:
    """Thousands of keys, scores of ±50: weights still sum to 1 − Π(1 − σ)."""
    rng = np.random.default_rng(0)
    query, key = np.ones((1, 1)), rng.uniform(-50, 3, (5000, 1))
    layer = create("stick-breaking", dim=1)
    output = layer(query, key, np.ones((5000, 1)))
    left = np.exp(-np.logaddexp(0, key).sum())
    np.testing.assert_allclose(output, 1 - left, rtol=1e-12)
