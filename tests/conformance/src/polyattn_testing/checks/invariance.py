"""What must not change the result: order, memory layout, threads, being called before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..comparison import NotApplicable, assert_close, assert_same, require
from ..sizes import leading
from ..subject import Array, Example, Subject
from . import Check

THREADED = leading(1, queries=136, keys=136, size=32, value_size=32, heads=2, key_heads=2)
"""Large enough for a call to be worth more than one thread."""


def checks(subject: Subject) -> Iterator[Check]:
    """Those that follow from the rule not looking at positions, and some for all."""
    can = subject.capabilities
    if not can.side_inputs:
        # Side inputs would have to be reordered too, in ways that only the mechanism knows.
        yield check_batch_elements_are_independent
        if not can.parametric and not can.positional:
            yield check_heads_are_independent
        if not can.positional:
            yield check_order_of_keys_does_not_matter
    yield check_is_deterministic
    yield check_number_of_threads_does_not_matter
    yield check_inputs_are_not_written
    yield check_memory_layout_does_not_matter
    yield check_calls_at_once


def _positions_matter(example: Example) -> bool:
    """By an option of this case, such as causal or a position axis."""
    return (
        example.own_mask() is not None
        or getattr(example.mechanism.config, "position", None) is not None
    )


def check_batch_elements_are_independent(subject: Subject) -> None:
    """Each batch element gets what it would get alone."""
    example = subject.example(leading(3, 2, queries=9, keys=10))
    together = example.attend()
    for index in np.ndindex(3, 2):
        part = {name: array[index] for name, array in example.inputs.items()}
        alone = example.replace(**part).attend()
        what = f"output of batch element {index} alone against that among others"
        assert_close(alone, together[index], example.tolerance, what)


def check_heads_are_independent(subject: Subject) -> None:
    """Reordering heads reorders the output, and nothing else."""
    example = subject.example(leading(2, queries=9, keys=10, heads=4, key_heads=4))
    heads = example.sizes.heads
    if heads == 1:
        raise NotApplicable("the options of the case leave one head")
    if _positions_matter(example) or example.sizes.key_heads != heads:
        raise NotApplicable("the options of the case tell heads apart")
    order = np.random.default_rng(0).permutation(heads)
    if (order == np.arange(heads)).all():
        order = order[::-1]
    moved = {name: array[:, order] for name, array in example.inputs.items()}
    expected = example.attend()[:, order]
    what = "output with heads in another order"
    assert_close(example.replace(**moved).attend(), expected, example.tolerance, what)


def check_order_of_keys_does_not_matter(subject: Subject) -> None:
    """Keys with their values are a set: their order does not matter."""
    example = subject.example(leading(2, queries=9, keys=70))
    if _positions_matter(example):
        raise NotApplicable("the options of the case make positions matter")
    order = np.random.default_rng(0).permutation(example.sizes.keys)
    moved = example.replace(key=example.key[..., order, :], value=example.value[..., order, :])
    what = "output with keys in another order"
    assert_close(moved.attend(), example.attend(), example.tolerance, what)


def check_is_deterministic(subject: Subject) -> None:
    """The same call gives the same bits; so does another instance."""
    example = subject.example(leading(2, queries=65, keys=70))
    first = example.attend()
    subject.example(leading(1, queries=3, keys=4)).attend()
    assert_same(example.attend(), first, "output of a second call")
    other = example.replace(mechanism=subject.create(example.sizes))
    assert_same(other.attend(), first, "output of another instance with the same options")


def check_number_of_threads_does_not_matter(subject: Subject) -> None:
    """One thread and two give the same, forward and backward."""
    one, two = (subject.example(THREADED, threads=threads) for threads in (1, 2))
    assert_close(two.attend(), one.attend(), one.tolerance, "output with two threads")
    if subject.capabilities.gradient:
        incoming = one.direction()
        first, second = one.gradients(incoming), two.gradients(incoming)
        for name in ("query", "key", "value"):
            expected, found = getattr(first, name), getattr(second, name)
            what = f"gradient by {name} with two threads"
            assert_close(found, expected, 10 * one.tolerance, what)


def check_inputs_are_not_written(subject: Subject) -> None:
    """Inputs stay as they are, may be read-only, and share no memory with what is returned."""
    example = subject.example(leading(2, queries=6, keys=7))
    can = subject.capabilities
    bias = example.bias("heads", "queries", "keys") if can.bias else None
    arrays = {**example.inputs, **({} if bias is None else {"bias": bias})}
    before = {name: array.copy() for name, array in arrays.items()}
    incoming = example.direction()
    for writeable in (True, False):
        for array in arrays.values():
            array.flags.writeable = writeable
        returned = [example.attend(bias=bias)]
        if can.gradient:
            found = example.gradients(incoming, bias=bias)
            returned += [found.query, found.key, found.value]
        if can.statistics:
            example.observe(*can.statistics, bias=bias)
        for name, array in arrays.items():
            assert_same(array, before[name], f"{name} after the call against before it")
            for result in returned:
                require(
                    not np.may_share_memory(result, array), f"a result shares memory with {name}"
                )
    assert_same(incoming, example.direction(), "the incoming gradient after the call")


def check_memory_layout_does_not_matter(subject: Subject) -> None:
    """Strides of any kind: transposed, reversed, with gaps, Fortran order, broadcast, unaligned."""
    example = subject.example(leading(2, queries=6, keys=7))
    expected = example.attend()
    for what, lay_out in LAYOUTS.items():
        laid_out = {name: lay_out(array) for name, array in example.inputs.items()}
        for name, array in laid_out.items():
            assert_same(array, example.inputs[name], f"{name}, {what}")
        output = example.replace(**laid_out).attend()
        assert_close(output, expected, example.tolerance, f"output for {what} inputs")

    first = {name: array[:1] for name, array in example.inputs.items()}
    repeated = {name: np.broadcast_to(a, (2, *a.shape[1:])) for name, a in first.items()}
    output = example.replace(**repeated).attend()
    twice = {name: np.ascontiguousarray(array) for name, array in repeated.items()}
    expected = example.replace(**twice).attend()
    assert_close(output, expected, example.tolerance, "output for inputs with strides 0")


def _transposed(array: Array) -> Array:
    return np.ascontiguousarray(array.swapaxes(-3, -2)).swapaxes(-3, -2)


def _reversed(array: Array) -> Array:
    return np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1]


def _with_gaps(array: Array) -> Array:
    wide = np.zeros((*array.shape[:-2], 2 * array.shape[-2], 3 * array.shape[-1]), array.dtype)
    wide[..., ::2, ::3] = array
    return wide[..., ::2, ::3]


def _unaligned(array: Array) -> Array:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    shifted = memory[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "Fortran-ordered": np.asfortranarray,
    "transposed": _transposed,
    "reversed": _reversed,
    "gappy": _with_gaps,
    "unaligned": _unaligned,
}


def check_calls_at_once(subject: Subject) -> None:
    """Four Python threads that call at once get what they would get one after the other."""
    mechanism = subject.create(THREADED)
    examples = [subject.example(THREADED, seed=seed) for seed in range(4)]
    examples = [example.replace(mechanism=mechanism) for example in examples]
    expected = [_everything(example) for example in examples]
    start = threading.Barrier(len(examples), timeout=60)

    def call(example: Example) -> list[Any]:
        start.wait()
        return _everything(example)

    with ThreadPoolExecutor(len(examples)) as pool:
        found = list(pool.map(call, examples))
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            tolerance = 10 * subject.tolerance()
            assert_close(one, other, tolerance, "result of one of four calls at once")


def _everything(example: Example) -> list[Array]:
    results = [example.attend()]
    if example.subject.capabilities.gradient:
        found = example.gradients(example.direction())
        results += [found.query, found.key, found.value]
    return results
