"""What this processor's vectors are, and the tile shapes that suit it."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import llvmlite.binding as llvm
from numba.core import config

# Vector bytes of processors named by NUMBA_CPU_NAME; anything unknown gets the safe 16.
_WIDE = ("skylake-avx512", "cascadelake", "cooperlake", "icelake", "tigerlake", "sapphirerapids")
_NAMED = {
    64: (*_WIDE, "graniterapids", "znver4", "znver5", "x86-64-v4"),
    32: ("haswell", "broadwell", "skylake", "alderlake", "znver1", "znver2", "znver3", "x86-64-v3"),
}


@dataclass(frozen=True)
class Tile:
    """The shape of one tile, in the lanes-are-queries layout.

    A tile is `queries` = `columns` vectors of `lanes` queries wide; how many keys deep it is, a
    call says. `accumulators` vectors live in registers: the fewer columns, the more rows.
    """

    dtype: str
    lanes: int
    columns: int
    accumulators: int

    @property
    def queries(self) -> int:
        """Queries of one tile."""
        return self.lanes * self.columns


@functools.cache
def cpu_name() -> str:
    """The processor that code is generated for."""
    return str(config.CPU_NAME or llvm.get_host_cpu_name())


@functools.cache
def cpu_features() -> frozenset[str]:
    """Features of the processor that code is generated for, where they are known."""
    if config.CPU_FEATURES is not None:
        listed = config.CPU_FEATURES.split(",")
        return frozenset(name[1:] for name in listed if name.startswith("+"))
    if config.CPU_NAME:
        return frozenset()
    return frozenset(name for name, on in llvm.get_host_cpu_features().items() if on)


def machine_vector_bytes() -> int:
    """Bytes of the widest vectors of this machine, whatever code is generated for."""
    return _widest(frozenset(name for name, on in llvm.get_host_cpu_features().items() if on))


def _widest(features: frozenset[str]) -> int:
    if "avx512f" in features:
        return 64
    return 32 if {"avx2", "fma"} <= features else 16


@functools.cache
def vector_bytes() -> int:
    """Bytes of one vector register; POLYATTN_VECTOR_BYTES overrides what is found."""
    forced = os.environ.get("POLYATTN_VECTOR_BYTES")
    if forced:
        if forced not in ("16", "32", "64"):
            raise ValueError(f"POLYATTN_VECTOR_BYTES: got {forced!r}; expected 16, 32 or 64")
        return int(forced)
    if cpu_features():
        return _widest(cpu_features())
    for size, names in _NAMED.items():
        if cpu_name().startswith(names):
            return size
    return 16


@functools.cache
def tile(dtype: str) -> Tile:
    """The tile of a dtype on this processor: 16 accumulators of 32 registers, or 12 of 16."""
    lanes = vector_bytes() // (4 if dtype == "float32" else 8)
    many = vector_bytes() == 64 or "neon" in cpu_features()
    return Tile(dtype, lanes, columns=4, accumulators=16) if many else Tile(dtype, lanes, 3, 12)
