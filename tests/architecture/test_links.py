"""What the Markdown of this repository points at exists: files, folders, headings.

Addresses of the web are not asked: the suite works without a network.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from workspace import ROOT

INVENTED = {"acme", "acme_attention", "build"}
"""First parts of paths that no clone has: the plugin that the guide writes, what commands write."""

SHELLS = {"sh", "bash", "shell", "console"}
FILE = re.compile(r"\.(?:py|pyi|md|toml|txt|json|html|yml|yaml|cfg|cff)$")
MARKDOWN = MarkdownIt("commonmark").enable("table")


def pages() -> list[Path]:
    """Every Markdown file, but those of hidden and built folders."""
    return sorted(
        page
        for page in ROOT.rglob("*.md")
        if not any(
            part.startswith(".") or part in ("build", "dist", "node_modules")
            for part in page.relative_to(ROOT).parts
        )
    )


each_page = pytest.mark.parametrize(
    "page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix()
)


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    """Those of the blocks and, after each block, those of its text."""
    found: list[Token] = []
    for token in MARKDOWN.parse(page.read_text("utf-8")):
        found += [token, *(token.children or ())]
    return tuple(found)


def links(page: Path) -> Iterator[str]:
    """Targets of links and images."""
    for token in tokens(page):
        target = token.attrGet("href" if token.type == "link_open" else "src")
        if target is not None:
            yield str(target)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Names of the headings, as GitHub makes them, and those written in HTML."""
    found: list[str] = []
    seen: Counter[str] = Counter()
    for opening, inline in pairwise(tokens(page)):
        if opening.type == "heading_open":
            text = "".join(t.content for t in inline.children or () if t.type != "image")
            name = slug(text)
            found.append(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    found += re.findall(r'<\w+ [^>]*(?:id|name)="([^"]+)"', page.read_text("utf-8"))
    return frozenset(found)


def slug(heading: str) -> str:
    """In lower case, with hyphens for spaces, and of the rest letters, digits, - and _ alone."""
    kept = (
        char
        for char in heading.strip().lower()
        if char in " -_" or unicodedata.category(char)[0] in "LMN"
    )
    return "".join(kept).replace(" ", "-")


def broken(page: Path, target: str) -> str | None:
    """What is wrong with a link; None where its end exists, or is not in this repository."""
    address = urlsplit(target)
    if address.scheme or address.netloc:
        return None
    end = (page.parent / unquote(address.path)).resolve() if address.path else page
    if not end.is_relative_to(ROOT):
        return f"{target} leads out of the repository"
    if not end.exists():
        return f"{target} does not exist"
    if address.fragment and unquote(address.fragment) not in anchors(end):
        return f"{target}: no heading of that name"
    return None


def paths(page: Path) -> Iterator[str]:
    """Words of code and commands that look like paths: a slash last, or one and a file's ending."""
    for token in tokens(page):
        if token.type == "code_inline" or (
            token.type == "fence" and token.info.partition(" ")[0] in SHELLS
        ):
            for word in token.content.split():
                path = word.strip("\"'(),;:")
                if path.startswith("/") or "://" in path or "{" in path or "/" not in path:
                    continue
                if FILE.search(path) or path.endswith("/"):
                    yield path


def exists(page: Path, path: str) -> bool:
    """Whether there is such a file or folder, seen from the root, the page or its package.

    `<name>` stands for any name, as in `plugins/<family>/`, and … for any folders.
    """
    pattern = re.sub(r"<[^<>]+>", "*", path).replace("…", "**").rstrip("/")
    starts = [ROOT, page.parent, *page.parent.glob("src"), *page.parent.glob("src/*")]
    return any(
        found.is_dir() or not path.endswith("/")
        for start in starts
        for found in start.glob(pattern)
    )


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    assert [wrong for target in links(page) if (wrong := broken(page, target))] == []


@each_page
def test_paths_in_code_exist(page: Path) -> None:
    named = (path for path in paths(page) if path.partition("/")[0] not in INVENTED)
    assert [path for path in named if not exists(page, path)] == []


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("docs/tour.md", None),
        ("docs", None),
        ("https://example.org/nowhere", None),
        ("docs/tour.md#quick-start", None),
        ("docs/tour.md#quick-stop", "docs/tour.md#quick-stop: no heading of that name"),
        ("docs/detour.md", "docs/detour.md does not exist"),
        ("../elsewhere", "../elsewhere leads out of the repository"),
    ],
)
def test_a_broken_link_is_seen(target: str, wrong: str | None) -> None:
    assert broken(ROOT / "README.md", target) == wrong


def test_a_missing_path_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("See `docs/tour.md` and `docs/<name>.md`, not `docs/detour.md` or `a / b`.\n")
    assert [(path, exists(page, path)) for path in paths(page)] == [
        ("docs/tour.md", True),
        ("docs/<name>.md", True),
        ("docs/detour.md", False),
    ]


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("Quick start", "quick-start"),
        ("What is new, and since when?", "what-is-new-and-since-when"),
        ("`flash` – the_tiles", "flash--the_tiles"),
        ("Nyströmformer", "nyströmformer"),
    ],
)
def test_headings_are_named_as_on_github(heading: str, name: str) -> None:
    assert slug(heading) == name
