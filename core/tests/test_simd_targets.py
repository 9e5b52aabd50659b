"""Kernels for other processors than this one, and the memory that they take."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from polyattn_core.simd import target

CHECK = """
import numpy as np
from polyattn_core.masks import Causal
from polyattn_core.simd import target
from polyattn_core.spec import Capabilities, MechanismSpec
from polyattn_core.streaming import ScaledConfig, StreamingMechanism
spec = MechanismSpec(
    name="a", family="b", summary="", factory="a:b", config="a:b", reference="a:b",
    capabilities=Capabilities(),
)
mechanism = StreamingMechanism(ScaledConfig(dim=14, heads=2, softcap=5.0), spec=spec)
rng = np.random.default_rng(0)
query, key, value, incoming = (
    rng.standard_normal((2, n, 7)).astype(np.float32) for n in (37, 70, 70, 37)
)
visible = np.arange(70) <= np.arange(37)[:, None] + 33

def exact(query, key, value):
    scores = 5 * np.tanh(query @ key.swapaxes(-1, -2) / np.sqrt(7) / 5)
    weights = np.exp(np.where(visible, scores, -np.inf))
    return weights / weights.sum(axis=-1, keepdims=True) @ value

at = [x.astype(np.float64) for x in (query, key, value)]
output, pull = mechanism.attend_vjp(query, key, value, mask=Causal())
assert np.abs(output - exact(*at)).max() < 2e-6
found = pull(incoming)
for n, gradient in enumerate((found.query, found.key, found.value)):
    direction = rng.standard_normal(gradient.shape)
    ahead, behind = (
        exact(*[x + sign * 1e-5 * direction if m == n else x for m, x in enumerate(at)])
        for sign in (1, -1)
    )
    slope = ((ahead - behind) * incoming).sum() / 2e-5
    assert abs(np.vdot(gradient, direction) - slope) < 1e-4
tile = target.tile("float32")
print(tile.lanes, tile.queries % tile.lanes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "lanes"),
    [
        ({"NUMBA_CPU_NAME": "generic"}, 4),
        ({"POLYATTN_VECTOR_BYTES": "16"}, 4),
        ({"POLYATTN_VECTOR_BYTES": "32"}, 8),
    ],
    ids=["generic", "16 bytes", "32 bytes"],
)
def test_narrower_vectors_give_the_same(
    run_python: Any, environment: dict[str, str], lanes: int
) -> None:
    assert run_python(CHECK, **environment).split() == [str(lanes), "0"]


@pytest.fixture
def _fresh() -> Any:
    functions = (target.cpu_name, target.cpu_features, target.vector_bytes, target.tile)
    for function in functions:
        function.cache_clear()
    yield
    for function in functions:
        function.cache_clear()


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    ("name", "features", "size"),
    [
        ("generic", None, 16),
        ("x86-64", None, 16),
        ("haswell", None, 32),
        ("znver3", None, 32),
        ("skylake", None, 32),
        ("skylake-avx512", None, 64),
        ("icelake-server", None, 64),
        ("znver5", None, 64),
        ("apple-m1", None, 16),
        ("anything", "+avx2,+fma", 32),
        ("anything", "+avx2", 16),
        ("anything", "+avx512f,-avx2", 64),
    ],
)
def test_vectors_of_processors_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, features: str | None, size: int
) -> None:
    monkeypatch.delenv("POLYATTN_VECTOR_BYTES", raising=False)
    monkeypatch.setattr(target.config, "CPU_NAME", name)
    monkeypatch.setattr(target.config, "CPU_FEATURES", features)
    assert target.vector_bytes() == size
    for dtype, width in (("float32", 4), ("float64", 8)):
        tile = target.tile(dtype)
        assert tile.lanes == size // width
        assert tile.queries == tile.lanes * tile.columns


@pytest.mark.usefixtures("_fresh")
def test_vectors_of_a_size_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYATTN_VECTOR_BYTES", "48")
    with pytest.raises(ValueError, match="POLYATTN_VECTOR_BYTES: got '48'; expected 16, 32 or 64"):
        target.vector_bytes()


MEMORY = """
import resource
import numpy as np
from polyattn_core.spec import Capabilities, MechanismSpec
from polyattn_core.streaming import ScaledConfig, StreamingMechanism
spec = MechanismSpec(
    name="a", family="b", summary="", factory="a:b", config="a:b", reference="a:b",
    capabilities=Capabilities(),
)
mechanism = StreamingMechanism(ScaledConfig(dim=64, causal=True), spec=spec)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def attend(n, backward):
    query, key, value = np.random.default_rng(0).standard_normal((3, 1, 1, n, 64), np.float32)
    before = peak()
    if not backward:
        mechanism.attend(query, key, value)
        return peak() - before
    output, pull = mechanism.attend_vjp(query, key, value)
    pull(output)
    return peak() - before

attend(600, True)  # compiles
print(attend({tokens}, {backward}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux counts it")
@pytest.mark.parametrize(("tokens", "backward", "arrays"), [(32_768, False, 1), (12_288, True, 4)])
def test_memory_grows_with_tokens_not_with_pairs(
    run_python: Any, tokens: int, backward: bool, arrays: int
) -> None:
    code = MEMORY.replace("{tokens}", str(tokens)).replace("{backward}", str(backward))
    results = arrays * tokens * 64 * 4
    # The scores alone would be 4 GB, or 600 MB with gradients.
    assert int(run_python(code)) < results + 64 * 2**20
