"""Attention in blocks gives what attention in one piece gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyattn as pa
from polyattn import _blocks
from polyattn._blocks import Inputs
from polyattn._files import Output

STATISTICS = ("weights", "log_sum_exp", "entropy", "column_mass")
rng = np.random.default_rng(0)


def arrays(*lead: int, queries: int = 23, keys: int = 31, dim: int = 8) -> Inputs:
    return Inputs(
        rng.standard_normal((*lead, queries, dim)),
        rng.standard_normal((*lead, keys, dim)),
        rng.standard_normal((*lead, keys, dim)),
    )


def in_blocks(
    mechanism: Any, inputs: Inputs, block: int, statistics: tuple[str, ...], folder: Path
) -> tuple[Mapping[str, Any], _blocks.Plan]:
    chosen = _blocks.plan(mechanism, inputs, statistics, block)
    sizes: list[int] = []
    with Output(folder / "out.npz") as output:
        _blocks.attend(mechanism, inputs, chosen, statistics, output, sizes.append)
        found = dict(output.arrays)
    assert len(sizes) == len(chosen.blocks())
    return found, chosen


CASES: dict[str, tuple[dict[str, Any], Inputs]] = {
    "plain": ({}, arrays(2, 3)),
    "no leading axes": ({}, arrays()),
    "heads": ({"heads": 2}, arrays(2)),
    "causal": ({"causal": True}, arrays(2)),
    "causal, as many": ({"causal": True}, arrays(queries=31)),
    "causal, rope": ({"causal": True, "heads": 2, "position": "rope"}, arrays(2)),
    "causal, alibi": ({"causal": True, "heads": 2, "position": "alibi"}, arrays()),
    "causal, t5": ({"causal": True, "heads": 2, "position": "t5"}, arrays()),
    "rope": ({"position": "rope"}, arrays(5)),
    "causal, fewer keys": ({"causal": True}, arrays(3, queries=23, keys=11)),
}


def with_pairs(inputs: Inputs, mask: Any = None, bias: Any = None) -> Inputs:
    return Inputs(inputs.query, inputs.key, inputs.value, mask, bias)


MASK = rng.random((23, 31)) < 0.7
CASES |= {
    "mask": ({"heads": 2}, with_pairs(arrays(2, 3), MASK)),
    "mask of heads": (
        {"heads": 2, "causal": True},
        with_pairs(arrays(2, 3), rng.random((3, 2, 23, 31)) < 0.7),
    ),
    "mask of keys": ({"causal": True}, with_pairs(arrays(2), MASK[:1])),
    "bias": ({"heads": 2}, with_pairs(arrays(2), bias=rng.standard_normal((2, 1, 23, 1)))),
    "bias of keys": ({"causal": True}, with_pairs(arrays(2), bias=rng.standard_normal(31))),
    "one key set": ({}, Inputs(arrays(2, 3).query, *[arrays(1, 3).key] * 2)),
    "one query set": ({}, Inputs(arrays(1).query, *[arrays(4).key] * 2)),
    "fewer axes": ({}, Inputs(arrays(2, 3).query, *[arrays().key] * 2)),
}


@pytest.mark.parametrize("block", [1, 7, 40, 10_000])
@pytest.mark.parametrize("case", CASES)
def test_blocks_agree_with_one_piece(case: str, block: int, tmp_path: Path) -> None:
    options, inputs = CASES[case]
    mechanism = pa.create("flash", dim=8, **options)
    expected = mechanism(inputs.query, inputs.key, inputs.value, mask=inputs.mask, bias=inputs.bias)
    found, _ = in_blocks(mechanism, inputs, block, (), tmp_path)
    np.testing.assert_allclose(found["output"], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["flash", "sliding-window", "top-k", "multi-head"])
@pytest.mark.parametrize("wanted", [STATISTICS, STATISTICS[:3]])
def test_statistics_agree_with_one_piece(
    name: str, wanted: tuple[str, ...], tmp_path: Path
) -> None:
    inputs = arrays(2)
    mechanism = pa.create(name, dim=8, heads=2, causal=True)
    whole, _ = in_blocks(mechanism, inputs, 10_000, wanted, tmp_path)
    found, chosen = in_blocks(mechanism, inputs, 5, wanted, tmp_path)
    assert len(chosen.blocks()) > 1
    for array in ("output", *wanted):
        np.testing.assert_allclose(found[array], whole[array], rtol=1e-12, atol=1e-14)
    assert whole["weights"].shape == (2, 2, 23, 31)
    np.testing.assert_array_equal(
        whole["output"], mechanism(inputs.query, inputs.key, inputs.value)
    )


def test_a_single_query_is_not_divided(tmp_path: Path) -> None:
    key = rng.standard_normal((31, 8))
    inputs = Inputs(rng.standard_normal(8), key, key)
    mechanism = pa.create("flash", dim=8)
    found, chosen = in_blocks(mechanism, inputs, 1, ("entropy",), tmp_path)
    assert chosen.blocks() == [()]
    np.testing.assert_array_equal(found["output"], mechanism(inputs.query, key, key))
    assert found["entropy"].shape == (1, 1)


def reason(name: str, statistics: tuple[str, ...] = (), **options: Any) -> str:
    mechanism = pa.create(name, dim=8, **options)
    return _blocks.plan(mechanism, arrays(2), statistics, 5).reason


def test_queries_are_divided_only_where_that_is_right() -> None:
    assert reason("flash") == reason("l2") == reason("flash", causal=True) == ""
    assert reason("top-k") == "its rows may depend on one another"
    assert reason("sliding-window") == "its rule looks at positions"
    assert reason("flash", position="rope") == "position=rope looks at distances to all keys"
    assert reason("flash", ("column_mass",)) == "column_mass is a sum over all queries"


def test_rows_that_depend_on_one_another_stay_together(
    registered: Callable[..., Any], tmp_path: Path
) -> None:
    registered("centred", "Centred")
    inputs, mechanism = arrays(3, keys=23), pa.create("centred", dim=8)
    found, chosen = in_blocks(mechanism, inputs, 5, (), tmp_path)
    assert len(chosen.blocks()) == 3
    np.testing.assert_array_equal(
        found["output"], mechanism(inputs.query, inputs.key, inputs.value)
    )


def test_side_inputs_keep_a_call_whole(registered: Callable[..., Any], tmp_path: Path) -> None:
    gate = pa.SideInput(name="gate", shape="(…, queries, 1)", description="…")
    registered("gated", "Gated", capabilities=pa.Capabilities(side_inputs=(gate,)))
    plain = arrays(3)
    inputs = Inputs(plain.query, plain.key, plain.value, side={"gate": rng.random((3, 23, 1))})
    found, chosen = in_blocks(pa.create("gated", dim=8), inputs, 5, (), tmp_path)
    assert chosen.blocks() == [()]
    np.testing.assert_allclose(found["output"], inputs.side["gate"] * inputs.value[:, :1])


@pytest.mark.parametrize(
    "inputs",
    [
        Inputs(rng.random((2, 5, 8)), rng.random((3, 5, 8)), rng.random((3, 5, 8))),
        Inputs(rng.random((2, 5, 8)), rng.random((2, 5, 8)), rng.random((2, 4, 8))),
        Inputs(rng.random((2, 5, 8)), rng.random(8), rng.random(8)),
        Inputs(rng.random((2, 0, 8)), rng.random((2, 5, 8)), rng.random((2, 5, 8))),
        with_pairs(arrays(2), np.ones((4, 1, 23, 31), bool)),
        with_pairs(arrays(2), bias=np.ones((22, 31))),
    ],
)
def test_what_does_not_fit_is_explained_by_the_mechanism(inputs: Inputs, tmp_path: Path) -> None:
    mechanism = pa.create("flash", dim=8)
    with pytest.raises(pa.errors.ArgumentError) as direct:
        mechanism(inputs.query, inputs.key, inputs.value, mask=inputs.mask, bias=inputs.bias)
    with pytest.raises(pa.errors.ArgumentError) as through:
        in_blocks(mechanism, inputs, 1, (), tmp_path)
    assert str(through.value) == str(direct.value)


def test_size_decides_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism, inputs = pa.create("flash", dim=8), arrays(2, queries=200)

    def blocks() -> int:
        return len(_blocks.plan(mechanism, inputs, (), None).blocks())

    assert blocks() == 1
    monkeypatch.setattr(_blocks, "MEMORY", 4 * 16 * 100)
    assert blocks() == 4
    monkeypatch.setattr(_blocks, "WORK", 1)
    assert blocks() == 8  # of 64 queries, the fewest
