"""`polyattn report`, its page, and `recommend`."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import polyattn as pa
from polyattn.report import live
from polyattn.report._picture import picture
from polyattn.report.terminal import bar
from polyattn_core import diagnostics
from polyattn_core.errors import NotInstalledError

Cli = Callable[..., Any]


def test_report(cli: Cli) -> None:
    result = cli("report", "iris")
    assert result.code == 0
    assert "iris: 150 × 4" in result.out
    assert "attention-entropy" in result.out
    assert "polyattn info" in result.out


def test_report_as_json(cli: Cli) -> None:
    found = cli("report", "wine", "--json").json
    assert found["shape"] == [178, 13]
    assert found["mechanism"] in pa.available()
    assert 0 <= found["health_score"] <= 1
    named = {metric["name"] for metric in found["metrics"]} | set(found["missing"])
    assert {"ot-distance", "topology-coherence", "ib-kl", "diffusion-energy"} < named


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "rect", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_page(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "a<b.npy"
    np.save(data, np.random.default_rng(0).standard_normal((40, 6)))
    page = tmp_path / "report.html"
    result = cli("report", data, "--html", page, "--scale", "unit")
    assert f"written to {page}" in result.err
    text = page.read_text("utf-8")
    parser = Texts()
    parser.feed(text)
    assert parser.open == []
    assert "attention-entropy" in parser.texts
    assert "<script" not in text
    assert text.count("<circle") == 40
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "a&lt;b.npy" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "a bundled data set"),
        (("iris", "--scale", "log"), "scale: got log; expected standard, unit or none"),
        (("iris", "--limit", "-1"), "limit: got -1"),
        (("iris", "--html", "no/such/page.html"), "--html: got no/such/page.html; expected a file"),
        (("iris", "--html", "."), "--html: got .; expected a file in a folder that exists"),
    ],
)
def test_refusals(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    result = cli("report", *arguments)
    assert result.code == 1
    assert said in result.err


def test_values_that_are_not_finite_are_found(cli: Cli, tmp_path: Path) -> None:
    vectors = np.ones((20, 3))
    vectors[4, 1] = np.nan
    np.save(tmp_path / "x.npy", vectors)
    result = cli("report", str(tmp_path / "x.npy"))
    assert result.code == 1
    assert "the first (nan) in row 4, column 1" in result.err


def test_limit_and_scale_change_the_data(cli: Cli) -> None:
    full, part, raw = (
        cli("report", "iris", "--json", *more).json
        for more in ((), ("--limit", "50"), ("--scale", "none"))
    )
    assert part["shape"] == [50, 4]
    assert full["metrics"] != raw["metrics"]


def test_picture() -> None:
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((2000, 2)) * np.array([10, 3])
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0][:2]
    text = picture(plane @ turn)
    assert "1,500 of 2,000 vectors" in text
    assert "hold 100% of the variance" in text
    places = np.array(re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', text), float)
    assert places.shape == (1500, 2)
    assert places.min() >= 13
    assert (places.max(axis=0) <= (607, 407)).all()
    spread = places.std(axis=0)
    assert spread[0] / spread[1] == pytest.approx(10 / 3, rel=0.1)  # the form is kept
    for flat in (np.ones((3, 4)), np.arange(4.0)[:, None]):
        assert picture(flat).count("<circle") == len(flat)
        assert "nan" not in picture(flat)


def test_live_view_of_attention_that_runs() -> None:
    console = Console(file=io.StringIO(), width=120)
    x = np.random.default_rng(0).standard_normal((50, 8))
    with live(console=console) as view:
        console.print(view.render())
        for _ in range(3):
            pa.attend(x, x, x, "flash")
        seen = view.report()
    pa.attend(x, x, x, "flash")
    assert isinstance(console.file, io.StringIO)
    first, text = console.file.getvalue().split("\n", 1)
    assert first == "0 calls of attention, no metric measured yet"
    assert "3 calls of attention" in text
    assert f"health {seen.health_score:.2f}" in text
    assert f"{seen['attention-entropy'].value:.3g}" in text
    assert view.report() == seen  # the block is over


def test_live_view_of_a_window() -> None:
    console = Console(file=io.StringIO(), width=120)
    with live(2, console=console) as view:
        for value in (9.0, 0.2, 0.6):
            diagnostics.publish(diagnostics.MetricMeasured(metric="ib-kl", value=value))
    assert view.report()["ib-kl"].value == pytest.approx(0.4)
    with pytest.raises(pa.errors.ArgumentError, match="refresh: got 0"):
        live(refresh=0)


def test_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, kind: str) -> Any:
        raise pa.errors.UnknownNameError(kind, name)

    import polyattn_registry

    monkeypatch.setattr(polyattn_registry, "resolve", nothing)
    with pytest.raises(NotInstalledError, match="pip install polyattn-report"):
        pa.recommend(np.ones((3, 2)))


def test_bars() -> None:
    from polyattn_report import Thresholds

    limits = Thresholds(0, 0.3, 0.3, 0.7)
    assert bar(0.0, limits).count("█") == 0
    assert bar(9.0, limits).count("░") == 0
    assert set(bar(float("nan"), limits)) == {"?"}
    assert 0 < bar(0.3, limits).count("█") < bar(0.6, limits).count("█")
