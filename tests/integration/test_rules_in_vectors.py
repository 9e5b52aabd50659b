"""The score rules of all families run in vectors, forward and backward."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
from numba.core import types

from polyattn_core.simd import rule_emission, target
from polyattn_core.simd.jit import OPTIONS, CFunc, normalize_signature
from polyattn_core.simd.rule_passes import pass_source
from polyattn_core.simd.rules import ScoreRule
from workspace import DISTRIBUTIONS


def rules() -> dict[str, ScoreRule]:
    """All rules of modules of kernels, by module and name."""
    found: dict[str, ScoreRule] = {}
    names = [name for dist in DISTRIBUTIONS for name in dist.modules()]
    for name in names:
        kernels = ".kernels" in name or name == "polyattn_core.simd.builtin_rules"
        if kernels:
            for thing in vars(importlib.import_module(name)).values():
                if isinstance(thing, ScoreRule):
                    found[f"{thing.__module__}.{thing.name}"] = thing
    return found


RULES = rules()


def test_there_are_many() -> None:
    assert len(RULES) >= 18


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", RULES)
def test_pass_is_vectorised(name: str, backward: bool) -> None:
    rule = RULES[name]
    lanes = target.tile("float32").queries
    scope: dict[str, Any] = rule_emission.scope("float32", lanes)
    source, _ = pass_source(rule, "float32", backward, rule.usual_kinds(), True, scope)
    exec(source, scope)
    numbers, integers = types.CPointer(types.float32), types.CPointer(types.int64)
    signature = types.void(numbers, numbers, integers, *[numbers] * (6 if backward else 3))
    compiled = CFunc(scope["tile_pass"], normalize_signature(signature), {}, OPTIONS)
    compiled.compile()
    # A sum or product of vectors: scores are never only moved.
    text = compiled._library.get_llvm_str()
    assert re.search(r"= f(add|sub|mul|div)[a-z ]* <\d+ x float>", text), "no vectors"
    assert not re.search(rf"call i32 @\S*{rule.function.__name__}", text), "the rule is called"
