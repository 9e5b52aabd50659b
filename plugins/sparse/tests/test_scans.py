"""Recurrences: token by token and in chunks, their states, and what they remember."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.errors import (
    ArgumentError,
    CapabilityError,
    ConfigError,
    FileFormatError,
    ShapeError,
)
from polyattn_core.positions import rotate
from polyattn_sparse.scans.kernels import engine
from polyattn_sparse.scans.state import RecurrentState

Array = npt.NDArray[Any]
Create = Callable[..., Any]
NAMES = ("retention", "gated-linear", "delta-rule", "gated-delta", "mamba2")


def inputs(
    tokens: int, heads: int = 2, key_heads: int = 2, size: int = 5, width: int = 3, seed: int = 0
) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((2, heads, tokens, size)),
        rng.standard_normal((2, key_heads, tokens, size)),
        rng.standard_normal((2, key_heads, tokens, width)),
    )


def gates(name: str, tokens: int, heads: int = 2, size: int = 5, seed: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    log_decay = -rng.exponential(0.3, (2, heads, tokens, size))
    beta = rng.uniform(0, 1, (2, heads, tokens))
    return {
        "retention": {},
        "gated-linear": {"log_decay": log_decay},
        "delta-rule": {"beta": beta},
        "gated-delta": {"log_decay": log_decay[..., :1], "beta": beta},
        "mamba2": {"step": rng.normal(1, 1, (2, heads, tokens))},
    }[name]


def unit(x: Array) -> Array:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def naive(name: str, mechanism: Any, q: Array, k: Array, v: Array, side: Any, start: Any) -> Any:
    """The recurrence as its paper writes it, one head and token at a time."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    side = {
        n: x if x.shape[1] == q.shape[1] else np.repeat(x, group, axis=1) for n, x in side.items()
    }
    parameters = {
        n: np.repeat(x.astype(np.float64), group, axis=0) for n, x in mechanism.parameters.items()
    }
    size = q.shape[-1]
    if name in ("delta-rule", "gated-delta"):
        q, k = unit(q), unit(k)
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    states = np.zeros((*q.shape[:2], size, v.shape[-1]))
    for b, h in np.ndindex(q.shape[:2]):
        state = np.zeros(states.shape[2:]) if start is None else start[b, h // group].copy()
        for t in range(q.shape[2]):
            key, value, query = k[b, h, t], v[b, h, t], q[b, h, t]
            if name == "retention":
                state = (1 - 2.0 ** (-5 - h // group)) * state + np.outer(key, value)
                query = query / np.sqrt(size)
            elif name == "gated-linear":
                state = np.diag(np.exp(side["log_decay"][b, h, t])) @ state + np.outer(key, value)
            elif name == "mamba2":
                delta = np.log1p(np.exp(side["step"][b, h, t] + parameters["bias"][h]))
                decay = np.exp(-delta * np.exp(parameters["log_rate"][h]))
                state = decay * state + delta * np.outer(key, value)
            else:
                alpha = np.exp(side["log_decay"][b, h, t, 0]) if "log_decay" in side else 1.0
                beta = side["beta"][b, h, t]
                # As in the papers: a product from the side of the keys.
                keep = alpha * (np.eye(size) - beta * np.outer(key, key))
                state = keep @ state + beta * np.outer(key, value)
            out[b, h, t] = state.T @ query
            if name == "mamba2":
                out[b, h, t] += parameters["skip"][h] * value
        states[b, h] = state
    return out, states


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("name", NAMES)
def test_is_the_recurrence_of_the_paper(create: Create, name: str, tokens: int) -> None:
    mechanism = create(name, dim=10, heads=2)
    q, k, v = inputs(tokens)
    side = gates(name, tokens)
    start = np.random.default_rng(3).standard_normal((2, 2, 5, 3))
    expected, states = naive(name, mechanism, q, k, v, side, start)
    found, state = mechanism.scan(q, k, v, state=start, **side)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(state.memory, states, rtol=1e-9, atol=1e-9)
    assert state.tokens == tokens
    # In chunks, as gradients are computed from.
    chunked, _ = mechanism.attend_vjp(q, k, v, state=start, **side)
    np.testing.assert_allclose(chunked, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_parts_with_a_state_are_the_whole(create: Create, name: str) -> None:
    mechanism = create(name, dim=10, heads=2)
    q, k, v = inputs(90)
    side = gates(name, 90)
    whole = mechanism.attend(q, k, v, **side)
    state, parts, first = None, [], 0
    for last in (40, 41, 90):
        chosen = slice(first, last)
        own = {n: x[:, :, chosen] for n, x in side.items()}
        out, state = mechanism.scan(
            q[:, :, chosen], k[:, :, chosen], v[:, :, chosen], state=state, **own
        )
        parts.append(out)
        first = last
    np.testing.assert_allclose(np.concatenate(parts, axis=2), whole, rtol=1e-9, atol=1e-9)
    stepped = mechanism.start(2, value_size=3, dtype=np.float64)
    for t in range(90):
        own = {n: x[:, :, t] for n, x in side.items()}
        out = mechanism.step(q[:, :, t], k[:, :, t], v[:, :, t], stepped, **own)
        np.testing.assert_allclose(out, whole[:, :, t], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(stepped.memory, state.memory, rtol=1e-9, atol=1e-9)
    assert stepped.tokens == 90
    stepped.reset()
    assert stepped.tokens == 0
    assert not stepped.memory.any()


def test_few_heads_go_in_chunks(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one vector of values and two threads there is nothing else to share out."""
    monkeypatch.setattr(engine.threads, "limit", lambda: 2)
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 1, 60_000, 6))
    gated = create("gated-delta", dim=6)
    made: list[Any] = []
    original = engine.Scan.__init__

    def counted(self: Any, problem: Any) -> None:
        made.append(problem)
        original(self, problem)

    monkeypatch.setattr(engine.Scan, "__init__", counted)
    found = gated.attend(q, k, v)
    assert made
    problem, _ = gated._problem(gated._prepare(q, k, v, None, None, False, None, {})[0])
    expected, _ = engine.step_by_step(problem)
    np.testing.assert_allclose(found, expected[:, :, 0], rtol=1e-9, atol=1e-9)
    # What is not finite must not reach tokens before it, as it would within a chunk.
    v[0, 0, 50_001] = np.nan
    with_nan = gated.attend(q, k, v)
    np.testing.assert_allclose(with_nan[:, :, :50_001], found[:, :, :50_001], rtol=1e-9, atol=1e-9)
    assert np.isnan(with_nan[:, :, 50_001:]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [3, 70])
def test_gradients_against_torch(create: Create, name: str, tokens: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
    mechanism = create(name, dim=10, heads=2, kv_heads=1)
    q, k, v = inputs(tokens, key_heads=1)
    side = gates(name, tokens, heads=1)
    start = np.random.default_rng(3).standard_normal((2, 1, 5, 3))
    out, pullback = mechanism.attend_vjp(q, k, v, state=start, **side)
    incoming = np.random.default_rng(4).standard_normal(out.shape)
    found = pullback(incoming)

    names = {"query": q, "key": k, "value": v, "state": start, **side}
    names |= {n: np.asarray(x, np.float64) for n, x in mechanism.parameters.items()}
    t = {n: torch.tensor(x, dtype=torch.float64, requires_grad=True) for n, x in names.items()}
    query, key, value = t["query"], t["key"].expand(-1, 2, -1, -1), t["value"].expand(-1, 2, -1, -1)
    if name in ("delta-rule", "gated-delta"):
        query = query / query.norm(dim=-1, keepdim=True)
        key = key / key.norm(dim=-1, keepdim=True)
    if name == "retention":
        query = query * 5**-0.5
    state, results = t["state"].expand(-1, 2, -1, -1), []
    for i in range(tokens):
        new = value[:, :, i]
        decay = torch.ones(2, 1, 1, dtype=torch.float64)
        if name == "retention":
            decay = torch.full((2, 1, 1), 1 - 2.0**-5, dtype=torch.float64)
        elif name == "mamba2":
            delta = torch.nn.functional.softplus(t["step"][:, :, i] + t["bias"])[..., None]
            decay = torch.exp(-delta * torch.exp(t["log_rate"])[:, None])
            new = delta * new
        elif "log_decay" in t:
            decay = torch.exp(t["log_decay"][:, :, i])
        state = decay[..., None] * state
        if "beta" in t:
            held = torch.einsum("bhdv,bhd->bhv", state, key[:, :, i])
            new = t["beta"][:, :, i, None] * (new - held)
        state = state + torch.einsum("bhd,bhv->bhdv", key[:, :, i], new)
        read = torch.einsum("bhdv,bhd->bhv", state, query[:, :, i])
        if name == "mamba2":
            read = read + t["skip"][:, None] * value[:, :, i]
        results.append(read)
    (torch.stack(results, dim=2) * torch.tensor(incoming)).sum().backward()
    ours = {"query": found.query, "key": found.key, "value": found.value}
    ours |= found.side | {
        n: x for n, x in found.parameters.items() if n in t and t[n].grad is not None
    }
    assert {"query", "key", "value", "state", *side} <= set(ours)
    for each, gradient in ours.items():
        expected = t[each].grad.numpy()
        tolerance = 1e-9 if gradient.dtype == np.float64 else 1e-5
        np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=tolerance, err_msg=each)


def test_gradient_by_gates_of_query_heads_and_broadcast_gates(create: Create) -> None:
    q, k, v = inputs(9, heads=4, key_heads=2)
    gated = create("gated-delta", dim=20, heads=4, kv_heads=2)
    rng = np.random.default_rng(5)
    for shape in ((4, 9, 1), (2, 9, 5), (1, 9, 1), (2, 4, 9, 5)):
        logs = -rng.exponential(0.3, shape)
        beta = rng.uniform(0, 1, shape[:-1])
        full = np.broadcast_to(logs, (2, *logs.shape[-3:]))
        repeated = np.repeat(full, 4 // full.shape[1], axis=1)
        strong = np.repeat(np.broadcast_to(beta, (2, *beta.shape[-2:])), 4 // full.shape[1], axis=1)
        out, pullback = gated.attend_vjp(q, k, v, log_decay=logs, beta=beta)
        expected = naive(
            "gated-delta", gated, q, k, v, {"log_decay": repeated, "beta": strong}, None
        )
        if logs.shape[-1] == 1:
            np.testing.assert_allclose(out, expected[0], rtol=1e-9, atol=1e-9)
        incoming = rng.standard_normal(out.shape)
        side, both = pullback(incoming).side, {"log_decay": logs, "beta": beta}
        for name, array in both.items():
            along = rng.standard_normal(array.shape)
            step = 1e-6

            moved = [
                gated.attend(q, k, v, **{**both, name: array + sign * step * along})
                for sign in (1, -1)
            ]
            slope = ((moved[0] - moved[1]) * incoming).sum() / (2 * step)
            assert side[name].shape == array.shape
            np.testing.assert_allclose((side[name] * along).sum(), slope, rtol=1e-6)


def test_gates_that_forget_everything(create: Create) -> None:
    """A decay of −∞ starts anew, in steps and in chunks, with gradients that are finite."""
    q, k, v = inputs(100)
    logs = np.zeros((2, 100, 5))
    logs[:, 37] = -np.inf
    gated = create("gated-linear", dim=10, heads=2)
    alone = gated.attend(q[:, :, 37:], k[:, :, 37:], v[:, :, 37:], log_decay=np.zeros((2, 63, 5)))
    out, pullback = gated.attend_vjp(q, k, v, log_decay=logs)
    for found in (out, gated.attend(q, k, v, log_decay=logs)):
        np.testing.assert_allclose(found[:, :, 37:], alone, rtol=1e-9, atol=1e-9)
    late = np.zeros_like(out)
    late[:, :, 37:] = 1
    gradients = pullback(late)
    assert not gradients.key[:, :, :37].any()
    assert all(np.isfinite(x).all() for x in (gradients.query, gradients.key, gradients.value))


def test_strong_decays_keep_their_precision(create: Create) -> None:
    """A quotient of cumulative products would be 0/0 here."""
    q, k, v = (x.astype(np.float32) for x in inputs(300))
    logs = -np.random.default_rng(0).exponential(30, (2, 300, 5)).astype(np.float32)
    logs[:, ::3] = -0.1
    gated = create("gated-linear", dim=10, heads=2)
    wide = [x.astype(np.float64) for x in (q, k, v)]
    expected = gated.attend(*wide, log_decay=logs.astype(np.float64))
    np.testing.assert_allclose(gated.attend(q, k, v, log_decay=logs), expected, atol=2e-5)
    np.testing.assert_allclose(gated.attend_vjp(q, k, v, log_decay=logs)[0], expected, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [16, 256])
def test_length_of_chunks(create: Create, name: str, chunk: int) -> None:
    q, k, v = inputs(150)
    side = gates(name, 150)
    one, other = create(name, dim=10, heads=2), create(name, dim=10, heads=2, chunk=chunk)
    out, pullback = one.attend_vjp(q, k, v, **side)
    out2, pullback2 = other.attend_vjp(q, k, v, **side)
    np.testing.assert_allclose(out, out2, rtol=1e-9, atol=1e-9)
    found, found2 = pullback(out), pullback2(out)
    np.testing.assert_allclose(found.key, found2.key, rtol=1e-8, atol=1e-8)
    problem, _ = other._problem(other._prepare(q, k, v, None, None, False, None, side)[0])
    assert engine.Scan(problem).length == min(chunk, 256)


def test_padding_leaves_the_state(create: Create) -> None:
    from polyattn_core.masks import Padding

    q, k, v = inputs(80)
    for name in NAMES:
        mechanism = create(name, dim=10, heads=2)
        side = gates(name, 80)
        _, padded = mechanism.scan(q, k, v, mask=Padding(33), **side)
        short = {n: x[:, :, :33] for n, x in side.items()}
        _, alone = mechanism.scan(q[:, :, :33], k[:, :, :33], v[:, :, :33], **short)
        np.testing.assert_allclose(padded.memory, alone.memory, rtol=1e-12, atol=1e-12)


# ---- options ----


def test_retention_options(create: Create) -> None:
    q, k, v = inputs(20)
    own = create("retention", dim=10, heads=2, decays=(0.5, 1.0), scale=2.0)
    i, j = np.arange(20)[:, None], np.arange(20)
    weights = np.tril(np.array([0.5, 1.0])[:, None, None] ** np.maximum(i - j, 0))
    expected = (2 * q @ k.swapaxes(-1, -2) * weights) @ v
    np.testing.assert_allclose(own.attend(q, k, v), expected, rtol=1e-9, atol=1e-9)
    for decays in ((0.5,), (0.5, 0.0), (0.5, 1.5)):
        with pytest.raises(ConfigError, match="decays"):
            create("retention", dim=10, heads=2, decays=decays)
    # The published form: QKᵀ with both turned, times the decays.
    q, k, v = inputs(20, size=6)
    turning = create("retention", dim=12, heads=2, position="rope")
    places, rope = np.arange(20), turning.config.position
    gamma = (1 - 2.0 ** (-5 - np.arange(2)))[:, None, None]
    weights = np.tril(gamma ** np.maximum(i - j, 0))
    products = rotate(q, places, rope) @ rotate(k, places, rope).swapaxes(-1, -2) / np.sqrt(6)
    whole = turning.attend(q, k, v)
    np.testing.assert_allclose(whole, (products * weights) @ v, rtol=1e-9, atol=1e-9)
    # Positions count on from the state.
    _, state = turning.scan(q[:, :, :7], k[:, :, :7], v[:, :, :7])
    rest, _ = turning.scan(q[:, :, 7:], k[:, :, 7:], v[:, :, 7:], state=state)
    np.testing.assert_allclose(rest, whole[:, :, 7:], rtol=1e-9, atol=1e-9)


def test_scale_normalise_and_skip(create: Create) -> None:
    q, k, v = inputs(20)
    for name in ("gated-linear", "delta-rule", "gated-delta"):
        one, twice = (create(name, dim=10, heads=2, scale=s) for s in (1.0, 2.0))
        np.testing.assert_allclose(2 * one.attend(q, k, v), twice.attend(q, k, v))
    raw = create("delta-rule", dim=10, heads=2, normalise=False)
    normalised = create("delta-rule", dim=10, heads=2)
    np.testing.assert_allclose(normalised.attend(q, k, v), raw.attend(unit(q), unit(k), v))
    assert not np.allclose(normalised.attend(q, k, v), raw.attend(q, k, v))
    with_skip, without = (create("mamba2", dim=10, heads=2, skip=s) for s in (True, False))
    assert "skip" not in without.parameters
    np.testing.assert_allclose(with_skip.attend(q, k, v) - without.attend(q, k, v), v)


def test_errors(create: Create) -> None:
    q, k, v = inputs(6)
    gated = create("gated-delta", dim=10, heads=2)
    with pytest.raises(ShapeError, match=r"log_decay.*2 or 2 heads, 6 tokens, 1 or 5"):
        gated.attend(q, k, v, log_decay=np.zeros((2, 6)))
    with pytest.raises(ShapeError, match="beta"):
        gated.attend(q, k, v, beta=np.zeros((3, 6)))
    with pytest.raises(ShapeError, match="state"):
        gated.attend(q, k, v, state=np.zeros((2, 2, 5, 4)))
    with pytest.raises(CapabilityError, match="keys than of queries"):
        gated.attend(q[:, :, :3], k, v)
    with pytest.raises(ArgumentError, match="state"):
        gated.step(q[:, :, 0], k[:, :, 0], v[:, :, 0], np.zeros((2, 2, 5, 3)))
    with pytest.raises(ConfigError, match="chunk"):
        create("retention", dim=4, chunk=48)


# ---- states ----


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_states_are_saved(create: Create, suffix: str, tmp_path: Any) -> None:
    q, k, v = inputs(10)
    delta = create("delta-rule", dim=10, heads=2)
    _, state = delta.scan(q, k, v)
    copy = state.copy()
    state.save(tmp_path / f"state{suffix}")
    loaded = RecurrentState.load(tmp_path / f"state{suffix}")
    state.reset()
    assert loaded.tokens == copy.tokens == 10
    np.testing.assert_array_equal(loaded.memory, copy.memory)
    again, _ = delta.scan(q, k, v, state=loaded)
    expected, _ = delta.scan(q, k, v, state=copy)
    np.testing.assert_array_equal(again, expected)
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(b"nothing of the kind")
    with pytest.raises(FileFormatError):
        RecurrentState.load(broken)
    np.savez(tmp_path / "other.npz", memory=np.zeros(3))
    with pytest.raises(FileFormatError, match="RecurrentState"):
        RecurrentState.load(tmp_path / "other.npz")
    with pytest.raises(ArgumentError, match="path"):
        state.save(tmp_path / "state.pickle")


# ---- what they are for ----


def test_associative_recall(create: Create) -> None:
    """Keys are written again and again with new values, in any order; then all are asked for.

    The delta rule replaces what it wrote, and recalls all. A sum that decays confuses old and new,
    or forgets what was written long ago, whatever its pace.
    """
    rng = np.random.default_rng(0)
    keys = np.linalg.qr(rng.standard_normal((32, 32)))[0][:24]
    places = np.concatenate((rng.permutation(24), rng.integers(0, 24, 1000)))
    answers = rng.integers(0, 8, len(places))
    key = np.concatenate((keys[places], keys))[None]
    value = np.concatenate((np.eye(8)[answers], np.zeros((24, 8))))[None]
    beta = np.concatenate((np.ones(len(places)), np.zeros(24)))[None]
    last = dict(zip(places.tolist(), answers.tolist(), strict=True))
    wanted = np.array([last[place] for place in range(24)])

    def recall(name: str, side: Any = None, **options: Any) -> float:
        out = create(name, dim=32, **options).attend(key, key, value, **side or {})[0, -24:]
        return float((abs(out - np.eye(8)[wanted]).max(axis=1) < 0.5).mean())

    assert recall("delta-rule", {"beta": beta}) == 1
    assert recall("gated-delta", {"beta": beta, "log_decay": np.zeros((1, len(beta[0]), 1))}) == 1
    for decay in (0.9, 0.97, 0.99, 1.0):
        assert recall("retention", decays=(decay,), scale=1.0) < 0.7
