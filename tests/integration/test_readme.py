"""The code in the readme of the repository runs, in the order in which it is read."""

from __future__ import annotations

import linecache
import re
from typing import Any

from workspace import ROOT


def test_python_runs() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        # Score rules are compiled from their source, which has to be found.
        source = f"readme block {number}"
        linecache.cache[source] = (len(block), None, block.splitlines(keepends=True), source)
        exec(compile(block, source, "exec"), names)
    assert names["out"].shape == names["y"].shape == names["x"].shape
    assert names["choice"].mechanism
