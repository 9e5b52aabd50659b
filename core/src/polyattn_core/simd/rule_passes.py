"""Compiled passes of a score rule over a tile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numba
from numba.core import types
from numba.core.errors import NumbaError

from ..errors import KernelError
from . import rule_emission as emission
from . import target
from .content import digest
from .jit import WITHOUT_CALLS, callback
from .rule_definition import POSITIONS, WORDS, RuleDefinition
from .rule_emission import Kind
from .rule_graph import FLOAT


def compile_pass(
    rule: RuleDefinition, dtype: str, backward: bool, kinds: Mapping[str, Kind], proven: bool
) -> Any:
    """The compiled pass of a rule over a tile.

    Raises
    ------
    KernelError
        Where Numba cannot compile the rule, with its place in the source and Numba's reason.
    """
    number = types.float32 if dtype == "float32" else types.float64
    numbers, integers = types.CPointer(number), types.CPointer(types.int64)
    wide = target.tile(dtype).queries
    scope = emission.scope(dtype, wide)
    source, tag = pass_source(rule, dtype, backward, kinds, proven, scope)
    exec(source, scope)
    passed = (numbers, numbers, integers, *[numbers] * (6 if backward else 3))
    # What the arguments mean is in their names, which are no part of the code.
    tag = f"{rule.name}({', '.join(rule.arguments)}) {tag} {dtype} {wide}"
    try:
        return callback(scope["tile_pass"], types.void(*passed), tag)
    except NumbaError as error:
        raise KernelError(
            f"the score rule {rule.name} ({rule.place}) cannot be compiled: {error}"
        ) from error


def pass_source(
    rule: RuleDefinition, dtype: str, backward: bool, kinds: Mapping[str, Kind], proven: bool,
    scope: Any,
) -> tuple[str, str]:  # fmt: skip
    """Source of the pass, and what tells it from others."""
    reading = rule.reading(kinds)
    if not backward:
        if isinstance(reading, str):
            return _as_written(rule, rule.function, False, kinds, dtype, scope, reading)
        emitter = emission.Emitter(
            reading.graph, [reading.result], kinds, dtype, proven, scope["WIDE"]
        )
        source = emission.forward_source(emitter, reading.result)
    else:
        given = rule.derivatives(kinds)
        if isinstance(given, str):
            if rule.given is None:
                raise KernelError(f"the score rule {rule.name} has no derivative: {given}")
            return _as_written(rule, rule.given, True, kinds, dtype, scope, given)
        graph, partials, loads = given
        roots = [*partials.values(), *loads.values(), *loads]
        emitter = emission.Emitter(graph, roots, kinds, dtype, proven, scope["WIDE"])
        source = emission.backward_source(emitter, partials, loads, rule.arguments[0])
    return source, hashlib.sha256(source.encode()).hexdigest()


def _as_written(
    rule: RuleDefinition, function: Callable[..., Any], backward: bool, kinds: Mapping[str, Kind],
    dtype: str, scope: dict[str, Any], why: str,
) -> tuple[str, str]:  # fmt: skip
    """Source of a pass that calls the function as it is."""
    if rule.arrays:
        raise KernelError(
            f"the score rule {rule.name} ({rule.place}) indexes {', '.join(rule.arrays)}, "
            f"which it can only where it is read, and that fails: {why}"
        )
    scope["rule"] = numba.njit(**WITHOUT_CALLS)(function)
    slots = emission.places(kinds, dtype)
    words = {
        "batch": "meta[0]", "head": "meta[1]", "query": "(meta[2] + j)",
        "key": "(meta[3] + k)", "row": "row[j]", "column": "column[k]",
    }  # fmt: skip
    taken = []
    for name in rule.arguments[1:]:
        if name in kinds:
            whole = kinds[name].kind != FLOAT
            read = f"integer_at(parameters, {slots[name]})"
            taken.append(read if whole else f"parameters[{slots[name]}]")
        else:
            taken.append(words[WORDS[POSITIONS[name]] if name in POSITIONS else name])
    call = f"rule({', '.join(['scores[at]', *taken])})"
    tag = f"{digest(function)} {rule.key(kinds)}"
    loop = [
        "    for k in range(meta[4]):",
        "        of_column = ZERO",
        "        for j in range(WIDE):",
        "            at = k * WIDE + j",
    ]
    if not backward:
        head = "def tile_pass(scores, unused, meta, row, column, parameters):"
        return "\n".join([head, *loop, f"            scores[at] = {call}"]), tag
    names = rule.partials(kinds)
    own = [n for n in names if n in kinds]
    adds = {"row": "d_row[j]", "column": "of_column"} | {n: f"s_{n}" for n in own}
    lines = [
        "def tile_pass(scores, gradient, meta, row, column, parameters, d_row, d_column, d_parameters):",  # noqa: E501
        *[f"    s_{n} = ZERO" for n in own],
        *loop,
        "            incoming = gradient[at]",
        "            live = incoming != ZERO",
        # Taken apart, so that another number of partial derivatives does not compile.
        f"            {', '.join(f'by_{n}' for n in names)}, = {call}",
        # Products of every pair, chosen from afterwards: see `rule_emission.backward_source`.
        *[f"            to_{n} = by_{n} * incoming" for n in names],
        f"            gradient[at] = to_{names[0]} if live else ZERO",
        *[f"            {adds[n]} += to_{n} if live else ZERO" for n in names[1:]],
        *(["        d_column[k] += of_column"] if rule.column else []),
        *[f"    d_parameters[{slots[n]}] += s_{n}" for n in own if kinds[n].kind == FLOAT],
    ]
    return "\n".join(lines), tag
