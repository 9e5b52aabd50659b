"""The gate: transitions, state, what each mode does; the cut."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from polyattn_core import diagnostics
from polyattn_core.errors import ArgumentError, CapabilityError, ConfigError, FileFormatError
from polyattn_core.masks import Causal
from polyattn_registry import create as create_any
from polyattn_topology import AttentionMode, CoherencePolicy, GateState, PolicyConfig
from polyattn_topology.gated import fingerprint
from polyattn_topology.reference import cheapest_cut

STABLE, CAUTIOUS, FREEZE = AttentionMode


def keys(rng, n=12, size=8, *, camps=False):
    x = 2 + 0.3 * rng.standard_normal((n, size))
    return np.concatenate((x[: n // 2], -x[n // 2 :])) if camps else x


def attend(query, key, value, k=None):
    scores = query @ key.T / np.sqrt(query.shape[-1])
    if k is not None:
        scores = np.where(scores >= np.sort(scores)[:, -k, None], scores, -np.inf)
    return softmax(scores, axis=-1) @ value


thresholds = st.tuples(*[st.floats(0, 1)] * 3, st.floats(0, 0.3)).map(
    lambda t: PolicyConfig(
        **dict(
            zip(
                ("freeze_threshold", "cautious_threshold", "stable_threshold"),
                sorted(t[:3]),
                strict=True,
            )
        ),
        hysteresis=t[3],
    )
)
modes = st.sampled_from([None, *AttentionMode])


@given(thresholds, modes, st.floats(0, 1))
def test_measuring_again_changes_nothing(config, mode, coherence):
    policy = CoherencePolicy(config)
    once = policy.step(mode, coherence)
    assert policy.step(once, coherence) is once


@given(thresholds, modes, st.floats(0, 1), st.floats(0, 1))
def test_more_coherence_never_closes_more(config, mode, a, b):
    policy, order = CoherencePolicy(config), [FREEZE, CAUTIOUS, STABLE]
    low, high = (order.index(policy.step(mode, c)) for c in sorted((a, b)))
    assert low <= high


@given(thresholds, st.sampled_from(list(AttentionMode)), st.floats(0, 1), st.floats(-1, 1))
def test_every_transition_has_a_hysteresis(config, mode, coherence, share):
    """After a change, moving back by less than 2h keeps the new mode, or one further on."""
    policy = CoherencePolicy(config)
    after = policy.step(mode, coherence)
    if after is mode:
        return
    order = [FREEZE, CAUTIOUS, STABLE]
    up = order.index(after) > order.index(mode)
    back = 1.99 * config.hysteresis * abs(share)
    moved = np.clip(coherence - back if up else coherence + back, 0, 1)
    assert policy.step(after, float(moved)) is not mode or config.hysteresis == 0


def test_each_threshold_acts():
    policy = CoherencePolicy()
    assert policy.replay([0.76, 0.74, 0.84, 0.86]) == [CAUTIOUS, CAUTIOUS, CAUTIOUS, STABLE]
    assert policy.replay([0.76, 0.74], STABLE) == [STABLE, CAUTIOUS]
    assert policy.replay([0.26, 0.24, 0.54, 0.56], CAUTIOUS) == [CAUTIOUS, FREEZE, FREEZE, CAUTIOUS]
    assert policy.replay([0.1, 0.9], STABLE) == [FREEZE, STABLE]
    with pytest.raises(ArgumentError, match="coherence"):
        policy.step(None, np.nan)
    with pytest.raises(ValueError, match="cautious_threshold"):
        PolicyConfig(cautious_threshold=0.9)


def test_what_each_mode_does(create, rng):
    good, query = keys(rng), rng.standard_normal((5, 8))
    gate = create("topology-gated", dim=8, cautious_options={"k": 3})
    value = rng.standard_normal((12, 8))
    np.testing.assert_allclose(gate(query, good, value), attend(query, good, value))
    assert gate.current_mode is STABLE
    grown = np.concatenate((good, -good[:10], rng.standard_normal((4, 8))))
    more = np.concatenate((value, rng.standard_normal((14, 8))))
    np.testing.assert_allclose(gate(query, grown, more), attend(query, good, value))
    assert gate.current_mode is FREEZE
    cloud = rng.standard_normal((40, 8))
    values = rng.standard_normal((40, 8))
    np.testing.assert_allclose(gate(query, cloud, values), attend(query, cloud, values, k=3))
    assert gate.current_mode is CAUTIOUS
    assert gate.state.retained == 40


def test_frozen_gate_with_a_mask_and_gradients(create, rng):
    gate = create("topology-gated", dim=8)
    gate(keys(rng, 6))
    x = np.concatenate((keys(rng, 6), -keys(rng, 6)))
    output, pull = gate.vjp(x, x, x, mask=Causal())
    assert gate.current_mode is FREEZE
    scores = np.where(np.tri(12)[:, :6] > 0, x @ x[:6].T / 8**0.5, -np.inf)
    np.testing.assert_allclose(output, softmax(scores, axis=-1) @ x[:6])
    found = pull(np.ones_like(output))
    assert abs(found.key[:6]).max() > 0
    assert (found.key[6:] == 0).all()
    seen = gate.observe(*(x[None] for _ in range(3)), "weights").weights
    assert (seen[..., 6:] == 0).all()


def test_statistics_are_those_of_what_attends(create, rng):
    x = keys(rng)[None]
    seen = create("topology-gated", dim=8).observe(x, x, x, "top_weights", "entropy", top=3)
    plain = create_any("flash", dim=8).observe(x, x, x, "top_weights", "entropy", top=3)
    for name in ("top_weights", "top_keys", "entropy"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(plain, name))
    gate = create("topology-gated", dim=8, inner="linear")
    with pytest.raises(CapabilityError, match=r"topology-gated .*'top_weights'"):
        gate.observe(x, x, x, "top_weights")
    assert gate.capabilities.statistics == ("weights", "column_mass")


def test_keys_are_measured_when_they_change(create, rng):
    gate = create("topology-gated", dim=8, heads=2)
    x = keys(rng)
    for _ in range(3):
        gate(x)
        gate(x, x.copy())
    assert gate.state.measured == 1
    x[3, 4] = np.nextafter(x[3, 4], 9)
    gate(x)
    assert gate.state.measured == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fingerprints(rng, dtype):
    x = rng.standard_normal((2, 3, 5, 7)).astype(dtype)
    marks = {fingerprint(x), fingerprint(x[:, ::-1]), fingerprint(2 * x), fingerprint(-x)}
    marks.add(fingerprint(x.reshape(2, 3, 7, 5)))
    assert len(marks) == 5
    assert fingerprint(x.copy()) in marks
    view = x.transpose(0, 2, 1, 3)
    assert fingerprint(view) == fingerprint(view)
    assert fingerprint(x[..., ::2]) == fingerprint(x[..., ::2])


def test_state_is_saved_and_replayed(create, rng, tmp_path):
    calls = [keys(rng, camps=bad) for bad in (False, True, True, False, True)]
    gate = create("topology-gated", dim=8)
    gate(calls[0])
    gate.save_state(tmp_path / "gate.json")
    before = gate.state
    first = [(gate(x), gate.state) for x in calls[1:]]
    other = create("topology-gated", dim=8)
    other.load_state(tmp_path / "gate.json")
    assert other.state == before
    for x, (output, state) in zip(calls[1:], first, strict=True):
        np.testing.assert_array_equal(other(x), output)
        assert other.state == state
    other.reset()
    assert other.state == GateState()
    assert copy.deepcopy(gate).state == gate.state
    (tmp_path / "gate.json").write_text('{"mode": "open"}')
    with pytest.raises(FileFormatError, match=r"gate\.json"):
        gate.load_state(tmp_path / "gate.json")
    with pytest.raises(ArgumentError, match="state"):
        gate.restore({"mode": "stable"})


def test_changes_are_published(create, rng):
    seen = []
    undo = diagnostics.subscribe(diagnostics.ModeChanged, seen.append)
    try:
        gate = create("topology-gated", dim=8)
        for bad in (False, True, True, False):
            gate(keys(rng, camps=bad))
    finally:
        undo()
    assert [(e.before, e.after) for e in seen] == [("stable", "freeze"), ("freeze", "stable")]
    assert seen[0].coherence < 0.3


def test_any_mechanism_can_be_gated(create, rng):
    x = keys(rng)
    gate = create(
        "topology-gated", dim=8, inner="sliding-window", inner_options={"window": 3},
        cautious="standard/sparsemax", cautious_options={"scale": 0.1},
    )  # fmt: skip
    import polyattn_registry

    expected = polyattn_registry.create("sliding-window", dim=8, window=3)(x)
    np.testing.assert_array_equal(gate(x), expected)
    gate.restore(GateState(mode=CAUTIOUS, retained=12, coherence=0.6))
    cloud = rng.standard_normal((12, 8))
    expected = polyattn_registry.create("sparsemax", dim=8, scale=0.1)(cloud)
    np.testing.assert_array_equal(gate(cloud), expected)
    for options in ({"inner_options": {"dim": 3}}, {"inner_options": {"dropout": 0.5}}):
        with pytest.raises(ConfigError, match="inner_options"):
            create("topology-gated", dim=8, **options)


def test_metrics_and_window_are_used(create, rng):
    x = rng.standard_normal((12, 8))
    found = set()
    for options in ({}, {"metrics": ["disagreement"]}, {"window": 3}):
        gate = create("topology-gated", dim=8, **options)
        gate.compute_gated(x)
        found.add(gate.state.coherence)
    assert len(found) == 3


def test_calls_from_threads(create, rng):
    gate = create("topology-gated", dim=8)
    calls = [keys(rng) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(gate, calls))
    assert gate.state.measured == 40
    for x, output in zip(calls, outputs, strict=True):
        np.testing.assert_allclose(output, attend(x, x, x))


@pytest.mark.parametrize("camps", [False, True])
def test_cut(create, rng, camps):
    x = keys(rng, 14, camps=camps)
    gated = create("mincut-gated", dim=8, strength=3.0)
    of_query, of_key, values = gated.sides(x[None, None], x[None, None])
    value, side, _, _ = cheapest_cut(x)
    assert values[0, 0] == pytest.approx(value)
    assert (value < 0.8) == camps
    scores = x @ x.T / 8**0.5
    if camps:
        sides = of_key[0, 0] > 0
        assert (sides == side).all() or (sides == ~side).all()
        np.testing.assert_array_equal(of_query, of_key)
        scores -= 3 * (side[:, None] != side)
    else:
        assert not of_key.any()
    np.testing.assert_allclose(gated(x), softmax(scores, axis=-1) @ x)
    raised = create("mincut-gated", dim=8, threshold=4.0)
    assert raised.sides(x[None, None], x[None, None])[1].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 63, 65, 130])
def test_cuts_of_each_key_head(create, rng, dtype, n):
    gated = create("mincut-gated", dim=32, heads=4, kv_heads=2, threshold=4.0)
    query = rng.standard_normal((2, 4, 9, 8)).astype(dtype)
    key = rng.standard_normal((2, 2, n, 8)).astype(dtype)
    query[1, 2, 3] = 0
    of_query, of_key, values = gated.sides(query, key)
    assert of_query[1, 2, 3] == 0
    for b, h in np.ndindex(2, 2):
        value, side, axis, border = cheapest_cut(key[b, h].astype(float))
        assert values[b, h] == pytest.approx(value)
        sign = 1 if (of_key[b, h, 0] > 0) == side[0] else -1
        np.testing.assert_array_equal(sign * of_key[b, h] > 0, side)
        for own in (2 * h, 2 * h + 1):
            along = query[b, own] @ axis / np.linalg.norm(query[b, own], axis=-1).clip(1e-9)
            seen = of_query[b, own] != 0
            np.testing.assert_array_equal(
                (sign * of_query[b, own] > 0)[seen], (along > border)[seen]
            )


def test_keys_without_direction_are_on_no_side(create, rng):
    gated = create("mincut-gated", dim=8)
    x = keys(rng, 14, camps=True)[None, None]
    padded = np.concatenate((x[:, :, :5], np.zeros((1, 1, 3, 8)), x[:, :, 5:]), axis=2)
    _, alone, value = gated.sides(x, x)
    _, found, again = gated.sides(x, padded)
    assert value == pytest.approx(again)
    np.testing.assert_array_equal(found[0, 0, 5:8], 0)
    np.testing.assert_array_equal(np.delete(found, range(5, 8), axis=2), alone)


def test_refused_options(create):
    for options in ({"causal": True}, {"position": "rope"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            create("mincut-gated", dim=4, **options)


def test_calls_alike_go_through_every_mode(create, rng):
    """Arguments of shapes that are known take a shorter way, which shows in nothing."""
    gated = create("topology-gated", dim=16, heads=2, cautious_options={"k": 3})
    query, value = rng.standard_normal((2, 1, 2, 12, 8))
    steady = np.stack([keys(rng) for _ in range(2)])[None]
    camps = np.stack([keys(rng, camps=True) for _ in range(2)])[None]
    half = (steady + camps)[..., ::-1, :].copy()
    measured = []
    for each in (steady, steady, camps, steady, half, half, camps, steady):
        gated.reset()
        expected = gated(
            *(x.transpose(0, 2, 1, 3).reshape(1, 12, 16) for x in (query, each, value))
        )
        expected = expected.reshape(1, 12, 2, 8).transpose(0, 2, 1, 3)
        gated.reset()
        np.testing.assert_array_equal(gated.attend(query, each, value), expected)
        np.testing.assert_array_equal(gated.attend(query, each, value), expected)
        measured.append((gated.current_mode, gated.state.measured))
    assert {mode for mode, _ in measured} > {STABLE}
    assert {count for _, count in measured} == {1}


def test_causal_calls_alike(create, rng):
    gated = create("topology-gated", dim=8, causal=True)
    x = keys(rng)[None, None]
    expected = create_any("flash", dim=8, causal=True).attend(x, x, x)
    for _ in range(3):
        np.testing.assert_allclose(gated.attend(x, x, x), expected)


def test_frozen_calls_alike_admit_no_more(create, rng):
    gated = create("topology-gated", dim=8)
    few, many = keys(rng, 6)[None, None], keys(rng, 12, camps=True)[None, None]
    gated.attend(few, few, few)
    gated.attend(few, many, many)
    assert gated.current_mode is FREEZE
    for _ in range(2):
        found = gated.attend(few, many, many)[0, 0]
        np.testing.assert_allclose(found, attend(few[0, 0], many[0, 0, :6], many[0, 0, :6]))


def test_known_shapes_are_checked_and_seen_on_the_bus(create, rng):
    gated = create("topology-gated", dim=8)
    x = keys(rng)[None, None]
    gated.attend(x, x, x)
    state = gated.state
    with pytest.raises(ArgumentError, match="value"):
        gated.attend(x, 2 * x, x[..., :5, :])
    assert gated.state == state
    events: list[diagnostics.AttentionComputed] = []
    undo = diagnostics.subscribe(diagnostics.AttentionComputed, events.append)
    gated.attend(x, x, x)
    undo()
    assert [event.name for event in events] == ["topology/topology-gated"]
    assert copy.deepcopy(gated).attend(x, x, x).shape == x.shape
