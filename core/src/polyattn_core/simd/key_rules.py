"""Score rules for one query at a time: the pass along keys that :mod:`decode` calls.

Compiled, like the pass over a tile, on its own and once; of a rule without statistics.
"""

from __future__ import annotations

import weakref
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.errors import NumbaError
from numba.extending import intrinsic

from ..errors import KernelError
from .content import digest
from .jit import WITHOUT_CALLS, callback
from .rules import POSITIONS, ScoreRule
from .vector import pointer

_compiled: weakref.WeakKeyDictionary[ScoreRule, dict[str, Any]] = weakref.WeakKeyDictionary()


def address(rule: ScoreRule, dtype: str) -> int:
    """Address of a rule's compiled pass over scores[: meta[4]] of one query.

    Raises
    ------
    KernelError
        Where Numba cannot compile the rule, with its place in the source and Numba's reason.
    """
    found = _compiled.setdefault(rule, {})
    if dtype not in found:
        # Of two threads the first one's is kept: its address may be in use already.
        found.setdefault(dtype, _compile(rule, dtype))
    return int(found[dtype].address)


def _compile(rule: ScoreRule, dtype: str) -> Any:
    number = types.float32 if dtype == "float32" else types.float64
    numbers, integers = types.CPointer(number), types.CPointer(types.int64)
    positions = ("meta[0]", "meta[1]", "meta[2]", "(meta[3] + k)")
    taken = [
        positions[POSITIONS[name]] if name in POSITIONS else f"p{rule.parameters.index(name)}"
        for name in rule.arguments[1:]
    ]
    source = "\n".join(
        [
            "def key_pass(scores, meta, parameters):",
            *[f"    p{i} = parameters[{i}]" for i in range(len(rule.parameters))],
            "    for k in range(meta[4]):",
            f"        scores[k] = rule({', '.join(['scores[k]', *taken])})",
        ]
    )
    scope = {"rule": numba.njit(**WITHOUT_CALLS)(rule.function), "__name__": __name__}
    exec(source, scope)
    # What the arguments mean is in their names, which are no part of the code.
    tag = f"{rule.name}({', '.join(rule.arguments)}) {digest(rule.function)} {dtype} keys"
    try:
        return callback(scope["key_pass"], types.void(numbers, integers, numbers), tag)
    except NumbaError as error:
        code = rule.function.__code__
        raise KernelError(
            f"the score rule {rule.name} ({code.co_filename}:{code.co_firstlineno}) cannot be "
            f"compiled: {error}"
        ) from error


@intrinsic  # type: ignore[untyped-decorator]
def call_rule(typing, address, scratch, scores, meta, parameters, head, offset):  # type: ignore[no-untyped-def]
    """Run a rule's pass over the scores at scratch[scores], with parameters[head, offset :]."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kinds = signature.args
        s = builder.gep(pointer(context, builder, kinds[1], args[1]), [args[2]])
        m = pointer(context, builder, kinds[3], args[3])
        shape = context.make_array(kinds[4])(context, builder, args[4]).shape
        row = builder.mul(args[5], builder.extract_value(shape, 1))
        p = pointer(context, builder, kinds[4], args[4])
        passed = [s, m, builder.gep(p, [builder.add(row, args[6])])]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in passed])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), passed)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(integer, scratch, integer, meta, parameters, integer, integer), emit


def offsets(rules: list[ScoreRule]) -> Any:
    """Where the parameters of each rule start."""
    counts = [len(rule.parameters) for rule in rules]
    return np.cumsum([0, *counts], dtype=np.int64)[:-1]
