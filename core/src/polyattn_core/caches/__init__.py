"""Caches of keys and values: what decoding attends to, one token after another.

==============  ==============================================================================
``KVCache``     sequences that grow, each in a row of memory
``RingCache``   the last keys of endless sequences, and the first ones: attention sinks
``PagedCache``  sequences in pages of one pool, which may share those of a common beginning
==============  ==============================================================================

All hold numbers in the same choice of formats, and mechanisms attend to them as they lie:
:meth:`polyattn_core.mechanism.Mechanism.attend_cached`. One thread at a time may change a cache;
any number may attend to it meanwhile not.
"""

from .base import Cache
from .contiguous import KVCache
from .paged import PagedCache
from .ring import RingCache

__all__ = ["Cache", "KVCache", "PagedCache", "RingCache"]
