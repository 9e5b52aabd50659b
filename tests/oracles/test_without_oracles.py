"""Where no oracle is installed, as after `make setup`, what compares with one is skipped."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from workspace import ROOT

HIDE = """
import sys
from importlib.abc import MetaPathFinder

ORACLES = {"entmax", "geoopt", "mpmath", "ot", "torch", "torch_geometric", "transformers"}


class Hidden(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ORACLES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hidden())
import pytest

sys.exit(pytest.main(["-m", "oracle", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]))
"""


@pytest.mark.slow
def test_oracles_that_are_not_installed_are_skipped() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HIDE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    summary = done.stdout.splitlines()[-1]
    assert int(re.findall(r"(\d+) skipped", summary)[0]) > 50, summary
