"""Running mechanisms on tiny arrays, so that their kernels get compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

import polyattn_registry as registry
from polyattn_core.arrays import named_dtype, split_heads
from polyattn_core.caches import KVCache
from polyattn_core.caches.rows import STORAGES
from polyattn_core.errors import ConfigError
from polyattn_core.masks import Causal
from polyattn_core.simd import jit
from polyattn_core.spec import ConformanceCase, MechanismSpec, resolve

_QUERIES, _KEYS, _HEADS, _DIM = 3, 5, 2, 16
_MANY = 32
"""Tokens for which the kernel for bfloat16 is chosen."""
_AXES: tuple[tuple[str, Any], ...] = (("softcap", 1.0), ("position", "alibi"))
"""Options that bring score rules with them, which are compiled too."""


class Compiled(NamedTuple):
    """A kernel that got ready."""

    kernel: str
    seconds: float
    from_cache: bool


def exercise(spec: MechanismSpec, dtypes: tuple[str, ...]) -> list[Compiled]:
    """Run everything that a mechanism declares; returns the kernels that this made ready."""
    ready: list[Compiled] = []

    def listen(kernel: str, seconds: float, from_cache: bool) -> None:
        ready.append(Compiled(kernel, seconds, from_cache))

    jit.listeners.append(listen)
    try:
        for mechanism, side in _set_up(spec):
            for dtype in dtypes:
                if dtype in spec.capabilities.dtypes:
                    _run(mechanism, side, np.dtype(dtype))
    finally:
        jit.listeners.remove(listen)
    return ready


@contextmanager
def beside(names: Sequence[str], dtypes: Sequence[str]) -> Iterator[Beside]:
    """Compile for these data types in a process of its own, into the cache, while others go on.

    One process compiles one kernel at a time. Kernels are of one data type each, so that two
    processes with different ones do nothing twice.
    """
    command = [sys.executable, "-m", "polyattn", "warmup", *names, "--json"]
    for dtype in dtypes:
        command += ["--dtype", dtype]
    if not dtypes or (os.cpu_count() or 1) < 2:
        yield Beside(None)
        return
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield Beside(process)
        finally:
            process.kill()


class Beside:
    """A process that compiles; what it cannot do is left to whoever started it."""

    def __init__(self, process: subprocess.Popen[bytes] | None) -> None:
        self._process = process

    def wait(self) -> dict[str, Compiled]:
        """The kernels that it compiled, by name, once it is done."""
        if self._process is None:
            return {}
        output, _ = self._process.communicate()
        try:
            kernels = [Compiled(**kernel) for kernel in json.loads(output)["kernels"]]
        except (ValueError, KeyError, TypeError):
            return {}
        return {kernel.kernel: kernel for kernel in kernels if not kernel.from_cache}


def _set_up(spec: MechanismSpec) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Mechanisms to run, with their side inputs: as their plugin has them tested."""
    name = spec.full_name
    known = resolve(spec.config).model_fields
    for case in registry.conformance_cases(name) or [ConformanceCase(mechanism=name)]:
        options = {"dim": _DIM, "heads": _HEADS, **case.options}
        mechanism = registry.create(name, **options)
        config = mechanism.config
        keys = _keys(spec)
        side = {}
        if case.inputs:
            make = resolve(case.inputs)
            rng = np.random.default_rng(0)
            side = make(rng, (1,), config.heads, _QUERIES, keys, config.dim)
        yield mechanism, side
        for option, value in _AXES:
            if option in known and option not in options:
                try:
                    yield registry.create(name, **options, **{option: value}), side
                except ConfigError:
                    continue  # not with this rule


def _keys(spec: MechanismSpec) -> int:
    return _KEYS if spec.capabilities.cross else _QUERIES


def _run(mechanism: Any, side: Mapping[str, Any], dtype: np.dtype[Any]) -> None:
    able, config = mechanism.capabilities, mechanism.config
    rng = np.random.default_rng(0)
    width = config.head_dim * config.key_heads
    query = rng.standard_normal((1, _QUERIES, config.dim)).astype(dtype)
    key, value = rng.standard_normal((2, 1, _keys(mechanism.spec), width)).astype(dtype)
    output = mechanism(query, key, value, **side)
    if "causal" in able.masks:
        mechanism(query, key, value, mask=Causal(), **side)
    if able.gradient:
        _, pullback = mechanism.vjp(query, key, value, **side)
        pullback(np.ones_like(output))
    heads = (
        split_heads(query, config.heads, "query"),
        split_heads(key, config.key_heads, "key"),
        split_heads(value, config.key_heads, "value"),
    )
    if able.statistics:
        mechanism.observe(*heads, *able.statistics, **side)
    if able.partial:
        mechanism.attend_partial(*heads, **side)
        if not side:
            _decode(mechanism, dtype)
    if not side and dtype == np.float32 and "bfloat16" in able.dtypes and find_spec("ml_dtypes"):
        low = named_dtype("bfloat16")
        many = (np.resize(x, (1, _MANY, x.shape[-1])).astype(low) for x in (query, key, value))
        mechanism(*many)


def _decode(mechanism: Any, dtype: np.dtype[Any]) -> None:
    """Attend to caches in each format that is computed with in this data type."""
    rng = np.random.default_rng(0)
    size = mechanism.config.head_dim
    query = rng.standard_normal((1, mechanism.config.heads, 1, size)).astype(dtype)
    key, value = rng.standard_normal((2, 1, mechanism.config.key_heads, 1, size)).astype(dtype)
    for storage in STORAGES:
        if (storage == "float64") == (dtype == np.float64):
            cache = KVCache.of(mechanism, storage=storage)
            cache.append(key, value)
            mechanism.attend_cached(query, cache)
