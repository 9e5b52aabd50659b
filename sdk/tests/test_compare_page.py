"""The page of a comparison, and the command that writes it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from polyattn.compare import Progress, compare
from polyattn.compare._picture import confusion
from polyattn.compare._tasks import ACCURACY
from polyattn.compare._terminal import Display

for module in ("sklearn", "altair", "vl_convert", "polyattn_standard"):
    pytest.importorskip(module)

Cli = Callable[..., Any]
SMALL = {"splits": 2, "threads": 1, "mechanisms": "scaled-dot-product,l2[softcap=9]"}


@pytest.fixture(scope="module")
def result() -> Any:
    return compare("iris", **SMALL)


class Page(HTMLParser):
    """Where a page points to, its elements with an id, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data"):
                self.outside.append(value or "")
            if name == "id":
                self.ids.add(value or "")


def specs_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    specs: dict[str, Any] = json.loads(found.group(1))
    return specs


def render(found: Any, tmp_path: Path) -> str:
    return Path(found.save_html(tmp_path / "page.html")).read_text(encoding="utf-8")


def test_a_page_needs_no_network(result: Any, tmp_path: Path) -> None:
    text = render(result, tmp_path)
    page = Page(text)
    assert page.outside == []
    assert "link" not in page.tags
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?https?:", text)
    assert "vegaEmbed" in text


def test_a_page_shows_everything(result: Any, tmp_path: Path) -> None:
    text = render(result, tmp_path)
    charts = specs_of(text)
    assert set(charts) == {
        "quality", "cost", "confusion", "picture", "curve0", "curve1", "curve2", "curve3",
    }  # fmt: skip
    assert set(charts) <= Page(text).ids
    assert "l2[softcap=9]" in text
    assert result.recommend().row.label in text
    assert result.command.replace("'", "&#39;") in text
    for sentence in result.summary():
        assert sentence.split(".")[0][:20] in text


def test_charts_are_sound(result: Any, tmp_path: Path) -> None:
    altair = pytest.importorskip("altair")
    for spec in specs_of(render(result, tmp_path)).values():
        altair.Chart.from_dict(spec, validate=True)
        assert spec["description"]


def test_numbers_have_charts_of_their_own(tmp_path: Path) -> None:
    found = compare("diabetes", limit=150, **SMALL)
    charts = specs_of(render(found, tmp_path))
    assert {"truth", "picture"} <= set(charts)
    assert "confusion" not in charts


def test_text_of_the_user_is_escaped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.array(["</script><b>", "&amp"])[np.arange(40) % 2]
    vectors = rng.standard_normal((40, 3)) + (np.arange(40) % 2)[:, None]
    text = render(compare(vectors, labels, **SMALL), tmp_path)
    assert "</script><b>" not in text
    rows = specs_of(text)["picture"]["datasets"]
    assert any("</script><b>" in str(values) for values in rows.values())


def test_of_many_classes_the_most_confused_are_shown(result: Any) -> None:
    counts = np.eye(30, dtype=int) * 5
    counts[3, 27] = 2
    errors = replace(result.errors, confusion=tuple(map(tuple, counts.tolist())))
    data = replace(result.data, classes=tuple(map(str, range(30))))
    chart = confusion(replace(result, errors=errors, data=data))
    assert chart is not None
    assert "Only the 20 classes" in chart.caption
    (rows,) = chart.spec["datasets"].values()
    assert len(rows) == 400
    assert {"3", "27"} <= {row["true"] for row in rows}


def test_a_page_of_failures(result: Any, tmp_path: Path) -> None:
    rows = tuple(
        replace(row, error="of no use", scores={}, difference=None, tied=False)
        for row in result.rows
    )
    text = render(replace(result, rows=rows, errors=None), tmp_path)
    assert "No mechanism could be measured" in text
    assert "of no use" in text
    assert specs_of(text) == {}


# ---- the command --------------------------------------------------------------------------------

ARGUMENTS = ("--splits", "2", "--threads", "1", "-m", "scaled-dot-product")


def test_the_command_prints_and_writes(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("compare", "iris", *ARGUMENTS)
    assert done.code == 0, done.err
    assert "★" in done.out
    assert "scaled-dot-product" in done.out
    assert "Again: polyattn compare iris --mechanisms scaled-dot-product --splits 2" in done.out
    assert "polyattn-compare-iris.html" in done.out
    assert (tmp_path / "polyattn-compare-iris.html").stat().st_size > 100_000


def test_the_command_prints_json_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    done = cli("compare", "iris", *ARGUMENTS, "--json", "--html", page, "--set", "sdpa.scale=0.5")
    assert done.code == 0, done.err
    assert done.json["page"] == str(page)
    assert done.json["best"] == "scaled-dot-product[scale=0.5]"
    assert page.exists()


def test_no_page_where_none_is_wanted(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("compare", "iris", *ARGUMENTS, "--no-html", "--json", "--exclude", "flash,cos*")
    assert done.json["page"] is None
    assert done.json["settings"]["exclude"] == ["flash", "cos*"]
    assert list(tmp_path.iterdir()) == []


def test_the_command_reads_files(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    pairs = zip(rng.random((40, 2)), 20 * "pq", strict=True)
    lines = ["a,b,kind", *(f"{x},{y},{kind}" for (x, y), kind in pairs)]
    data = tmp_path / "d.csv"
    data.write_text("\n".join(lines), encoding="utf-8")
    done = cli("compare", data, "--labels", "kind", *ARGUMENTS, "--no-html", "--json")
    assert done.code == 0, done.err
    assert done.json["data"]["classes"] == ["p", "q"]
    assert "--labels kind" in done.json["command"]


def test_bundled_data_are_listed(cli: Cli) -> None:
    assert "handwritten digits" in cli("compare", "--list-data").out
    names = [row["name"] for row in cli("compare", "--list-data", "--json").json]
    assert {"digits", "iris", "tree"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "--list-data shows"),
        (("iris", "--splits", "1"), 2, "--splits"),
        (("iris", "--scale", "log"), 2, "--scale"),
        (("iris", "--html", "x.html", "--no-html"), 2, "exclude each other"),
        (("iris", "--html", "no/such/folder.html"), 1, "a file in a folder that exists"),
        (("irish",), 1, "a bundled data set (digits"),
        (("iris", "-m", "nothing-of-the-kind", "--no-html"), 1, "nothing-of-the-kind"),
        (("iris", "--metric", "r2", "--no-html"), 1, "accuracy, log-loss, ndcg"),
    ],
)
def test_bad_usage(cli: Cli, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = cli("compare", *arguments)
    assert done.code == code
    assert said in re.sub(r"\s*│?\n│?\s*", " ", done.err)


def test_exit_code_where_nothing_could_be_measured(cli: Cli, registered: Any) -> None:
    registered("broken", "Broken")
    done = cli("compare", "iris", "--splits", "2", "--threads", "1", "-m", "broken", "--no-html")
    assert done.code == 1
    assert "RuntimeError: out of [order]" in done.out


@pytest.mark.parametrize(("module", "package"), [("altair", "altair"), ("sklearn", "scikit-learn")])
def test_what_is_not_installed_is_named(
    cli: Cli, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    real = importlib.import_module

    def without(name: str, *more: Any) -> Any:
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *more)

    monkeypatch.setattr("polyattn.compare._optional.importlib.import_module", without)
    done = cli("compare", "iris", *ARGUMENTS)
    assert done.code == 1
    assert f'needs {package}, which is not installed: pip install "polyattn[compare]"' in done.err


def test_progress_is_shown_on_a_terminal_only() -> None:
    steps = [
        Progress(0, 4, "top-k[k=8]", False, ACCURACY, ()),
        Progress(2, 4, "flash", True, ACCURACY, (("top-k[k=8]", 0.971), ("flash", 0.9))),
        Progress(4, 4, "", True, ACCURACY, (("top-k[k=8]", 0.971),)),
    ]
    shown = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        with Display(console) as display:
            for step in steps:
                display(step)
        shown[terminal] = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown[False] == ""
    assert "putting it together" in shown[True]
    assert "4/4" in shown[True]
    assert "97.1 %" in shown[True]
