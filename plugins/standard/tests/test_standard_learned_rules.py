"""Additive, differential, talking heads, Hopfield, stick-breaking, latent: by their definitions."""

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

from polyattn_core.errors import ArgumentError, ConfigError, ShapeError
from polyattn_core.masks import Causal, Padding
from polyattn_standard import panels

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def learned(layer: Any, seed: int = 3) -> Any:
    rng = np.random.default_rng(seed)
    layer.parameters.update({n: rng.standard_normal(a.shape) for n, a in layer.parameters.items()})
    return layer


def softmax(scores: Array) -> Array:
    return np.asarray(scipy.special.softmax(scores, axis=-1))


def torch_gradients(
    layer: Any, arrays: tuple[Array, ...], rule: Callable[..., Any], **options: Any
) -> None:
    """Output and all gradients against torch's autograd of a rule written in torch."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    inputs = [torch.tensor(array, requires_grad=True) for array in arrays]
    weights = {
        n: torch.tensor(np.array(a, np.float64), requires_grad=True)
        for n, a in layer.parameters.items()
    }
    expected = rule(torch, *inputs, weights)
    output, pullback = layer.attend_vjp(*arrays, **options)
    np.testing.assert_allclose(output, expected.detach().numpy(), rtol=1e-9, atol=1e-11)
    incoming = np.random.default_rng(1).standard_normal(output.shape)
    expected.backward(torch.from_numpy(incoming))
    found = pullback(incoming)
    for name, tensor in zip(("query", "key", "value"), inputs, strict=True):
        np.testing.assert_allclose(getattr(found, name), tensor.grad, rtol=1e-8, atol=1e-10)
    for name, tensor in weights.items():
        np.testing.assert_allclose(found.parameters[name], tensor.grad, rtol=1e-8, atol=1e-10)


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


# ---- latent ----

OPTIONS = {"dim": 12, "heads": 3, "latent": 5, "rope_size": 4, "query_latent": 6}


def turn(torch: Any, x: Any, first: int) -> Any:
    place = (torch.arange(x.shape[-2], dtype=x.dtype) + first)[:, None]
    angle = place * torch.tensor([1.0, 0.01], dtype=x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), dim=-1)


@pytest.mark.oracle
@pytest.mark.parametrize("absorbed", [True, False])
def test_latent(create: Create, arrays: Arrays, absorbed: bool) -> None:
    """Equations 37–47 of the paper."""

    def rule(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
        def flat(x: Any) -> Any:
            return x.transpose(1, 2).flatten(2)

        def heads(x: Any) -> Any:
            return x.unflatten(-1, (3, -1)).transpose(1, 2)

        latent = flat(k) @ p["compress.key"].T + flat(v) @ p["compress.value"].T
        read = flat(q) @ p["query.down"].T
        queries = torch.cat(
            (heads(read @ p["query.weight"].T), turn(torch, heads(read @ p["query.rotary"].T), 2)),
            -1,
        )
        rotary = turn(torch, flat(k) @ p["key.rotary"].T, 0)[:, None].expand(-1, 3, -1, -1)
        keys = torch.cat((heads(latent @ p["key.up"].T), rotary), -1)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(8)
        output = torch.softmax(scores, -1) @ heads(latent @ p["value.up"].T)
        return heads(flat(output) @ p["output.weight"].T)

    query, key, value = arrays()
    layer = learned(create("latent", **OPTIONS, absorbed=absorbed))
    torch_gradients(layer, (query, key, value[..., :4]), rule)
    np.testing.assert_allclose(
        layer.attend(query, key, value[..., :4]),
        layer.attend_vjp(query, key, value[..., :4])[0],
        rtol=1e-9,
    )


@pytest.mark.parametrize("rope_size", [0, 4])
def test_latent_decodes_step_by_step(create: Create, rope_size: int) -> None:
    """Absorbed, token by token from a growing cache = expanded, causal, all at once."""
    x = np.random.default_rng(0).standard_normal((2, 9, 12))
    options = {**OPTIONS, "rope_size": rope_size, "causal": True}
    expected = learned(create("latent", **options, absorbed=False))(x)
    layer = learned(create("latent", **options))
    cache = layer.compress(x[:, :4])
    np.testing.assert_allclose(layer.decode(x[:, :4], cache), expected[:, :4], **CLOSE)
    for step in range(4, 9):
        token = x[:, step : step + 1]
        cache = cache.extended(layer.compress(token, start=step))
        np.testing.assert_allclose(
            layer.decode(token, cache), expected[:, step : step + 1], **CLOSE
        )
    assert cache.tokens == 9
    assert cache.latent.nbytes + cache.rotary.nbytes == 2 * 9 * (5 + rope_size) * 8


SIZES = {
    "head_size": 5, "value_size": 3, "norm": True, "norm_epsilon": 0.1,
    "position": {"kind": "rope", "interleaved": True},
}  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("absorbed", [True, False])
@pytest.mark.parametrize("query_latent", [None, 6])
@pytest.mark.parametrize("tied", [True, False])
def test_latent_with_norms_and_sizes(
    create: Create, arrays: Arrays, absorbed: bool, query_latent: int | None, tied: bool
) -> None:
    """As in the code of DeepSeek's models, with keys and values that may be others."""

    def rule(torch: Any, q: Any, k: Any, v: Any, p: Any) -> Any:
        def flat(x: Any) -> Any:
            return x.transpose(1, 2).flatten(2)

        def heads(x: Any) -> Any:
            return x.unflatten(-1, (3, -1)).transpose(1, 2)

        def normed(x: Any, name: str) -> Any:
            return torch.nn.functional.rms_norm(x, x.shape[-1:], p[name], eps=0.1)

        def neighbours(x: Any, first: int) -> Any:
            paired = torch.cat((x[..., 0::2], x[..., 1::2]), -1)
            return turn(torch, paired, first)

        latent = flat(k) @ p["compress.key"].T
        if not tied:
            latent = latent + flat(v) @ p["compress.value"].T
        latent, read = normed(latent, "latent_norm.weight"), flat(q)
        if query_latent:
            read = normed(read @ p["query.down"].T, "query_norm.weight")
        own = neighbours(heads(read @ p["query.rotary"].T), 2)
        queries = torch.cat((heads(read @ p["query.weight"].T), own), -1)
        rotary = neighbours(flat(k) @ p["key.rotary"].T, 0)[:, None].expand(-1, 3, -1, -1)
        keys = torch.cat((heads(latent @ p["key.up"].T), rotary), -1)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(5 + 4)
        output = torch.softmax(scores, -1) @ heads(latent @ p["value.up"].T)
        return heads(flat(output) @ p["output.weight"].T) + 0 * v.sum()

    query, key, value = arrays()
    value = key if tied else value[..., :4]
    options = {**OPTIONS, **SIZES, "query_latent": query_latent, "tied": tied}
    layer = learned(create("latent", **options, absorbed=absorbed))
    assert layer.parameters["query.weight"].shape == (15, query_latent or 12)
    assert layer.parameters["output.weight"].shape == (12, 9)
    torch_gradients(layer, (query, key, value), rule)
    expected = layer.attend_vjp(query, key, value)[0]
    np.testing.assert_allclose(layer.attend(query, key, value), expected, rtol=1e-9)


@pytest.mark.parametrize("tied", [True, False])
def test_latent_decodes_with_norms_and_sizes(create: Create, tied: bool) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 12))
    options = {**OPTIONS, **SIZES, "causal": True, "tied": tied}
    expected = learned(create("latent", **options, absorbed=False))(x)
    layer = learned(create("latent", **options))
    cache = layer.compress(x[:, :1])
    for step in range(1, 9):
        token = x[:, step : step + 1]
        cache = cache.extended(layer.compress(token, start=step))
        found = layer.decode(token, cache)
        np.testing.assert_allclose(found, expected[:, step : step + 1], **CLOSE)
    assert cache.latent.shape == (2, 9, 5)


def test_latent_drops_the_same_weights_in_both_forms(create: Create) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 12))
    options = {**OPTIONS, **SIZES, "dropout": 0.5}
    one = learned(create("latent", **options, absorbed=True))
    other = learned(create("latent", **options, absorbed=False))
    dropped = one(x, training=True, rng=5)
    np.testing.assert_allclose(dropped, other(x, training=True, rng=5), **CLOSE)
    np.testing.assert_allclose(dropped, one.vjp(x, training=True, rng=5)[0], **CLOSE)
    assert not np.allclose(dropped, one(x, training=True, rng=6))
    np.testing.assert_array_equal(one(x), learned(create("latent", **OPTIONS, **SIZES))(x))


def test_latent_of_tied_tokens_takes_no_others(create: Create) -> None:
    x, other = np.random.default_rng(0).standard_normal((2, 9, 12))
    layer = create("latent", **OPTIONS, tied=True)
    hidden = x.copy()
    hidden[-1] = np.nan
    seen = np.arange(9) < 8
    found = layer(x, hidden, hidden.copy(), mask=np.broadcast_to(seen, (9, 9)))
    np.testing.assert_array_equal(found, layer(x, x, mask=np.broadcast_to(seen, (9, 9))))
    for call in (lambda: layer(x, x, other), lambda: layer.compress(x, other)):
        with pytest.raises(ArgumentError, match=r"value: got other tokens than the key; .*tied"):
            call()


def test_latent_rotates_its_own_size(create: Create) -> None:
    position = {"kind": "rope", "size": 4}
    with pytest.raises(ConfigError, match=r"position: .*its size is the option rope_size"):
        create("latent", **OPTIONS, position=position)
    with pytest.raises(ConfigError, match=r"position"):
        create("latent", **OPTIONS, position="alibi")
    np.testing.assert_array_equal(
        create("latent", **OPTIONS, position="rope")(np.eye(12)),
        create("latent", **OPTIONS)(np.eye(12)),
    )


def test_latent_says_what_does_not_fit(create: Create) -> None:
    layer = create("latent", **OPTIONS)
    with pytest.raises(ShapeError, match="tokens, dim=12"):
        layer.compress(np.ones((4, 5)))
    with pytest.raises(ShapeError, match="cache"):
        layer.decode(np.ones((2, 1, 12)), layer.compress(np.ones((4, 12))))
