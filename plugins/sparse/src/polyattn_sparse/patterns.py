"""Soft-max attention over a pattern of positions.

Scores are computed a tile of 64 keys at a time, and a tile outside the pattern costs one test.
With more keys than queries the last query is at the last key, so that decoding with a cache sees
what the whole sequence would have seen.
"""

from __future__ import annotations

from polyattn_core.errors import ConfigError
from polyattn_core.masks import (
    Causal,
    Dilated,
    GlobalTokens,
    Mask,
    MaskShape,
    Prefix,
    Strided,
    Window,
)
from polyattn_core.streaming import StreamingMechanism


class _Pattern(StreamingMechanism):
    """A mechanism whose rule is which pairs it computes."""

    def _pattern(self, shape: MaskShape) -> Mask:
        """The pairs, apart from causality."""
        raise TypeError(f"{type(self).__name__} does not define _pattern()")

    def _own_mask(self, shape: MaskShape) -> Mask:
        pattern = self._pattern(shape)
        return Causal() & pattern if self.config.causal else pattern

    def _window(self) -> Window:
        """`window` keys up to the query's own, or around it."""
        size = self.config.window
        return Window(size - 1, 0) if self.config.causal else Window(size // 2, size // 2)


class SlidingWindow(_Pattern):
    """Each query sees the keys near it.

        softmax(scale · q·kᵀ) v   over   0 ≤ i − j < window            (causal, the default)
                                         |i − j| ≤ ⌊window / 2⌋        (otherwise)

    for query i and key j, where scale is 1/√(head size) unless given. In layers one above the other
    what is seen grows by a window each.

    O(n · window · d) time, O(n d) memory.

    References
    ----------
    Beltagy et al., Longformer: the long-document transformer, arXiv:2004.05150. Causal: Jiang et
    al., Mistral 7B, arXiv:2310.06825.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> tokens = np.zeros((4, 1))
    >>> pa.create("sliding-window", dim=1, window=2)(tokens, tokens, np.eye(4))
    array([[1. , 0. , 0. , 0. ],
           [0.5, 0.5, 0. , 0. ],
           [0. , 0.5, 0.5, 0. ],
           [0. , 0. , 0.5, 0.5]])
    """

    def _pattern(self, shape: MaskShape) -> Mask:
        return self._window()


class LocalGlobal(_Pattern):
    """A window around each query, and global tokens that see and are seen by all.

        softmax(scale · q·kᵀ) v   over   |i − j| ≤ ⌊window / 2⌋  or  i ∈ G  or  j ∈ G

    for query i and key j, where G are the `global_tokens`: the first so many positions, or those
    listed. With `causal`, the window is 0 ≤ i − j < window and later keys are hidden from global
    tokens too. Queries, keys and values of global tokens are those of the others: Longformer's
    second set of projections is not part of it.

    O(n · (window + global tokens) · d) time, O(n d) memory.

    Raises
    ------
    ConfigError
        By calls, where a listed global token is not among the keys.

    References
    ----------
    Beltagy et al., Longformer: the long-document transformer, arXiv:2004.05150.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> tokens = np.zeros((5, 1))
    >>> attention = pa.create("local-global", dim=1, window=2, global_tokens=(0,))
    >>> (attention(tokens, tokens, np.eye(5)) > 0).astype(int)
    array([[1, 1, 1, 1, 1],
           [1, 1, 1, 0, 0],
           [1, 1, 1, 1, 0],
           [1, 0, 1, 1, 1],
           [1, 0, 0, 1, 1]])
    """

    def _pattern(self, shape: MaskShape) -> Mask:
        chosen = self.config.global_tokens
        if isinstance(chosen, tuple):
            for position in chosen:
                if not -shape.keys <= position < shape.keys:
                    raise ConfigError(
                        "global_tokens", position, f"positions among the {shape.keys} keys"
                    )
        return self._window() | GlobalTokens(chosen)


class DilatedWindow(_Pattern):
    """A window with gaps, that reaches further with as many keys.

        softmax(scale · q·kᵀ) v   over   i − j ∈ {0, ±step, …, ±⌊window / 2⌋ · step}

    for query i and key j; with `causal` over i − j ∈ {0, step, …, (window − 1) · step}.

    O(n · window · step · d) time, because the keys of one query are the gaps of another: a tile is
    skipped beyond the reach of the window. O(n d) memory.

    References
    ----------
    Beltagy et al., Longformer: the long-document transformer, arXiv:2004.05150, section 3.1.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> tokens = np.zeros((5, 1))
    >>> attention = pa.create("dilated", dim=1, window=2, step=2, causal=True)
    >>> (attention(tokens, tokens, np.eye(5)) > 0).astype(int)
    array([[1, 0, 0, 0, 0],
           [0, 1, 0, 0, 0],
           [1, 0, 1, 0, 0],
           [0, 1, 0, 1, 0],
           [0, 0, 1, 0, 1]])
    """

    def _pattern(self, shape: MaskShape) -> Mask:
        size, step = self.config.window, self.config.step
        if self.config.causal:
            return Dilated(step, size - 1, 0)
        return Dilated(step, size // 2, size // 2)


class StridedPattern(_Pattern):
    """The patterns of the sparse transformer: any two positions are two layers apart.

        softmax(scale · q·kᵀ) v   over   |i − j| < l  or  l | i − j                    (strided)
                                         ⌊i/l⌋ = ⌊j/l⌋  or  j mod l ≥ l − summary      (fixed)

    for query i and key j, where l is `stride`; causal unless `causal=False`. Each is the union of
    what the two kinds of heads of the paper see.

    A tile of 64 keys is computed whole where any pair of it is visible. `fixed` skips those without
    a summary: O(n² d) time, less by a factor of stride / 64. `strided` skips none, because its far
    keys are in all of them: O(n² d) time. O(n d) memory.

    References
    ----------
    Child et al., Generating long sequences with sparse transformers, arXiv:1904.10509, section 4.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> tokens = np.zeros((6, 1))
    >>> fixed = pa.create("strided", dim=1, stride=3, pattern="fixed", summary=1)
    >>> (fixed(tokens, tokens, np.eye(6)) > 0).astype(int)
    array([[1, 0, 0, 0, 0, 0],
           [1, 1, 0, 0, 0, 0],
           [1, 1, 1, 0, 0, 0],
           [0, 0, 1, 1, 0, 0],
           [0, 0, 1, 1, 1, 0],
           [0, 0, 1, 1, 1, 1]])
    """

    def _pattern(self, shape: MaskShape) -> Mask:
        config = self.config
        return Strided(config.stride, config.pattern, min(config.summary, config.stride))


class StreamingWindow(_Pattern):
    """A window over the last keys that keeps the first ones in sight: attention sinks.

        softmax(scale · q·kᵀ) v   over   j ≤ i  and  (j < sinks  or  i − j < window)

    for query i and key j, where scale is 1/√(head size) unless given. Language models put the
    weight that they have no use for on the first tokens; a window that loses these breaks down.
    Without `causal`, the window is |i − j| ≤ ⌊window / 2⌋.

    Positions are those of the text. Xiao et al. count them within the cache, so that sinks never
    seem far: with `position="rope"`, texts much longer than a model was trained on are beyond it.

    O(n · (window + sinks) · d) time, O(n d) memory.

    References
    ----------
    Xiao et al., Efficient streaming language models with attention sinks, arXiv:2309.17453.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> tokens = np.zeros((5, 1))
    >>> attention = pa.create("streaming", dim=1, window=2, sinks=1)
    >>> (attention(tokens, tokens, np.eye(5)) > 0).astype(int)
    array([[1, 0, 0, 0, 0],
           [1, 1, 0, 0, 0],
           [1, 1, 1, 0, 0],
           [1, 0, 1, 1, 0],
           [1, 0, 0, 1, 1]])
    """

    def _pattern(self, shape: MaskShape) -> Mask:
        return self._window() | Prefix(self.config.sinks)
