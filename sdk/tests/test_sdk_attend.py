"""`attend`: one-off use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polyattn as pa
from polyattn import _attend

rng = np.random.default_rng(0)
QUERY = rng.standard_normal((2, 5, 8))
KEY = rng.standard_normal((2, 7, 8))
VALUE = rng.standard_normal((2, 7, 8))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the mechanisms that `attend` has made since the test began."""
    names: list[str] = []
    create = pa.create

    def counted(name: str, **options: Any) -> Any:
        names.append(name)
        return create(name, **options)

    _attend._made.clear()
    monkeypatch.setattr(_attend.registry, "create", counted)
    return names


@pytest.mark.parametrize("options", [{}, {"heads": 2}, {"heads": 2, "causal": True}])
def test_equals_a_mechanism_that_was_created(options: dict[str, Any]) -> None:
    expected = pa.create("flash", dim=8, **options)(QUERY, KEY, VALUE)
    np.testing.assert_array_equal(pa.attend(QUERY, KEY, VALUE, "flash", **options), expected)


def test_a_single_query_searches_keys() -> None:
    found = pa.attend(QUERY[0, 0], KEY[0], VALUE[0, :, :3], "flash")
    assert found.shape == (3,)
    expected = pa.attend(QUERY[0, :1], KEY[0], VALUE[0, :, :3], "flash")
    np.testing.assert_allclose(found, expected[0], rtol=1e-12)


def test_none_stands_for_the_argument_before() -> None:
    expected = pa.attend(QUERY, QUERY, QUERY, "flash")
    np.testing.assert_array_equal(pa.attend(QUERY, None, None, "flash"), expected)


def test_lists_of_numbers_are_taken() -> None:
    assert pa.attend([1.0, 0.0], [[1.0, 0.0]], [[7.0]], "flash").tolist() == [7.0]


def test_mask_and_bias_go_to_the_call() -> None:
    mask, bias = pa.masks.Causal(), rng.standard_normal((5, 7))
    expected = pa.create("flash", dim=8)(QUERY, KEY, VALUE, mask=mask, bias=bias)
    found = pa.attend(QUERY, KEY, VALUE, "flash", mask=mask, bias=bias)
    np.testing.assert_array_equal(found, expected)


def test_training_and_rng_go_to_the_call() -> None:
    def dropped(seed: int) -> Any:
        return pa.attend(QUERY, KEY, VALUE, "flash", dropout=0.5, training=True, rng=seed)

    np.testing.assert_array_equal(dropped(1), dropped(1))
    assert (dropped(1) != dropped(2)).any()
    with pytest.raises(pa.errors.ArgumentError, match="rng"):
        pa.attend(QUERY, KEY, VALUE, "flash", dropout=0.5, training=True)


def test_side_inputs_go_to_the_call(registered: Callable[..., Any]) -> None:
    gate = pa.SideInput(name="gate", shape="(…, queries, 1)", description="a factor for each query")
    able = pa.Capabilities(side_inputs=(gate,))
    registered("gated", "Gated", capabilities=able)
    found = pa.attend(QUERY, KEY, VALUE, "gated", gate=np.full((2, 5, 1), 2.0))
    np.testing.assert_allclose(found, np.repeat(2 * VALUE[:, :1], 5, axis=1))
    with pytest.raises(pa.errors.MissingInputError, match="gate=: a factor for each query"):
        pa.attend(QUERY, KEY, VALUE, "gated")


def test_the_same_options_are_made_once(made: list[str]) -> None:
    for _ in range(3):
        pa.attend(QUERY, KEY, VALUE, "flash", heads=2)
    assert made == ["flash"]
    pa.attend(QUERY, KEY, VALUE, "flash", heads=4)
    pa.attend(QUERY[..., :4], KEY[..., :4], VALUE, "flash", heads=2)
    assert made == ["flash"] * 3


def test_options_that_cannot_be_hashed_work(made: list[str]) -> None:
    for _ in range(2):
        pa.attend(QUERY, KEY, VALUE, "flash", position={"kind": "rope", "base": 500.0})
    assert made == ["flash"] * 2


def test_equal_options_of_other_types_are_told_apart(made: list[str]) -> None:
    pa.attend(QUERY, KEY, VALUE, "flash", heads=1)
    with pytest.raises(pa.errors.ConfigError, match="heads"):
        pa.attend(QUERY, KEY, VALUE, "flash", heads="one")
    pa.attend(QUERY, KEY, VALUE, "flash", heads=1.0)
    assert len(made) == 3


def test_few_mechanisms_are_kept(made: list[str]) -> None:
    for window in range(1, _attend._KEPT + 3):
        pa.attend(QUERY, KEY, VALUE, "sliding-window", window=window)
    assert len(_attend._made) == _attend._KEPT
    pa.attend(QUERY, KEY, VALUE, "sliding-window", window=1)  # the oldest has gone
    assert len(made) == _attend._KEPT + 3


def test_a_name_that_changes_its_meaning_is_looked_up_again(
    registered: Callable[..., Any],
) -> None:
    spec = registered("mine", "Counting")
    assert pa.attend(QUERY, KEY, VALUE, "mine").max() == 1
    undo = pa.register(
        pa.MechanismSpec(
            name="mine", family="other", summary="…", factory="sdk_fakes:Streamed",
            config=spec.config, reference=spec.reference,
        )
    )  # fmt: skip
    try:
        with pytest.raises(pa.errors.AmbiguousNameError):
            pa.attend(QUERY, KEY, VALUE, "mine")
        unprefer = pa.prefer("mine", "other/mine")
        assert (pa.attend(QUERY, KEY, VALUE, "mine") != 1).any()
        unprefer()
    finally:
        undo()
    assert pa.attend(QUERY, KEY, VALUE, "mine").max() == 1


def test_a_mechanism_with_a_state_begins_afresh(registered: Callable[..., Any]) -> None:
    registered("counting", "Counting")
    for _ in range(2):
        assert pa.attend(QUERY, KEY, VALUE, "counting").max() == 1


def test_refresh_forgets_what_was_made() -> None:
    pa.attend(QUERY, KEY, VALUE, "flash")
    assert _attend._made
    pa.refresh()
    assert not _attend._made
    assert "flash" in pa.available()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: pa.attend(1.0, KEY, VALUE, "flash"), "ShapeError", "query: got ()"),
        (lambda: pa.attend(QUERY, KEY, VALUE, "flsh"), "UnknownNameError", "'flash'"),
        (
            lambda: pa.attend(QUERY, KEY, VALUE, "flash", caus=True),
            "ConfigError",
            "did you mean 'causal'",
        ),
        (lambda: pa.attend(QUERY, KEY[..., :4], VALUE, "flash"), "ShapeError", "key: got"),
        (lambda: pa.attend("text", KEY, VALUE, "flash"), "DTypeError", "query"),
    ],
)
def test_errors_say_what_is_wrong(call: Callable[[], Any], error: str, text: str) -> None:
    with pytest.raises(getattr(pa.errors, error)) as caught:
        call()
    assert text in str(caught.value)
