"""Digests of functions: they tell apart what computes differently, and nothing else."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from polyattn_core.diagnostics import KernelCompiled
from polyattn_core.simd.content import digest
from polyattn_core.simd.rules import score_rule

Scope = dict[str, Any]


def rule(source: str, **scope: Any) -> Any:
    exec(source, scope)
    return scope["rule"]


def helper(text: str) -> Any:
    return rule(f"def rule(x): return {text}")


def module(**members: Any) -> types.ModuleType:
    made = types.ModuleType("helpers")
    vars(made).update(members)
    return made


def closed_over(value: Any) -> Any:
    def rule(score):  # type: ignore[no-untyped-def]
        return score * value

    return rule


DIFFERENT = {
    "constants": (helper("x + 1"), helper("x + 2")),
    "operations": (helper("x + 1"), helper("x - 1")),
    "types of constants": (helper("x + 1"), helper("x + 1.0")),
    "members of constants": (helper("x in {1, 2}"), helper("x in {1, 3}")),
    "globals": (
        rule("def rule(x): return x * K", K=np.float32(1)),
        rule("def rule(x): return x * K", K=np.float32(2)),
    ),
    "types of globals": (
        rule("def rule(x): return x * K", K=np.float32(1)),
        rule("def rule(x): return x * K", K=np.float64(1)),
    ),
    "arrays": (
        rule("def rule(x): return x * K[0]", K=np.array([1.0, 2.0])),
        rule("def rule(x): return x * K[0]", K=np.array([1.0, 3.0])),
    ),
    "helpers": (
        rule("def rule(x): return h(x)", h=helper("x + 1")),
        rule("def rule(x): return h(x)", h=helper("x + 2")),
    ),
    "compiled helpers": (
        rule("def rule(x): return h(x)", h=numba.njit(helper("x + 1"))),
        rule("def rule(x): return h(x)", h=numba.njit(helper("x + 2"))),
    ),
    "helpers of helpers": (
        rule("def rule(x): return h(x)", h=rule("def rule(x): return g(x)", g=helper("x + 1"))),
        rule("def rule(x): return h(x)", h=rule("def rule(x): return g(x)", g=helper("x + 2"))),
    ),
    "helpers in modules": (
        rule("def rule(x): return m.h(x)", m=module(h=helper("x + 1"))),
        rule("def rule(x): return m.h(x)", m=module(h=helper("x + 2"))),
    ),
    "numbers in modules of modules": (
        rule("def rule(x): return x + m.n.K", m=module(n=module(K=1))),
        rule("def rule(x): return x + m.n.K", m=module(n=module(K=2))),
    ),
    "globals of inner functions": (
        rule("def rule(x):\n  def f(y): return y * K\n  return f(x)", K=1),
        rule("def rule(x):\n  def f(y): return y * K\n  return f(x)", K=2),
    ),
    "closures": (closed_over(np.float32(1)), closed_over(np.float32(2))),
    "defaults": (rule("def rule(x, y=1): return x"), rule("def rule(x, y=2): return x")),
    "keyword defaults": (
        rule("def rule(x, *, y=1): return x"),
        rule("def rule(x, *, y=2): return x"),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_digests_tell_apart(name: str) -> None:
    one, two = DIFFERENT[name]
    assert digest(one) == digest(one)
    assert digest(one) != digest(two)


def test_digests_of_the_same_content_are_the_same() -> None:
    one, two = (
        rule("def rule(x): return m.h(x) * K", m=module(h=helper("x + 1"), unused=n), K=3)
        for n in (1, 2)
    )
    assert digest(one) == digest(two)
    assert digest(numba.njit(one)) == digest(one)


def test_functions_that_call_each_other_have_a_digest() -> None:
    scope: Scope = {}
    exec("def rule(x): return other(x)\ndef other(x): return rule(x - 1) if x else 0", scope)
    assert digest(scope["rule"]) != digest(scope["other"])


def test_digests_are_the_same_in_every_process(run_python: Any) -> None:
    code = """
import numpy as np
from polyattn_core.simd.content import digest
from polyattn_core.simd.mathematics import tanh
K = np.arange(4.0)
def helper(x): return x in {"a", "b", "c"} or x in (1, 2.5, None)
def rule(score, y=("b", 1)):
    inner = lambda z: z + K[0]
    return np.float32(tanh(score)) if helper(score) else inner(score)
print(digest(rule))
"""
    seeds = [run_python(code, PYTHONHASHSEED=seed) for seed in ("1", "2")]
    assert len(set(seeds)) == 1


def test_a_rule_whose_helper_changed_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: Any
) -> None:
    monkeypatch.setenv("POLYATTN_CACHE_DIR", str(tmp_path))
    seen = listen(KernelCompiled)
    for amount in (1, 2, 1):
        inner = numba.njit(helper(f"x + {amount}"))
        function = rule("def rule(score): return m.h(score)", m=module(h=inner))
        score_rule(function).address("float32", backward=False)
    assert [event.from_cache for event in seen] == [False, False, True]
