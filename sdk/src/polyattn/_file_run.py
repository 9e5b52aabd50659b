"""A mechanism on arrays in files: reading them, computing in blocks, writing what comes out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polyattn_registry as registry
from polyattn_core.errors import ArgumentError, CapabilityError, DataError
from polyattn_core.spec import STATISTICS, MechanismSpec

from . import _blocks, _files
from ._blocks import Array, Inputs, Plan

_ROLES = ("query", "key", "value", "mask", "bias")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to run on what."""

    name: str
    options: Mapping[str, Any]
    output: Path
    archive: Path | None = None
    """A file that holds arrays by name."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """.npy files by the name of the array."""
    parameters: Path | None = None
    statistics: tuple[str, ...] = ()
    block: int | None = None


@dataclass(frozen=True)
class Written:
    """An array that was written."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Report:
    """What was done."""

    mechanism: Any
    inputs: Mapping[str, Array]
    written: tuple[Written, ...]
    plan: Plan
    seconds: float
    preparing: float
    """Seconds of these in which kernels were compiled, or loaded from the cache."""
    learned: bool
    """Were learned arrays given?"""


Progress = Callable[[int, int], None]
"""Told how many of how many queries are done."""


def carry_out(request: Request, progress: Progress = lambda done, total: None) -> Report:
    """Run a mechanism on files.

    Raises
    ------
    FileFormatError, DataError
        Where a file cannot be read, or holds arrays of other names than the mechanism takes.
    CapabilityError, ArgumentError
        Where a statistic is asked for that the mechanism does not have.
    """
    spec = registry.spec(request.name)
    assert isinstance(spec, MechanismSpec)  # the kind of entry that was asked for
    _check_statistics(request.statistics, spec)
    with _files.Output(request.output) as output:
        inputs = _read(request, [side.name for side in spec.capabilities.side_inputs])
        mechanism = _create(request, inputs)
        chosen = _blocks.plan(mechanism, inputs, request.statistics, request.block)
        total = math.prod(chosen.axes) * chosen.unit
        so_far = 0

        def done(queries: int) -> None:
            nonlocal so_far
            so_far += queries
            progress(so_far, total)

        with _preparation() as kernels:
            start = time.perf_counter()
            _blocks.attend(mechanism, inputs, chosen, request.statistics, output, done)
        shapes = {name: (array.shape, array.dtype.name) for name, array in output.arrays.items()}
        places = output.finish()
        seconds = time.perf_counter() - start
    written = tuple(Written(name, places[name], *shapes[name]) for name in shapes)
    learned = request.parameters is not None
    return Report(mechanism, _named(inputs), written, chosen, seconds, sum(kernels), learned)


@contextmanager
def _preparation() -> Iterator[list[float]]:
    """Collects the seconds that getting each kernel ready takes."""
    from polyattn_core.simd import jit

    found: list[float] = []

    def listen(kernel: str, seconds: float, from_cache: bool) -> None:
        found.append(seconds)

    jit.listeners.append(listen)
    try:
        yield found
    finally:
        jit.listeners.remove(listen)


def _check_statistics(names: tuple[str, ...], spec: MechanismSpec) -> None:
    # Before anything is read: that may take a while.
    able = spec.capabilities.statistics
    for name in names:
        if name not in STATISTICS:
            raise ArgumentError("statistics", name, ", ".join(able) or "none for this mechanism")
        if name not in able:
            others = registry.having("statistics", name)[:6]
            raise CapabilityError(spec.full_name, f"the statistic {name!r}", others)


def _read(request: Request, side_names: list[str]) -> Inputs:
    arrays = {} if request.archive is None else _files.read_arrays(request.archive)
    for name, file in request.files.items():
        if name in arrays:
            raise DataError(name, f"in {request.archive} and in {file}", "one of both")
        arrays[name] = _files.read_array(file)
    accepted = (*_ROLES, *side_names)
    for name in arrays:
        if name not in accepted:
            raise DataError(name, "an array", f"arrays called {', '.join(accepted)}")
    if "query" not in arrays:
        found = ", ".join(arrays) or "no arrays"
        raise DataError("query", found, "an array called query, or --query FILE.npy")
    query, key, value, mask, bias = (arrays.get(role) for role in _ROLES)
    assert query is not None
    key = query if key is None else key
    side = {name: arrays[name] for name in side_names if name in arrays}
    return Inputs(query, key, key if value is None else value, mask, bias, side)


def _create(request: Request, inputs: Inputs) -> Any:
    shape = inputs.query.shape
    if not shape:
        raise DataError("query", "a single number", "an array (..., tokens, dim)")
    mechanism = registry.create(request.name, **{"dim": shape[-1], **request.options})
    if request.parameters is not None:
        if not request.parameters.is_file():
            raise DataError("parameters", str(request.parameters), "a file that exists")
        mechanism.parameters.load(request.parameters)
    return mechanism


def _named(inputs: Inputs) -> dict[str, Array]:
    found = {role: getattr(inputs, role) for role in _ROLES} | dict(inputs.side)
    return {name: array for name, array in found.items() if array is not None}
