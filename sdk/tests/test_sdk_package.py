"""What `import polyattn` gives, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import polyattn as pa

HEAVY = {"llvmlite", "numba", "numpy", "pydantic", "rich", "scipy", "typer"}


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nprint(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "code",
    [
        "import polyattn",
        "import polyattn; polyattn.available(), polyattn.plugins(), polyattn.spec('flash')",
        "import polyattn; polyattn.presets(), polyattn.MechanismSpec, polyattn.diagnostics",
    ],
)
def test_looking_around_is_light(code: str) -> None:
    assert not modules_after(code) & HEAVY


def test_every_public_name_is_there_and_documented() -> None:
    for name in pa.__all__:
        assert getattr(pa, name) is not None
        assert getattr(pa, name).__doc__ or name == "squared_norm", name
    assert set(pa.__all__) <= set(dir(pa))


def test_names_on_first_use_are_those_of_core() -> None:
    import polyattn_core.masks
    import polyattn_core.simd.rules

    assert pa.masks.Causal is polyattn_core.masks.Causal
    assert pa.score_rule is polyattn_core.simd.rules.score_rule
    assert "score_rule" in vars(pa)  # kept: found without __getattr__ from now on


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'polyattn' has no attribute 'flush'"):
        pa.flush  # noqa: B018
