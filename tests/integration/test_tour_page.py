"""The code of docs/tour.md runs, from top to bottom, and says what its comments promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tour.md"


def test_the_page_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 19
    scope: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), scope)
    printed = capsys.readouterr().out
    assert "did you mean 'causal'?" in printed
    assert "did you mean 'gpt2'" in printed
    assert "source: got missing c_proj.bias (output.bias here); expected exactly" in printed
    assert "recommendation" in printed
    assert (tmp_path / "layer.safetensors").exists()
