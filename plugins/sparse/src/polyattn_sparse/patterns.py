"""Soft-max attention over a pattern of positions: tiles outside the pattern cost nothing."""

from __future__ import annotations

import numpy as np
from polyattn_core.arrays import Array
from polyattn_core.errors import ConfigError
from polyattn_core.masks import (
    Blocks,
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

    def _pattern(self) -> Mask:
        """The pairs, apart from causality."""
        raise TypeError(f"{type(self).__name__} does not define _pattern()")

    def _own_mask(self, shape: MaskShape) -> Mask:
        pattern = self._pattern()
        return Causal() & pattern if self.config.causal else pattern

    def _window(self) -> Window:
        """`window` keys up to the query's own, or around it."""
        size = self.config.window
        return Window(size - 1, 0) if self.config.causal else Window(size // 2, size // 2)


class SlidingWindow(_Pattern):
    """Each query sees the keys near it.

    O(n · window · d) time. With more keys than queries, the last query is at the last key, as in
    decoding. Beltagy et al., Longformer, arXiv:2004.05150; Jiang et al., Mistral, arXiv:2310.06825.
    """

    def _pattern(self) -> Mask:
        return self._window()


class LocalGlobal(_Pattern):
    """A window around each query, and global tokens that see and are seen by all.

    O(n · (window + global tokens) · d) time. Beltagy et al., Longformer, arXiv:2004.05150.
    """

    def _pattern(self) -> Mask:
        return self._window() | GlobalTokens(self.config.global_tokens)


class DilatedWindow(_Pattern):
    """A window with gaps: every `step`-th key.

    O(n · window · d) useful time; tiles are skipped outside the reach of window · step. Beltagy et
    al., Longformer, arXiv:2004.05150, section 3.1.
    """

    def _pattern(self) -> Mask:
        size, step = self.config.window, self.config.step
        if self.config.causal:
            return Dilated(step, size - 1, 0)
        return Dilated(step, size // 2, size // 2)


class StridedPattern(_Pattern):
    """The patterns of the sparse transformer.

    O(n √n d) useful time at stride √n. Child et al., arXiv:1904.10509.
    """

    def _pattern(self) -> Mask:
        config = self.config
        return Strided(config.stride, config.pattern, min(config.summary, config.stride))


class StreamingWindow(_Pattern):
    """A window over the last keys that keeps the first ones in sight: attention sinks.

        key j is visible to query i iff  j < sinks  or  i − j < window

    O(n · (window + sinks) · d) time. Later keys are visible only where `causal` is off, which it is
    not meant for. Xiao et al., arXiv:2309.17453.
    """

    def _pattern(self) -> Mask:
        return Window(self.config.window - 1, None) | Prefix(self.config.sinks)


class BlockSparse(StreamingMechanism):
    """Blocks of queries see blocks of keys, as a layout says.

    O(visible blocks · block² · d) time. Child et al., arXiv:1904.10509.
    """

    def _layout(self, shape: MaskShape) -> Array:
        """(heads or 1, query blocks, key blocks) of booleans."""
        rows, columns, own = _block_positions(shape, self.config.block)
        layout = self.config.layout
        if layout is None:
            return _near(own, columns, self.config.neighbours)[None]
        found = np.array(layout)
        if found.shape != (rows, columns):
            raise ConfigError(
                "layout", found.shape, f"{rows} × {columns} blocks of {self.config.block} tokens"
            )
        return found[None]

    def _own_mask(self, shape: MaskShape) -> Mask:
        pattern = Blocks(self._layout(shape), self.config.block)
        return Causal() & pattern if self.config.causal else pattern


class BigBird(BlockSparse):
    """Neighbouring, global and random blocks.

    O(n · blocks in sight · block · d) time. The random blocks are drawn for each query block and
    head from `seed`, so that a call gives the same output again. Zaheer et al., Big Bird,
    arXiv:2007.14062.
    """

    def _layout(self, shape: MaskShape) -> Array:
        config = self.config
        rows, columns, own = _block_positions(shape, config.block)
        layout = np.repeat(_near(own, columns, config.neighbours)[None], shape.heads, axis=0)
        rng = np.random.default_rng(config.seed)
        for head in range(shape.heads):
            for row in range(rows):
                chosen = rng.permutation(columns)[: config.random_blocks]
                layout[head, row, chosen] = True
        layout[:, :, : config.global_blocks] = True
        layout[:, own < config.global_blocks, :] = True
        return layout


def _block_positions(shape: MaskShape, block: int) -> tuple[int, int, Array]:
    """Numbers of query and key blocks, and the key block at each query block's last position."""
    rows, columns = -(-shape.queries // block), -(-shape.keys // block)
    last = np.minimum((np.arange(rows) + 1) * block, shape.queries) - 1
    return rows, columns, (last + shape.keys - shape.queries) // block


def _near(own: Array, columns: int, reach: int) -> Array:
    return np.asarray(abs(np.arange(columns)[None, :] - own[:, None]) <= reach)
