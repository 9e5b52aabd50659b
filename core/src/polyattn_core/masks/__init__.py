"""Masks: values that say which keys a query may see.

Masks combine with ``&`` (both allow), ``|`` (either allows) and ``~``:

>>> from polyattn_core import masks
>>> sliding = masks.Causal() & masks.Window(left=256)
>>> prefix_lm = masks.Causal() | masks.Prefix(32)

None of them builds an array of queries × keys. A mask is lowered to a short program
(:mod:`polyattn_core.masks.program`) that kernels interpret a tile at a time: tiles in which
nothing is visible are skipped, tiles in which everything is visible are computed unmasked.
:meth:`Mask.dense` builds the full boolean array, for tests and for looking at.
"""

from .algebra import And, Mask, Not, Or
from .arrays import Blocks, Dense, Predicate
from .patterns import Causal, Dilated, GlobalTokens, Strided, Window
from .program import MaskShape, Primitive
from .sequences import Documents, Padding, Prefix

__all__ = [
    "And",
    "Blocks",
    "Causal",
    "Dense",
    "Dilated",
    "Documents",
    "GlobalTokens",
    "Mask",
    "MaskShape",
    "Not",
    "Or",
    "Padding",
    "Predicate",
    "Prefix",
    "Primitive",
    "Strided",
    "Window",
]
