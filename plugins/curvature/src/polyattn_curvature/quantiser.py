"""Vectors in few bits, with another number of bits for each component.

>>> import numpy as np
>>> quantizer = ComponentQuantizer((4, 2, 2))
>>> x = np.random.default_rng(0).standard_normal((3, 8))
>>> packed = quantizer.pack(x)
>>> packed.codes.shape[-1], packed.nbytes  # 4 · 8 + 4 · 5 bits, and three steps
(7, 57)
>>> bool(np.all(abs(quantizer.unpack(packed) - x) <= quantizer.error_bound(packed)))
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, ShapeError


@dataclass(frozen=True, slots=True)
class PackedVectors:
    """Vectors (…,) as bits, and the step of each component."""

    codes: Array
    """(…, bytes), uint8: the codes of all coordinates one after another, each in its bits."""
    steps: Array
    """(…, components), float32."""

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        return self.codes.nbytes + self.steps.nbytes

    def __getitem__(self, index: Any) -> PackedVectors:
        return PackedVectors(self.codes[index], self.steps[index])

    def broadcast(self, lead: tuple[int, ...]) -> PackedVectors:
        """With leading axes (batch,) for these before (heads, tokens)."""
        return PackedVectors(
            *(
                np.broadcast_to(array, lead + array.shape[-3:]).reshape((-1, *array.shape[-3:]))
                for array in (self.codes, self.steps)
            )
        )


class ComponentQuantizer:
    """Rounds each component of a vector to steps of its own, and packs the codes without gaps.

    A component with b bits has the codes −c … c, c = 2^(b − 1) − 1, and the step max|x| / c, so
    that the largest coordinate is kept as it is and none is off by more than half a step. NaN and
    infinities make the whole component NaN.

    Parameters
    ----------
    sizes
        Coordinates of each component; of a mixed-curvature head: Euclidean, hyperbolic, spherical.
    bits
        Bits of a coordinate of each, 2 to 16.
    """

    def __init__(self, sizes: Sequence[int], bits: Sequence[int] = (8, 5, 5)) -> None:
        if len(sizes) != len(bits):
            raise ArgumentError("bits", tuple(bits), f"one number for each of {len(sizes)} sizes")
        if not all(2 <= b <= 16 for b in bits):
            raise ArgumentError("bits", tuple(bits), "numbers from 2 to 16")
        if min(sizes) < 0 or sum(sizes) < 1:
            raise ArgumentError("sizes", tuple(sizes), "whole numbers, not all 0")
        self.sizes, self.bits = tuple(sizes), tuple(bits)
        self._ends = np.cumsum(self.sizes)[:-1]

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of the codes of a vector; its steps take 4 for each component besides."""
        return -(-sum(n * b for n, b in zip(self.sizes, self.bits, strict=True)) // 8)

    def pack(self, array: Array) -> PackedVectors:
        """Quantise vectors (…, size)."""
        if array.shape[-1] != sum(self.sizes):
            raise ShapeError("array", array.shape, f"a last axis of {sum(self.sizes)}")
        steps, pieces = [], []
        for part, bits in zip(np.split(array, self._ends, axis=-1), self.bits, strict=True):
            most = (1 << (bits - 1)) - 1
            step = (np.abs(part).max(axis=-1, initial=0) / most).astype(np.float32)
            steps.append(np.where(np.isfinite(step), step, np.nan))
            safe = np.where(step > 0, step, 1).astype(np.float64)[..., None]
            with np.errstate(invalid="ignore"):
                codes = np.clip(np.rint(part / safe), -most, most)
            codes = np.where(np.isfinite(codes), codes, 0) + most
            whole = np.unpackbits(_octets(codes, bits), axis=-1)
            each = whole.reshape((*part.shape, 8 if bits <= 8 else 16))[..., -bits:]
            pieces.append(each.reshape((*part.shape[:-1], part.shape[-1] * bits)))
        packed = np.packbits(np.concatenate(pieces, axis=-1), axis=-1)
        return PackedVectors(packed, np.stack(steps, axis=-1))

    def unpack(self, packed: PackedVectors, dtype: Any = np.float32) -> Array:
        """The quantised vectors, (…, size)."""
        total = sum(n * b for n, b in zip(self.sizes, self.bits, strict=True))
        every = np.unpackbits(packed.codes, axis=-1, count=total)
        parts, start = [], 0
        for place, (size, bits) in enumerate(zip(self.sizes, self.bits, strict=True)):
            piece = every[..., start : start + size * bits]
            start += size * bits
            weights = (1 << np.arange(bits - 1, -1, -1)).astype(dtype)
            codes = piece.reshape((*piece.shape[:-1], size, bits)) @ weights
            codes -= (1 << (bits - 1)) - 1
            codes *= packed.steps[..., place, None].astype(dtype)
            parts.append(codes)
        return np.concatenate(parts, axis=-1)

    def error_bound(self, packed: PackedVectors) -> Array:
        """How far each coordinate may be from what was packed: half a step and rounding."""
        half = np.repeat(packed.steps.astype(np.float64), self.sizes, axis=-1) / 2
        most = np.repeat([1 << (b - 1) for b in self.bits], self.sizes)
        return np.asarray(half * (1 + 4 * most * np.finfo(np.float32).eps))


def _octets(codes: Array, bits: int) -> Array:
    """The bytes of codes (…, size), the most significant first: (…, size · bytes of a code)."""
    return np.ascontiguousarray(codes.astype("u1" if bits <= 8 else ">u2")).view(np.uint8)
