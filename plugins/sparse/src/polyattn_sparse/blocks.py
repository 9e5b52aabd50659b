"""Soft-max attention over blocks of queries × blocks of keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ConfigError
from polyattn_core.masks import Blocks, Causal, Mask, MaskShape, Primitive
from polyattn_core.streaming import StreamingMechanism


class BlockSparse(StreamingMechanism):
    """Blocks of queries see blocks of keys.

        softmax(scale · q·kᵀ) v   over   L[⌊i/block⌋, ⌊j/block⌋]

    for query i and key j, where L is `layout`. Without one, a query sees the block that it is in
    and `neighbours` on each side. Layouts that differ between heads or batch elements are passed
    with the call: ``mask=masks.Blocks(layout, size)`` works with every mechanism.

    With more keys than queries the last query is at the last key, and blocks are those of the keys;
    the rows of a layout, however, count from the first query.

    O(blocks in sight · block² · d) time, best where `block` is a multiple of the 64 keys of a tile;
    O(n d + (n / block)²) memory.

    Raises
    ------
    ConfigError
        By calls with another number of blocks than the layout has.

    References
    ----------
    Child et al., Generating long sequences with sparse transformers, arXiv:1904.10509.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> tokens = np.zeros((4, 1))
    >>> attention = pa.create("block-sparse", dim=1, block=2, layout=[[True, False], [True, True]])
    >>> (attention(tokens, tokens, np.eye(4)) > 0).astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 1, 1],
           [1, 1, 1, 1]])
    """

    def _pattern(self, shape: MaskShape) -> Mask:
        config = self.config
        if config.layout is None:
            grid = _Grid.of(shape, config.block)
            return _Rows(grid.near(config.neighbours)[None], grid)
        layout = np.array(config.layout)
        needed = -(-shape.queries // config.block), -(-shape.keys // config.block)
        if layout.shape != needed:
            found = "{} × {}".format(*layout.shape)
            raise ConfigError(
                "layout",
                f"{found} blocks",
                f"{needed[0]} × {needed[1]}: the call has {shape.queries} queries and "
                f"{shape.keys} keys, in blocks of {config.block}",
            )
        return Blocks(layout, config.block)

    def _own_mask(self, shape: MaskShape) -> Mask:
        pattern = self._pattern(shape)
        return Causal() & pattern if self.config.causal else pattern


class BigBird(BlockSparse):
    """Neighbouring, global and random blocks: a graph in which everything is near.

        softmax(scale · q·kᵀ) v   over   |I − J| ≤ neighbours  or  I ∈ G  or  J ∈ G  or  J ∈ R(h, I)

    where query i is in block I = ⌊i/block⌋ and key j in block J, G are the `global_blocks` (the
    first so many, or those listed) and R(h, I) are `random_blocks` others, drawn for each head and
    query block. With `causal`, later keys are hidden, and R is drawn among the blocks before I.

    The draw depends on `seed`, head and block alone: a call gives the same output again, and
    decoding with `causal` sees what the whole sequence would have seen.

    O(n · blocks in sight · block · d) time; O(n d + heads · (n / block)²) memory.

    Raises
    ------
    ConfigError
        By calls, where a listed global block is not among those of the keys.

    References
    ----------
    Zaheer et al., Big Bird: transformers for longer sequences, arXiv:2007.14062.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> tokens = np.zeros((64, 4))
    >>> attention = pa.create("bigbird", dim=4, heads=2, block=4, random_blocks=2)
    >>> heads = attention.attend(*np.zeros((2, 2, 64, 2)), np.tile(np.eye(64), (2, 1, 1)))
    >>> (heads[:, 40] > 0).sum(axis=-1) // 4  # 1 global block, 3 near, 2 random
    array([6, 6])
    """

    def _pattern(self, shape: MaskShape) -> Mask:
        config = self.config
        grid = _Grid.of(shape, config.block)
        chosen = self._global(grid)
        table = np.repeat(grid.near(config.neighbours)[None], shape.heads, axis=0)
        table[:, :, chosen] = True
        free = ~table[0]
        if config.causal:
            free &= np.arange(grid.columns) < grid.own[:, None]
        for head, rows in enumerate(table):
            rows |= _drawn(free, grid.own, config.random_blocks, config.seed, head)
        inside = (grid.own >= 0) & (grid.own < grid.columns)
        table[:, inside & chosen[np.clip(grid.own, 0, grid.columns - 1)]] = True
        return _Rows(table, grid)

    def _global(self, grid: _Grid) -> Array:
        """Which key blocks are global."""
        chosen = np.zeros(grid.columns, bool)
        blocks = self.config.global_blocks
        if isinstance(blocks, int):
            chosen[:blocks] = True
            return chosen
        for block in blocks:
            if not -grid.columns <= block < grid.columns:
                raise ConfigError(
                    "global_blocks", block, f"blocks among the {grid.columns} of the keys"
                )
            chosen[block] = True
        return chosen


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """Rows of queries within one block of positions, and columns, the blocks of keys."""

    rows: int
    """Queries of a row."""
    block: int
    """Keys of a column."""
    columns: int
    own: Array
    """The block of each row's positions."""

    @classmethod
    def of(cls, shape: MaskShape, block: int) -> _Grid:
        """The widest rows for a call."""
        shift = shape.keys - shape.queries
        # Where queries do not start at a block's border, rows of a whole block would straddle it.
        rows = math.gcd(block, shift)
        first = np.arange(-(-shape.queries // rows)) * rows
        return cls(rows, block, -(-shape.keys // block), (first + shift) // block)

    def near(self, reach: int) -> Array:
        """Columns at most `reach` from each row's own."""
        return np.asarray(abs(np.arange(self.columns) - self.own[:, None]) <= reach)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows(Mask):
    """A boolean table (1 or heads, rows, columns) over a grid."""

    table: Array
    grid: _Grid

    kind = "blocks"

    def program(self, shape: MaskShape) -> tuple[Primitive, ...]:
        sizes = (self.grid.rows, self.grid.block)
        return (Primitive("blocks", sizes, self.table[None].view(np.uint8)),)

    def _allowed(self, shape: MaskShape) -> Array:
        rows = np.arange(shape.queries) // self.grid.rows
        columns = np.arange(shape.keys) // self.grid.block
        return np.asarray(self.table[None][:, :, rows[:, None], columns])

    def __repr__(self) -> str:
        return f"<{'×'.join(map(str, self.table.shape))} layout of blocks of {self.grid.block}>"


def _drawn(free: Array, own: Array, count: int, seed: int, head: int) -> Array:
    """`count` columns of each row at random among the free ones; all where there are fewer."""
    columns = free.shape[1]
    if count == 0:
        return np.zeros_like(free)
    order = _hashed(np.uint64(seed), head, own[:, None], np.arange(columns))
    order[~free] = np.iinfo(np.uint64).max
    if count < columns:
        least = np.partition(order, count - 1, axis=1)[:, count - 1 : count]
        free = free & (order <= least)
    return free


def _hashed(start: np.uint64, *numbers: Array | int) -> Array:
    """A random number for each combination of numbers, by the finaliser of splitmix64.

    A generator would draw other numbers when a sequence grows by a key.
    """
    state = np.asarray(start)
    with np.errstate(over="ignore"):
        for number in numbers:
            state = state * np.uint64(0x9E3779B97F4A7C15) + np.asarray(number).astype(np.uint64)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state
