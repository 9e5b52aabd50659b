"""Layouts of blocks: given, near the diagonal, drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from polyattn_core.errors import ConfigError
from polyattn_core.masks import MaskShape

Array = npt.NDArray[Any]
Create = Callable[..., Any]
Arrays = Callable[..., Any]


def visible(mechanism: Any, arrays: Arrays, queries: int, keys: int) -> Array:
    """Which weights are above 0, (heads, queries, keys)."""
    inputs = arrays(queries, keys, heads=mechanism.config.heads, size=mechanism.config.head_dim)
    result: Array = mechanism.observe(*inputs, "weights").weights[0] > 0
    return result


def blocks_of(seen: Array, block: int) -> Array:
    """(heads, queries, key blocks), after checking that blocks of keys are seen as a whole."""
    keys = seen.shape[-1]
    first = seen[..., ::block]
    whole = np.repeat(first, block, axis=-1)[..., :keys]
    np.testing.assert_array_equal(seen, whole)
    return first


# ---- block-sparse ----


@pytest.mark.parametrize(("queries", "keys"), [(12, 12), (10, 11), (10, 4), (3, 12)])
def test_layout(create: Create, arrays: Arrays, queries: int, keys: int) -> None:
    rows, columns = -(-queries // 4), -(-keys // 4)
    layout = np.random.default_rng(1).random((rows, columns)) < 0.6
    for given in (layout, tuple(map(tuple, layout.tolist()))):
        mechanism = create("block-sparse", dim=8, heads=2, block=4, layout=given)
        for head in visible(mechanism, arrays, queries, keys):
            for i in range(queries):
                for j in range(keys):
                    assert head[i, j] == layout[i // 4, j // 4]


def test_causal_layout(create: Create, arrays: Arrays) -> None:
    layout = np.random.default_rng(1).random((3, 3)) < 0.6
    options: dict[str, Any] = {"dim": 8, "heads": 2, "block": 4, "layout": layout}
    both = visible(create("block-sparse", **options), arrays, 10, 10)
    causal = visible(create("block-sparse", **options, causal=True), arrays, 10, 10)
    np.testing.assert_array_equal(causal, both & np.tri(10, dtype=bool))


@pytest.mark.parametrize("block", [1, 3, 4, 64])
@pytest.mark.parametrize("neighbours", [0, 1, 2])
@pytest.mark.parametrize(("queries", "keys"), [(11, 11), (1, 11), (5, 20), (70, 130), (9, 4)])
def test_neighbours(
    create: Create, arrays: Arrays, block: int, neighbours: int, queries: int, keys: int
) -> None:
    mechanism = create("block-sparse", dim=8, heads=2, block=block, neighbours=neighbours)
    for head in visible(mechanism, arrays, queries, keys):
        for row in range(queries):
            own = (row + keys - queries) // block
            for j in range(keys):
                assert head[row, j] == (abs(own - j // block) <= neighbours)


def test_wrong_layouts(create: Create, arrays: Arrays) -> None:
    mechanism = create("block-sparse", dim=8, heads=2, block=4, layout=np.ones((2, 3), bool))
    mechanism.attend(*arrays(8, 12))
    text = "layout: got 2 × 3 blocks; expected 3 × 4: the call has 9 queries and 13 keys, in blocks"
    with pytest.raises(ConfigError, match=text):
        mechanism.attend(*arrays(9, 13))
    for wrong in ([], [[]], [[True, False], [True]]):
        with pytest.raises(ConfigError, match=r"layout: .*rows of one length"):
            create("block-sparse", dim=8, layout=wrong)
    with pytest.raises(ConfigError, match="layout"):
        create("block-sparse", dim=8, layout="all")
    with pytest.raises(ConfigError, match="layout"):
        create("block-sparse", dim=8, layout=np.ones(3, bool))


def test_a_layout_survives_json(create: Create) -> None:
    config = create("block-sparse", dim=8, layout=np.tri(3, dtype=bool)).config
    assert type(config).model_validate_json(config.model_dump_json()) == config


# ---- bigbird ----


@pytest.mark.parametrize("global_blocks", [0, 1, 2, (0, -1), (5,)])
@pytest.mark.parametrize("count", [0, 2, 100])
def test_bigbird(
    create: Create, arrays: Arrays, global_blocks: int | tuple[int, ...], count: int
) -> None:
    block, tokens = 4, 50
    columns = 13
    mechanism = create(
        "bigbird", dim=12, heads=3, block=block, neighbours=1, global_blocks=global_blocks,
        random_blocks=count,
    )  # fmt: skip
    seen = blocks_of(visible(mechanism, arrays, tokens, tokens), block)
    if isinstance(global_blocks, int):
        chosen = set(range(global_blocks))
    else:
        chosen = {b % columns for b in global_blocks}
    for head in seen:
        for i in range(tokens):
            own = i // block
            found = set(np.flatnonzero(head[i]))
            if own in chosen:
                assert found == set(range(columns))
                continue
            sure = chosen | {b for b in (own - 1, own, own + 1) if 0 <= b < columns}
            assert found >= sure
            # Random blocks are others, as many as wanted or as there are.
            assert len(found - sure) == min(count, columns - len(sure))
            np.testing.assert_array_equal(head[i], head[own * block])


def random_part(mechanism: Any, arrays: Arrays, tokens: int = 256) -> Array:
    return visible(mechanism, arrays, tokens, tokens)[:, ::4, ::4]


def test_draws_differ_between_heads_and_seeds(create: Create, arrays: Arrays) -> None:
    options: dict[str, Any] = {
        "dim": 8, "heads": 2, "block": 4, "neighbours": 0, "global_blocks": 0, "random_blocks": 3,
    }  # fmt: skip
    first = random_part(create("bigbird", **options), arrays)
    np.testing.assert_array_equal(random_part(create("bigbird", **options), arrays), first)
    assert (first[0] != first[1]).any()
    other = random_part(create("bigbird", **options, seed=1), arrays)
    assert (other != first).any(axis=(1, 2)).all()


def test_draws_are_even(create: Create) -> None:
    mechanism = create("bigbird", dim=2, block=1, neighbours=0, global_blocks=0, random_blocks=8)
    tokens = 400
    mask = mechanism.combined_mask(None, MaskShape((1,), 1, tokens, tokens))
    drawn = mask.dense(MaskShape((1,), 1, tokens, tokens))[0, 0] & ~np.eye(tokens, dtype=bool)
    assert (drawn.sum(axis=1) == 8).all()
    # A column is drawn about 8 times, with a variance of 8: χ² with 399 degrees of freedom.
    excess = ((drawn.sum(axis=0) - 8.0) ** 2).sum() / 8
    assert 300 < excess < 510
    # Distances from the diagonal do not matter either.
    near = np.abs(np.subtract.outer(np.arange(tokens), np.arange(tokens))) < tokens // 4
    share = drawn[near].sum() / drawn.sum()
    assert share == pytest.approx(near.mean(), abs=0.05)


def test_causal_draws_are_among_earlier_blocks(create: Create, arrays: Arrays) -> None:
    mechanism = create(
        "bigbird", dim=8, heads=2, block=4, neighbours=1, global_blocks=1, random_blocks=2,
        causal=True,
    )  # fmt: skip
    seen = visible(mechanism, arrays, 64, 64)
    assert not (seen & ~np.tri(64, dtype=bool)).any()
    last = blocks_of(seen[:, 3::4], 4)
    for head in last:
        # Its own block, that before, the global one, and two more where there are two.
        counts = [len(np.flatnonzero(head[own, : own + 1])) for own in range(16)]
        assert counts == [1, 2, 3, 4, *[5] * 12]


def test_global_blocks_must_be_there(create: Create, arrays: Arrays) -> None:
    mechanism = create("bigbird", dim=8, heads=2, block=4, global_blocks=(0, 3))
    mechanism.attend(*arrays(16, 16))
    with pytest.raises(ConfigError, match=r"global_blocks: got 3; expected .* the 2 of the keys"):
        mechanism.attend(*arrays(5, 5))
    with pytest.raises(ConfigError, match="global_blocks: got -1; expected how many, at least 0"):
        create("bigbird", dim=8, global_blocks=-1)
