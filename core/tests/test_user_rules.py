"""Rules passed as `score=`: what they compute, what is derived, what is refused and where."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn_core.config import build_config
from polyattn_core.errors import ConfigError, KernelError
from polyattn_core.masks import Causal, MaskShape, Predicate
from polyattn_core.simd import mathematics
from polyattn_core.simd.rule_passes import pass_source
from polyattn_core.simd.rules import score_rule, squared_norm
from polyattn_core.streaming import ScaledConfig, StreamingMechanism

Build = Callable[..., Any]
HEADS, TOKENS = 3, 70
I, J = np.ogrid[:TOKENS, :TOKENS]


def arrays(dtype: Any = np.float64) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, HEADS, TOKENS, 8)).astype(dtype) for _ in range(4)]


def made(build: Build, rule: Any, **parameters: Any) -> Any:
    return build(
        StreamingMechanism, ScaledConfig, dim=8 * HEADS, heads=HEADS, score=rule,
        score_params=parameters,
    )  # fmt: skip


def average(scores: Any, value: Any) -> Any:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


def helper(x, y):  # type: ignore[no-untyped-def]
    if x > y:
        return x - y
    return 0.5 * (y - x)


@score_rule
def branches(score, i, j, low, high):  # type: ignore[no-untyped-def]
    """Everything that is read: helpers, branches, loops over fixed ranges, functions."""
    total = 0.0
    for power in range(1, 4):
        total += score**power / 6 if power == 2 else 0.1 * score
    if score < low:
        total = low + mathematics.sigmoid(total)
    elif score > high and i != j:
        return helper(total, high) + np.log1p(abs(score))
    near, far = min(total, high), max(total, low)
    return near * 0.75 + far / 4 + np.where(i - j > 10, math.sin(score), np.square(score) / 8)


def branches_in_numpy(s: Any, low: float, high: float) -> Any:
    total = 0.2 * s + s**2 / 6
    returned = np.where(total > high, total - high, 0.5 * (high - total)) + np.log1p(abs(s))
    total = np.where(s < low, low + 1 / (1 + np.exp(-total)), total)
    rest = np.minimum(total, high) * 0.75 + np.maximum(total, low) / 4
    rest = rest + np.where(I - J > 10, np.sin(s), s**2 / 8)
    return np.where((s >= low) & (s > high) & (I != J), returned, rest)


@score_rule
def relative(score, h, i, j, table, offset):  # type: ignore[no-untyped-def]
    return score + table[h, i - j + offset]


@score_rule
def guarded(score, i, j, table):  # type: ignore[no-untyped-def]
    distance = i - j
    return score + table[distance] if 0 <= distance < len(table) else score


@score_rule
def tables(score, h, i, j, heads, queries, keys):  # type: ignore[no-untyped-def]
    """Elements that many pairs share: each head, each query, each key has its own."""
    return heads[h] * score * queries[h, i] / (1 + keys[j] ** 2) - (queries[0, i] - keys[j])


@score_rule
def documents(score, b, i, j, ids):  # type: ignore[no-untyped-def]
    return score if ids[b, i] == ids[b, j] else -math.inf


TABLE = np.random.default_rng(1).standard_normal((HEADS, 2 * TOKENS - 1))
IDS = np.sort(np.random.default_rng(2).integers(0, 3, (2, TOKENS)))


def looked_up(s: Any, table: Any) -> Any:
    distance = np.clip(I - J, 0, len(table) - 1)
    return np.where((I >= J) & (len(table) > I - J), s + table[distance], s)


CASES: dict[str, tuple[Any, dict[str, Any], Callable[..., Any]]] = {
    "relative": (
        relative, {"table": TABLE, "offset": TOKENS - 1},
        lambda s, table: s + table[:, I - J + TOKENS - 1],
    ),
    "guarded": (guarded, {"table": TABLE[0, :5]}, looked_up),
    "tables": (
        tables, {"heads": TABLE[:, 0], "queries": TABLE[:, :TOKENS], "keys": TABLE[0, -TOKENS:]},
        lambda s, heads, queries, keys: (
            heads[:, None, None] * s * queries[:, :, None] / (1 + keys**2)
            - (queries[0, :, None] - keys)
        ),
    ),
    "documents": (
        documents, {"ids": IDS},
        lambda s: np.where(IDS[:, None, :, None] == IDS[:, None, None], s, -np.inf),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_closed_forms(build: Build, name: str, dtype: Any) -> None:
    rule, parameters, closed = CASES[name]
    mechanism = made(build, rule, **parameters)
    query, key, value, _ = arrays(dtype)
    scores = query.astype(float) @ key.astype(float).swapaxes(-1, -2) / np.sqrt(8)
    learned = {n: v for n, v in parameters.items() if np.asarray(v).dtype.kind == "f"}
    expected = average(closed(scores, **learned), value.astype(float))
    tolerance = 40 * np.finfo(dtype).eps
    np.testing.assert_allclose(mechanism.attend(query, key, value), expected, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_gradients(build: Build, name: str) -> None:
    """By queries, keys and the elements of learned arrays, against differences in NumPy."""
    rule, parameters, closed = CASES[name]
    mechanism = made(build, rule, **parameters)
    query, key, value, incoming = arrays()
    learned = {n: np.asarray(v) for n, v in parameters.items() if np.asarray(v).dtype.kind == "f"}
    assert dict(mechanism.parameters) == {
        f"score.{n}": pytest.approx(v) for n, v in learned.items()
    }
    found = mechanism.attend_vjp(query, key, value)[1](incoming)
    rng = np.random.default_rng(3)
    towards = {
        n: rng.standard_normal(x.shape) for n, x in {"q": query, "k": key, **learned}.items()
    }

    def loss(step: float) -> float:
        q, k = query + step * towards["q"], key + step * towards["k"]
        moved = {n: v + step * towards[n] for n, v in learned.items()}
        scores = closed(q @ k.swapaxes(-1, -2) / np.sqrt(8), **moved)
        return float((average(scores, value) * incoming).sum())

    slope = np.vdot(found.query, towards["q"]) + np.vdot(found.key, towards["k"])
    slope += sum(np.vdot(found.parameters[f"score.{n}"], towards[n]) for n in learned)
    assert slope == pytest.approx((loss(1e-6) - loss(-1e-6)) / 2e-6, rel=1e-6)


def test_all_that_is_read(build: Build) -> None:
    assert branches.vectorises
    assert branches.differentiable
    mechanism = made(build, branches, low=-0.8, high=0.9)
    query, key, value, incoming = arrays()
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(8)
    expected = average(branches_in_numpy(scores, -0.8, 0.9), value)
    output, pull = mechanism.attend_vjp(query, key, value)
    np.testing.assert_allclose(output, expected, atol=1e-12)
    found = pull(incoming)
    for name, at in (("low", -0.8), ("high", 0.9)):
        values = {"low": -0.8, "high": 0.9}
        losses = []
        for step in (1e-7, -1e-7):
            values[name] = at + step
            moved = average(branches_in_numpy(scores, **values), value)
            losses.append((moved * incoming).sum())
        slope = (losses[0] - losses[1]) / 2e-7
        assert found.parameters[f"score.{name}"] == pytest.approx(slope, rel=1e-4)


def test_learned_parameters_can_be_set(build: Build) -> None:
    mechanism = made(build, relative, table=TABLE, offset=TOKENS - 1)
    query, key, value, _ = arrays()
    before = mechanism.attend(query, key, value)
    mechanism.parameters.update({"score.table": 2 * TABLE})
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(8)
    expected = average(scores + 2 * TABLE[:, I - J + TOKENS - 1], value)
    after = mechanism.attend(query, key, value)
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after, expected, atol=1e-12)


def test_parts_masks_and_other_axes(build: Build) -> None:
    mechanism = build(
        StreamingMechanism, ScaledConfig, dim=8 * HEADS, heads=HEADS, score=relative,
        score_params={"table": TABLE, "offset": TOKENS - 1}, softcap=2.0,
    )  # fmt: skip
    query, key, value, _ = arrays()
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(8) + TABLE[:, I - J + TOKENS - 1]
    expected = average(np.where(I >= J, 2 * np.tanh(scores / 2), -np.inf), value)
    whole = mechanism.attend(query, key, value, mask=Causal())
    np.testing.assert_allclose(whole, expected, atol=1e-12)
    parts = [
        mechanism.attend_partial(
            query, key[:, :, s], value[:, :, s], start=s.start, total=TOKENS, mask=Causal()
        )
        for s in (slice(0, 33), slice(33, TOKENS))
    ]
    np.testing.assert_allclose(parts[0].merge(parts[1]).finish(), whole, atol=1e-12)


def test_numbers_do_not_widen_single_precision() -> None:
    kinds = relative.kinds((TABLE, TOKENS - 1))
    source = pass_source(relative, "float32", False, kinds, True, {"WIDE": 64})[0]
    assert "load_float" in source
    capped = score_rule(softly)
    assert "FLOAT(30.0)" in pass_source(capped, "float32", False, {}, True, {"WIDE": 64})[0]


def softly(score):  # type: ignore[no-untyped-def]
    return 30.0 * math.tanh(score / 30.0)


# ---- written down ---------------------------------------------------------------------------


def test_configurations_are_written_by_name() -> None:
    options = {
        "dim": 6,
        "heads": 3,
        "score": relative,
        "score_params": {"table": TABLE, "offset": 4},
    }
    config = build_config(ScaledConfig, options, mechanism="plain")
    text = config.model_dump_json()
    assert f'"score":"{__name__}:relative"' in text
    again = ScaledConfig.model_validate_json(text)
    assert again.score is relative
    assert again == config
    other = {**options, "score_params": {"table": TABLE + 1, "offset": 4}}
    assert build_config(ScaledConfig, other, mechanism="plain") != config


def test_local_rules_are_not_written() -> None:
    @score_rule
    def local(score):  # type: ignore[no-untyped-def]
        return score

    config = build_config(ScaledConfig, {"dim": 2, "score": local}, mechanism="plain")
    with pytest.raises(Exception, match=r"local .*cannot be written down: it is local"):
        config.model_dump_json()
    with pytest.raises(KernelError, match="cannot be written down"):
        pickle.dumps(config)
    assert pickle.loads(pickle.dumps(relative)) is relative


# ---- refused --------------------------------------------------------------------------------


def refused(make: Callable[[], Any], kind: type[Exception] = KernelError) -> str:
    with pytest.raises(kind) as caught:
        make()
    return str(caught.value)


def test_parameters_that_are_not_the_rules(build: Build) -> None:
    text = refused(lambda: made(build, relative, table=TABLE, shift=1), ConfigError)
    assert text.startswith("score_params: got lacks offset and has in excess shift; expected ")
    text = refused(lambda: made(build, branches, low=[1.0, 2.0], high=1.0), ConfigError)
    assert "score_params.low" in text
    with pytest.raises(ConfigError, match="score_params"):
        build_config(ScaledConfig, {"dim": 2, "score_params": {"x": 1}}, mechanism="plain")
    with pytest.raises(ConfigError, match="module:name"):
        build_config(ScaledConfig, {"dim": 2, "score": "nowhere:nothing"}, mechanism="plain")


def test_reads_out_of_range(build: Build) -> None:
    mechanism = made(build, relative, table=TABLE, offset=TOKENS - 2)
    query, key, value, _ = arrays()
    text = refused(lambda: mechanism.attend(query, key, value))
    line = relative.function.__code__.co_firstlineno + 2
    assert text == (
        f"the score rule relative ({__file__}:{line}) reads `table[h, i - j + offset]` out of "
        f"range: index -1 on axis 1 of table, whose shape is (3, 139), for 70 queries and 70 keys"
    )
    few = [x[:, :, :40] for x in (query, key, value)]
    assert np.isfinite(mechanism.attend(*few)).all()


def test_what_rules_may_not_do(build: Build) -> None:
    @score_rule
    def raises(score):  # type: ignore[no-untyped-def]
        if score > 3:
            raise ValueError
        return score

    @score_rule
    def two(score):  # type: ignore[no-untyped-def]
        return score, score

    @score_rule
    def nothing(score):  # type: ignore[no-untyped-def]
        if score > 3:
            return score

    @score_rule
    def worded(score):  # type: ignore[no-untyped-def]
        return "high"

    @score_rule
    def axes(score, table):  # type: ignore[no-untyped-def]
        return score + table[0]

    def place(rule: Any, line: int) -> str:
        first = rule.function.__code__.co_firstlineno
        return f"the score rule {rule.name} ({__file__}:{first + line})"

    assert refused(lambda: made(build, raises)).startswith(f"{place(raises, 3)} may raise")
    assert refused(lambda: made(build, two)).startswith(f"{place(two, 0)} returns 2 values")
    assert "can end without returning" in refused(lambda: made(build, nothing))
    assert refused(lambda: made(build, worded)) == f"{place(worded, 2)} does not return a number"
    text = refused(lambda: made(build, axes, table=TABLE))
    assert text == f"{place(axes, 2)} reads `table[0]`, but table has 2 axes"


def test_a_wrong_derivative(build: Build) -> None:
    @score_rule
    def doubled(score, slope):  # type: ignore[no-untyped-def]
        return slope * score

    @doubled.derivative
    def doubled_derivative(score, slope):  # type: ignore[no-untyped-def]
        return slope, slope

    mechanism = made(build, doubled, slope=3.0)
    query, key, value, _ = arrays()
    text = refused(lambda: mechanism.attend_vjp(query, key, value))
    assert text.startswith("the given derivative of the score rule doubled (")
    assert "by slope is 3 where differences give" in text

    @doubled.derivative
    def right(score, slope):  # type: ignore[no-untyped-def]
        return slope, score

    mechanism.attend_vjp(query, key, value)


def test_statistics_of_vectors_that_were_moved(build: Build) -> None:
    class Moved(StreamingMechanism):
        def _transform(self, query: Any, key: Any) -> Any:
            return query - 1, key - 1, None

    @score_rule(row=squared_norm)
    def rowed(score, row):  # type: ignore[no-untyped-def]
        return score - row

    with pytest.raises(ConfigError, match="a rule without row and column"):
        build(Moved, ScaledConfig, dim=2, score=rowed)


# ---- predicates -----------------------------------------------------------------------------


def test_predicates_with_arrays(build: Build) -> None:
    ids = IDS

    def same(b, h, i, j):  # type: ignore[no-untyped-def]
        return ids[b, i] == ids[b, j]

    mechanism = build(StreamingMechanism, ScaledConfig, dim=8 * HEADS, heads=HEADS)
    query, key, value, _ = arrays()
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(8)
    expected = average(
        np.where(ids[:, None, :, None] == ids[:, None, None], scores, -np.inf), value
    )
    found = mechanism.attend(query, key, value, mask=Predicate(same))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    text = refused(lambda: Predicate(same).program(MaskShape((2,), 1, TOKENS, TOKENS + 1)))
    line = same.__code__.co_firstlineno + 1
    assert f"({__file__}:{line}) raises for batch, head, query, key = (0, 0, 0, 70)" in text


def test_predicates_that_are_none() -> None:
    def worded(b, h, i, j):  # type: ignore[no-untyped-def]
        return "yes"

    text = refused(lambda: Predicate(worded).program(MaskShape((), 1, 2, 2)))
    assert "returns 'yes'; it must return True or False" in text
