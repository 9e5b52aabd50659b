"""What a comparison says of itself: sentences, a recommendation, tables, JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

import polyattn as pa
from polyattn.compare import compare

for module in ("sklearn", "polyattn_standard"):
    pytest.importorskip(module)

SMALL: dict[str, Any] = {"splits": 2, "threads": 1}


@pytest.fixture(scope="module")
def result() -> Any:
    undo = pa.register(
        pa.MechanismSpec(
            name="broken",
            family="acme",
            summary="Cannot be run",
            factory="sdk_fakes:Broken",
            config="sdk_fakes:Config",
            reference="sdk_fakes:reference",
        )
    )
    yield compare("iris", mechanisms="scaled-dot-product,l2,gaussian,broken", **SMALL)
    undo()


def test_the_recommendation_can_be_run(result: Any) -> None:
    advice = result.recommend()
    assert advice.row.tied
    names: dict[str, Any] = {}
    exec(advice.snippet.rpartition("\n\n")[0], names)
    assert names["attend"].name == advice.row.name
    assert names["attend"].config.dim == 4


def test_the_recommendation_is_fast_but_not_at_any_price(result: Any) -> None:
    score = dataclasses.replace(result.best.scores["accuracy"], standard_error=0.02)
    best = dataclasses.replace(result.best, scores={"accuracy": score}, seconds=1.0)

    def faster(label: str, seconds: float, behind: float, tied: bool = True) -> Any:
        difference = dataclasses.replace(best.difference, mean=-behind)
        return dataclasses.replace(
            best, label=label, seconds=seconds, difference=difference, tied=tied
        )

    near, far = faster("near", 0.5, 0.015), faster("far", 0.1, 0.05)
    worse = faster("worse", 0.1, 0.01, tied=False)
    advice = dataclasses.replace(result, rows=(best, worse, near, far)).recommend()
    assert advice.row is near
    assert advice.reason.endswith("the best, and 2.0 times as fast")
    about_as_fast = faster("near", 0.95, 0.0)
    advice = dataclasses.replace(result, rows=(best, about_as_fast)).recommend()
    assert advice.row is best


def test_the_command_repeats_the_settings() -> None:
    found = compare(
        "iris",
        mechanisms="l2,scaled-dot-product[softcap=1]",
        options={"l2": {"softcap": 2}},
        **{**SMALL, "metric": "log-loss", "seed": 3, "limit": 100},
    )
    assert found.command == (
        "polyattn compare iris --mechanisms 'l2,scaled-dot-product[softcap=1]' "
        "--set l2.softcap=2 --metric log-loss --splits 2 --seed 3 --limit 100 --threads 1"
    )


def test_the_summary_tells_what_was_found(result: Any) -> None:
    done, best, others, *_ = result.summary()
    assert "In each of 2 random splits, 30 test vectors attended over 120" in done
    assert best.startswith(f"{result.best.label} has the best accuracy of 3 mechanisms: 9")
    assert "cannot be told from it" in others
    assert result.summary()[-1] == "broken failed and has no figures."


def test_results_are_frozen_and_plain(result: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.rows = ()
    found = json.loads(result.to_json())
    assert found["best"] == result.best.label
    assert found["settings"]["splits"] == 2
    assert found["rows"][-1]["error"] == "RuntimeError: out of [order]"
    assert found["rows"][-1]["seconds"] is None
    assert "points" not in found["errors"]
    table = result.table()
    assert "★" in table
    assert "broken" not in table
    assert max(map(len, table.splitlines())) <= 110
    assert "sharpness" in table
    assert "sharpness" not in result.table(width=80)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_nothing_is_cut_off_in_narrow_terminals(result: Any, width: int) -> None:
    table = result.table(width)
    assert "…" not in table
    assert "★" in table
    assert "k nearest neighbours" in table
    assert max(map(len, table.splitlines())) <= width
