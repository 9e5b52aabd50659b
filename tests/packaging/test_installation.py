"""A family installs alone, from wheels and from a clone, and knows of what is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from environments import Environment, run
from workspace import DISTRIBUTIONS, ROOT

pytestmark = pytest.mark.slow

ALONE = ("polyattn-core", "polyattn-registry", "polyattn", "polyattn-sparse")

REPORT = """
import json
import polyattn
try:
    polyattn.create("sinkhorn")
except Exception as error:
    message = str(error)
names = list(polyattn.available())
families = sorted({polyattn.spec(name).family for name in names})
print(json.dumps({"names": names, "families": families, "message": message}))
"""


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An environment with what the distributions of ALONE require from elsewhere."""
    lines = [
        line
        for dist in DISTRIBUTIONS
        if dist.name in ALONE
        for line in dist.manifest["project"]["dependencies"]
        if Requirement(line).name not in ALONE
    ]
    made = Environment(tmp_path / "environment")
    made.install("hatchling>=1.27", *lines)
    return made


def check_only_sparse(environment: Environment) -> None:
    report = json.loads(environment.run(REPORT))
    assert "flash" in report["names"]
    assert report["families"] == ["sparse"]
    assert "pip install polyattn-transport" in report["message"]
    script = environment.bin / "polyattn"
    assert "compare" in run(script, "--help", cwd=environment.folder)


def test_a_family_installs_alone(environment: Environment, wheels: dict[str, Path]) -> None:
    # Without an index: all that is missing now are these wheels.
    environment.install("--no-index", *(wheels[name] for name in ALONE))
    check_only_sparse(environment)


def test_a_clone_installs_with_pip(environment: Environment) -> None:
    environment.pip_install("--no-index", "--no-build-isolation", ".[sparse]", cwd=ROOT)
    check_only_sparse(environment)
