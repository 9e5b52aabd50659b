"""How rows of numbers lie in memory, and how a vector of them is read into registers.

==========  ======================================================================================
format      a row of numbers
==========  ======================================================================================
float32     as they are; float64 likewise
float16     as they are, as 16-bit integers
bfloat16    the upper halves of float32, as 16-bit integers
int8        whole numbers from −127 to 127, times the scale of their group
int4        whole numbers from −7 to 7 in two's complement, times the scale of their group; byte i
            of each 16 holds number i of the 32 in its lower half, number i + 16 in its upper half
==========  ======================================================================================

Kernels widen to the dtype that they compute in: nothing else of a packed row is ever in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types

from . import target
from .vector import Vectors, index

BLOCK = 32
"""Packed rows hold a multiple of so many numbers, and so do groups."""


@dataclass(frozen=True)
class Format:
    """One way for numbers to lie in memory."""

    name: str
    dtype: str
    """What it is computed in."""
    element: str
    """NumPy's name of an element of the stored array."""
    scaled: bool = False
    per_element: int = 1
    """Numbers in an element."""

    @property
    def element_type(self) -> Any:
        """Numba's type of an element."""
        return getattr(types, self.element)

    @property
    def number_type(self) -> Any:
        """Numba's type of what is computed in."""
        return getattr(types, self.dtype)

    @property
    def packed(self) -> bool:
        """Are rows padded to whole blocks?"""
        return self.element != self.dtype

    def unit(self, lanes: int) -> int:
        """Vectors that have to be read together, from a multiple of as many numbers."""
        return max(BLOCK // lanes, 1) if self.per_element > 1 else 1

    def load(self, builder: Any, vectors: Vectors, row: Any, start: Any, offset: int) -> Any:
        """Numbers start + offset … of a row, one a lane; `start` is a multiple of the unit."""
        lanes = vectors.lanes
        if self.name in ("float32", "float64"):
            return vectors.load(builder, row, builder.add(start, index(offset)))
        narrow = ir.IntType(16 if self.element == "uint16" else 8)
        at = builder.add(start, index(offset))
        if self.per_element > 1:
            half = builder.lshr(start, index(1))
            at = builder.add(half, index(offset // BLOCK * (BLOCK // 2) + offset % (BLOCK // 2)))
        kind = ir.VectorType(narrow, lanes)
        place = builder.bitcast(builder.gep(row, [at]), ir.PointerType(kind))
        packed = builder.load(place, typ=kind)
        packed.align = narrow.width // 8
        whole = ir.VectorType(ir.IntType(32), lanes)

        def constant(value: int) -> Any:
            return ir.Constant(whole, [value] * lanes)

        if self.name == "int8":
            return builder.sitofp(builder.sext(packed, whole), vectors.type)
        if self.name == "float16" and _converts_halves():
            return builder.fpext(
                builder.bitcast(packed, ir.VectorType(ir.HalfType(), lanes)), vectors.type
            )
        wide = builder.zext(packed, whole)
        if self.name == "int4":
            upper = offset % BLOCK >= BLOCK // 2
            if lanes == 16 and "avx512f" in target.cpu_features():
                return _looked_up(builder, vectors, wide, upper)
            high = builder.shl(wide, constant(24 if upper else 28))
            return builder.sitofp(builder.ashr(high, constant(28)), vectors.type)
        if self.name == "bfloat16":
            return builder.bitcast(builder.shl(wide, constant(16)), vectors.type)
        return _half(builder, vectors, wide, constant)


def _converts_halves() -> bool:
    """Does the processor convert vectors of halves? Where not, LLVM would call a library."""
    return bool(target.cpu_features() & {"f16c", "avx512f", "neon"})


def _looked_up(builder: Any, vectors: Vectors, wide: Any, upper: bool) -> Any:
    """The numbers that halves of bytes stand for, from a table held in a register.

    The instruction looks at the lowest 4 bits alone: one operation in place of three.
    """
    table = ir.Constant(vectors.type, [float(n) for n in (*range(8), *range(-8, 0))])
    if upper:
        wide = builder.lshr(wide, ir.Constant(wide.type, [4] * vectors.lanes))
    kind = ir.FunctionType(vectors.type, [vectors.type, wide.type])
    name = "llvm.x86.avx512.permvar.sf.512"
    look_up = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(look_up, [table, wide])


def _half(builder: Any, vectors: Vectors, wide: Any, constant: Any) -> Any:
    """float16 bits in 32-bit integers, by integer operations alone."""
    shifted = builder.shl(builder.and_(wide, constant(0x7FFF)), constant(13))
    # The exponents' biases differ by 112; subnormal halves come out right too.
    small = builder.fmul(builder.bitcast(shifted, vectors.type), vectors.constant(2.0**112))
    bits = builder.bitcast(small, wide.type)
    special = builder.icmp_signed(">=", shifted, constant(0x7C00 << 13))
    bits = builder.select(special, builder.or_(shifted, constant(0x7F800000)), bits)
    sign = builder.shl(builder.and_(wide, constant(0x8000)), constant(16))
    return builder.bitcast(builder.or_(bits, sign), vectors.type)


FORMATS = {
    found.name: found
    for found in (
        Format("float64", "float64", "float64"),
        Format("float32", "float32", "float32"),
        Format("float16", "float32", "uint16"),
        Format("bfloat16", "float32", "uint16"),
        Format("int8", "float32", "int8", scaled=True),
        Format("int4", "float32", "uint8", scaled=True, per_element=2),
    )
}

_LARGEST = {"int8": 127, "int4": 7}


def pack(array: npt.NDArray[Any], name: str, group: int) -> tuple[npt.NDArray[Any], Any]:
    """Rows (…, numbers) as a format holds them, and the scales (…, groups) of their groups.

    `numbers` is a multiple of `group`, which is a multiple of 32, where the format has scales.
    What is not finite cannot be scaled: the caller looks.
    """
    if name == "float16":
        return array.astype(np.float16).view(np.uint16), None
    if name == "bfloat16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        # To nearest, ties to even; NaN stays one.
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16), None
    if not FORMATS[name].scaled:
        return array.astype(name, copy=False), None
    most = _LARGEST[name]
    grouped = array.astype(np.float32).reshape((*array.shape[:-1], -1, group))
    scales = np.abs(grouped).max(axis=-1) / np.float32(most)
    # Numbers that small are 0: the reciprocal of their scale would be infinite.
    inverse = 1 / np.where(scales < 1e-37, np.float32(1), scales)
    whole = np.rint(grouped * inverse[..., None]).astype(np.int8).reshape(array.shape)
    if name == "int8":
        return whole, scales
    blocks = whole.view(np.uint8).reshape((*array.shape[:-1], -1, 2, BLOCK // 2)) & 15
    return (blocks[..., 0, :] | blocks[..., 1, :] << 4).reshape((*array.shape[:-1], -1)), scales


def unpack(stored: npt.NDArray[Any], scales: Any, name: str) -> npt.NDArray[Any]:
    """What kernels read from packed rows, in the dtype that they compute in."""
    if name == "float16":
        return stored.view(np.float16).astype(np.float32)
    if name == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if not FORMATS[name].scaled:
        return stored
    whole = stored.view(np.int8)
    if name == "int4":
        lower = np.left_shift(whole, 4) >> 4
        blocks = np.stack(
            [part.reshape((*part.shape[:-1], -1, BLOCK // 2)) for part in (lower, whole >> 4)],
            axis=-2,
        )
        whole = blocks.reshape((*stored.shape[:-1], -1))
    grouped = whole.astype(np.float32).reshape((*scales.shape, -1))
    return (grouped * scales[..., None]).reshape(whole.shape)
