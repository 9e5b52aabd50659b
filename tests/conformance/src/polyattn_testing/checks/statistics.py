"""What `observe` returns besides the output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from polyattn_core.errors import ArgumentError, CapabilityError
from polyattn_core.masks import Dense, Mask
from polyattn_core.spec import STATISTICS

from ..comparison import assert_close, assert_refused, require
from ..mask_examples import masks_of
from ..sizes import leading
from ..subject import Array, Example, Subject
from . import Check

SUMS = ("entropy", "column_mass")
SIZES = (
    leading(2, queries=6, keys=7, heads=4, key_heads=2),
    leading(queries=66, keys=65, size=8, value_size=5, heads=1, key_heads=1),
)


def checks(subject: Subject) -> Iterator[Check]:
    """Those for the declared statistics; that the others are refused."""
    declared = subject.capabilities.statistics
    if set(declared) != set(STATISTICS):
        yield check_undeclared_statistics_are_refused
    yield check_unknown_statistics
    if declared:
        yield check_statistics_leave_the_output_alone
        yield check_statistics_have_their_shapes
    if "weights" in declared:
        yield check_weights_sum_values_to_the_output
        if subject.capabilities.value_size:
            yield check_weights_are_those_of_the_reference
        if set(SUMS) & set(declared):
            yield check_statistics_agree_with_weights
        if "top_weights" in declared:
            yield check_top_weights_are_the_largest
        if "log_sum_exp" in declared and "dense" in subject.capabilities.masks:
            yield check_log_sum_exp
    if "log_sum_exp" in declared and subject.capabilities.bias:
        yield check_log_sum_exp_follows_the_bias


def _examples(subject: Subject) -> Iterator[tuple[Example, Mask | None]]:
    for sizes in SIZES:
        example = subject.example(sizes)
        yield example, None
        for kind in subject.capabilities.masks[:3]:
            yield example, masks_of(kind, example.shape)[0]


def check_undeclared_statistics_are_refused(subject: Subject) -> None:
    """A statistic that is not declared is an error."""
    example = subject.example()
    for name in STATISTICS:
        if name not in subject.capabilities.statistics:
            assert_refused(
                partial(example.observe, name),
                f"the statistic {name}, which is not declared",
                CapabilityError,
                (name,),
            )


def check_unknown_statistics(subject: Subject) -> None:
    """A statistic that does not exist is an error; `output` is none."""
    example = subject.example()
    for name in ("wieghts", "output", ""):
        what = f"the statistic {name!r}"
        assert_refused(partial(example.observe, name), what, ArgumentError)


def check_statistics_leave_the_output_alone(subject: Subject) -> None:
    """The output is that of `attend`; what was not asked for is None."""
    declared = subject.capabilities.statistics
    for example, mask in _examples(subject):
        expected = example.attend(mask=mask)
        for asked in ((), declared[:1], declared):
            seen = example.observe(*asked, mask=mask)
            what = f"output observed with {asked} under {mask!r}"
            assert_close(seen.output, expected, example.tolerance, what)
            for name in STATISTICS:
                given = getattr(seen, name) is not None
                require(given == (name in asked), f"{name} when {asked} is asked for: {given}")


def check_statistics_have_their_shapes(subject: Subject) -> None:
    """(…, heads, queries, keys), (…, heads, queries) and (…, heads, keys)."""
    declared = subject.capabilities.statistics
    for lead in ((), (2,), (2, 1, 3)):
        example = subject.example(leading(*lead, queries=6, keys=7))
        sizes = example.sizes
        shapes = {
            "weights": (*lead, sizes.heads, sizes.queries, sizes.keys),
            "log_sum_exp": (*lead, sizes.heads, sizes.queries),
            "entropy": (*lead, sizes.heads, sizes.queries),
            "column_mass": (*lead, sizes.heads, sizes.keys),
            "top_weights": (*lead, sizes.heads, sizes.queries, 8),
        }
        seen = example.observe(*declared)
        for name in declared:
            found = getattr(seen, name).shape
            require(found == shapes[name], f"{name}: shape {found}, expected {shapes[name]}")


def _per_query_head(example: Example) -> Array:
    """Values, repeated for the query heads that share them."""
    return np.repeat(example.value, example.sizes.heads // example.sizes.key_heads, axis=-3)


def check_weights_sum_values_to_the_output(subject: Subject) -> None:
    """The output is weights · value."""
    for example, mask in _examples(subject):
        seen = example.observe("weights", mask=mask)
        assert seen.weights is not None
        what = f"weights · value against the output under {mask!r} for {example.sizes}"
        assert_close(seen.weights @ _per_query_head(example), seen.output, example.tolerance, what)
        hidden = ~example.visible_by_lead(mask)
        require((seen.weights[hidden] == 0).all(), f"hidden pairs have weights under {mask!r}")


def check_weights_are_those_of_the_reference(subject: Subject) -> None:
    """The reference's weights are its output where values are unit vectors."""
    for example, mask in _examples(subject):
        keys = example.sizes.keys
        units = np.broadcast_to(np.eye(keys), (*example.key.shape[:-1], keys))
        sizes = replace(example.sizes, value_size=keys)
        probe = example.replace(value=units.astype(example.value.dtype), sizes=sizes)
        seen = example.observe("weights", mask=mask)
        what = f"weights under {mask!r} for {example.sizes}"
        assert_close(seen.weights, probe.expected(mask=mask), example.tolerance, what)


def check_statistics_agree_with_weights(subject: Subject) -> None:
    """Entropy is −Σ w ln w along keys, column mass Σ w along queries."""
    declared = [
        name for name in ("entropy", "column_mass") if name in subject.capabilities.statistics
    ]
    for example, mask in _examples(subject):
        seen = example.observe("weights", *declared, mask=mask)
        assert seen.weights is not None
        weights = seen.weights.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(weights > 0, -weights * np.log(weights), 0)
        expected = {"entropy": terms.sum(axis=-1), "column_mass": weights.sum(axis=-2)}
        for name in declared:
            what = f"{name} under {mask!r} for {example.sizes}"
            assert_close(getattr(seen, name), expected[name], 10 * example.tolerance, what)


def check_top_weights_are_the_largest(subject: Subject) -> None:
    """Top weights are the largest of `weights`, of the keys they say, and no others."""
    for example, mask in _examples(subject):
        for top in (1, 3, example.sizes.keys + 2):
            seen = example.observe("weights", "top_weights", mask=mask, top=top)
            assert seen.weights is not None
            assert seen.top_weights is not None
            assert seen.top_keys is not None
            what = f"the top {top} weights under {mask!r} for {example.sizes}"
            largest = np.zeros(seen.top_weights.shape)
            ordered = np.maximum(-np.sort(-seen.weights, axis=-1), 0)[..., :top]
            largest[..., : ordered.shape[-1]] = ordered
            assert_close(seen.top_weights, largest, example.tolerance, what)
            listed = seen.top_keys >= 0
            require((listed == (seen.top_weights > 0)).all(), f"{what}: keys without a weight")
            chosen = np.take_along_axis(seen.weights, np.maximum(seen.top_keys, 0), axis=-1)
            chosen = np.where(listed, chosen, 0)
            assert_close(seen.top_weights, chosen, example.tolerance, f"{what}, at their keys")
            keys = np.sort(np.where(listed, seen.top_keys, -1 - np.arange(top)), axis=-1)
            require((np.diff(keys, axis=-1) > 0).all(), f"{what}: a key is listed twice")


def check_log_sum_exp(subject: Subject) -> None:
    """Weights are exp(score − log-sum-exp), with scores taken from calls that see a single key."""
    example = subject.example(leading(2, queries=4, keys=5))
    keys = example.sizes.keys
    seen = example.observe("weights", "log_sum_exp")
    assert seen.weights is not None
    assert seen.log_sum_exp is not None
    scores = np.empty(seen.weights.shape)
    visible = example.visible_by_lead()
    for key in range(keys):
        only = Dense(np.arange(keys)[None] == key)
        alone = example.observe("weights", "log_sum_exp", mask=only)
        assert alone.weights is not None
        assert alone.log_sum_exp is not None
        with np.errstate(divide="ignore", invalid="ignore"):
            scores[..., key] = alone.log_sum_exp + np.log(alone.weights[..., key])
    # A rule may give some keys no weight, and then they are not in the sum.
    scores[~visible | (seen.weights == 0)] = -np.inf
    expected = np.exp(scores - seen.log_sum_exp[..., None])
    what = "weights against exp(score − log-sum-exp)"
    assert_close(seen.weights, expected, 10 * example.tolerance, what)
    if np.allclose(seen.weights.sum(axis=-1), 1):
        total = np.log(np.exp(scores).sum(axis=-1))
        what = "log-sum-exp against that of the scores"
        assert_close(seen.log_sum_exp, total, 10 * example.tolerance, what)


def check_log_sum_exp_follows_the_bias(subject: Subject) -> None:
    """A bias of 50 on all scores raises the log-sum-exp by 50, or less where there is a sink."""
    example = subject.example(leading(2, queries=6, keys=7))
    bias = np.full((1, 1), 50.0).astype(example.query.dtype)
    before = example.observe("log_sum_exp").log_sum_exp
    after = example.observe("log_sum_exp", bias=bias).log_sum_exp
    low = example.observe("log_sum_exp", bias=-bias).log_sum_exp
    assert before is not None
    assert after is not None
    assert low is not None
    if "weights" in subject.capabilities.statistics:
        weights = example.observe("weights").weights
        assert weights is not None
        if np.allclose(weights.sum(axis=-1), 1):
            what = "log-sum-exp with a bias of 50"
            assert_close(after, before + 50, example.tolerance, what)
    require((after - before <= 50 + 1e-3).all(), "a bias of 50 raises the log-sum-exp by more")
    require((after > before).all(), "a bias of 50 does not raise the log-sum-exp")
    require((low < before).all(), "a bias of −50 does not lower the log-sum-exp")
