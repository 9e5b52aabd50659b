"""The plugin of docs/plugins.md, taken from the page: it installs, lists, computes and conforms."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds the plugin as an installed distribution."""
    folder = tmp_path_factory.mktemp("site")
    blocks = re.findall(r"```(toml|python)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (_, project), (_, manifest), (_, mechanism) = blocks
    metadata = tomllib.loads(project)["project"]
    assert metadata["readme"] == "README.md"
    (readme,) = re.findall(r"```markdown\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    package = folder / "acme_attention"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(manifest, "utf-8")
    (package / "laplacian.py").write_text(mechanism, "utf-8")
    info = folder / "acme_attention-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {metadata['name']}\nVersion: {metadata['version']}\n"
        f"\n{readme}",
        "utf-8",
    )
    points = metadata["entry-points"]["polyattn.plugins"]
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[polyattn.plugins]\n{lines}\n")
    return folder


def run(site, *command):
    path = os.pathsep.join((str(site), *filter(None, [os.environ.get("PYTHONPATH")])))
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        cwd=site,
    )


def test_is_found_and_computes(site):
    done = run(
        site,
        "-c",
        "import numpy as np, polyattn as pa\n"
        "assert 'laplacian' in pa.available()\n"
        "x = np.random.default_rng(0).normal(size=(70, 8))\n"
        "out = pa.create('laplacian', dim=8, gamma=2.0)(x)\n"
        "from scipy.spatial.distance import cdist\n"
        "from scipy.special import softmax\n"
        "assert np.allclose(out, softmax(-2.0 * cdist(x, x), axis=1) @ x, atol=1e-5)\n",
    )
    assert done.returncode == 0, done.stderr


def test_conforms(site):
    done = run(
        site, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--polyattn-conformance", "acme", "."
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* passed", done.stdout), done.stdout
