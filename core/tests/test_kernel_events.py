"""Compilations reach the bus, from wherever a kernel is first used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polyattn_core import kernel_events
from polyattn_core.diagnostics import KernelCompiled
from polyattn_core.simd import notices
from polyattn_core.simd.rules import score_rule


def test_compiling_and_loading_are_told(listen: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("POLYATTN_CACHE_DIR", str(tmp_path))
    seen = listen(KernelCompiled)
    for _ in range(2):

        @score_rule
        def thrice(score, unused):  # type: ignore[no-untyped-def]
            return np.float32(3) * score

        thrice.address("float32", backward=False)
        thrice.address("float32", backward=False)
    first, second = seen
    assert "thrice" in first.kernel
    assert first.kernel == second.kernel
    assert (first.from_cache, second.from_cache) == (False, True)
    assert 0 < second.seconds < first.seconds < 60


def test_with_nobody_listening_nothing_is_published(monkeypatch: Any) -> None:
    def forbidden(event: object) -> None:
        raise AssertionError("published")

    monkeypatch.setattr("polyattn_core.diagnostics.publish", forbidden)
    notices.tell("kernel", 1.0, False)


def test_connecting_again_changes_nothing(listen: Any) -> None:
    kernel_events.connect()
    kernel_events.connect()
    seen = listen(KernelCompiled)
    notices.tell("kernel", 1.0, True)
    assert seen == [KernelCompiled(kernel="kernel", seconds=1.0, from_cache=True)]


def test_the_first_kernel_of_a_process_is_told_and_numba_loads_late(run_python: Any) -> None:
    code = """
import sys
import numpy as np
from polyattn_core import diagnostics
seen = []
diagnostics.subscribe(diagnostics.KernelCompiled, seen.append)
from polyattn_core.mechanism import Mechanism
from polyattn_core.spec import Capabilities, MechanismSpec
from polyattn_core.streaming import ScaledConfig, StreamingMechanism
spec = MechanismSpec(
    name="a", family="b", summary="", factory="a:b", config="a:b", reference="a:b"
)
attention = StreamingMechanism(ScaledConfig(dim=4), spec=spec)
assert "numba" not in sys.modules
attention(np.ones((3, 4)))
assert "numba" in sys.modules
print([event.kernel.split(".")[2] for event in seen])
"""
    assert run_python(code) == "['forward']\n"
