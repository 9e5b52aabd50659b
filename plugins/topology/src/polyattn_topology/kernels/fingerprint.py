"""A fingerprint of memory."""

from __future__ import annotations

import functools

import numpy as np
from numba.core import types

from polyattn_core.simd.jit import Kernel

MIX = np.uint64(0x9E3779B97F4A7C15)
FOLD = np.uint64(0xFF51AFD7ED558CCD)
SHIFT, ODD = np.uint64(29), np.uint64(1)


def _fingerprint(words, out):
    """Sum of hashed words times numbers that depend on their places; vectorises."""
    total = np.uint64(0)
    place = np.uint64(0)
    for i in range(words.shape[0]):
        place += MIX
        word = words[i]
        total += (word ^ (word >> SHIFT)) * FOLD * (place | ODD)
    out[0] = total


@functools.cache
def fingerprint_kernel():
    """The kernel over 64-bit words."""
    words = types.Array(types.uint64, 1, "C", readonly=True)
    return Kernel(_fingerprint, types.void(words, types.uint64[::1]), "words")
