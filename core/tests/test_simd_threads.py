"""Threads and processes: the same numbers whoever computes them, and nobody waits for ever."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
import pytest

from polyattn_core.masks import Causal
from polyattn_core.simd import threads

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# As many threads as are asked for, however few processors there are.
SEVERAL = {"NUMBA_NUM_THREADS": "3"}

PREPARED = """
import numpy as np
from polyattn_core.masks import Causal
from polyattn_core.spec import Capabilities, MechanismSpec
from polyattn_core.streaming import ScaledConfig, StreamingMechanism
spec = MechanismSpec(
    name="a", family="b", summary="", factory="a:b", config="a:b", reference="a:b",
    capabilities=Capabilities(partial=True),
)
def build(**options):
    return StreamingMechanism(ScaledConfig(**options), spec=spec)
rng = np.random.default_rng(0)
"""


@pytest.fixture
def tokens() -> Any:
    return np.random.default_rng(0).standard_normal((2, 4, 500, 16)).astype(np.float32)


def test_several_python_threads_at_once(build: Any, tokens: Any) -> None:
    mechanisms = [build(dim=64, heads=4, causal=causal) for causal in (False, True)]
    expected = [mechanism.attend(tokens, tokens, tokens) for mechanism in mechanisms]
    found: list[bool] = []

    def work(number: int) -> None:
        for turn in range(5):
            which = (number + turn) % 2
            output = mechanisms[which].attend(tokens, tokens, tokens)
            found.append(np.array_equal(output, expected[which]))

    running = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert found == [True] * 30


def test_gradients_in_several_python_threads_at_once(build: Any, tokens: Any) -> None:
    mechanism = build(dim=64, heads=4, kv_heads=2, causal=True)
    key = tokens[:, :2]
    output, pull = mechanism.attend_vjp(tokens, key, key)
    expected = pull(output)
    found: list[Any] = []

    def work() -> None:
        output, pull = mechanism.attend_vjp(tokens, key, key)
        found.append(pull(output))

    running = [threading.Thread(target=work) for _ in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert len(found) == 4
    for gradients in found:
        for name in ("query", "key", "value"):
            np.testing.assert_array_equal(getattr(gradients, name), getattr(expected, name))


def test_the_interpreter_is_free_while_a_kernel_runs(build: Any) -> None:
    size = 4000
    tokens = np.random.default_rng(0).standard_normal((1, size, 64)).astype(np.float32)
    mechanism = build(dim=64, threads=1)
    mechanism.attend(tokens[:, :8], tokens[:, :8], tokens[:, :8])
    worker = threading.Thread(target=mechanism.attend, args=(tokens, tokens, tokens))
    turns = 0
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        turns += 1
    # Were it held, this thread would have its turn only before and after.
    assert turns > 5


def test_the_number_of_threads_does_not_change_the_numbers(run_python: Any) -> None:
    code = (
        PREPARED
        + """
from polyattn_core.simd import threads
assert threads.limit() == 3
for dtype in (np.float32, np.float64):
    for mask in (None, Causal()):
        query, key, value = (
            rng.standard_normal((2, h, n, 16)).astype(dtype)
            for h, n in ((4, 300), (2, 411), (2, 411))
        )
        outputs = [
            build(dim=64, heads=4, kv_heads=2, threads=n).attend(query, key, value, mask=mask)
            for n in (1, 2, 3)
        ]
        assert np.array_equal(outputs[0], outputs[1])
        assert np.array_equal(outputs[0], outputs[2])
        gradients = []
        for n in (1, 3, 3):
            mechanism = build(dim=64, heads=4, kv_heads=2, threads=n)
            output, pull = mechanism.attend_vjp(query, key, value, mask=mask)
            gradients.append(pull(output))
        for name in ("query", "key", "value"):
            one, three, again = (getattr(g, name) for g in gradients)
            assert np.array_equal(three, again), name
            assert np.allclose(one, three, rtol=0, atol=200 * np.finfo(dtype).eps), name
"""
    )
    run_python(code, **SEVERAL)


def test_few_queries_are_shared_out_by_keys(run_python: Any) -> None:
    """Here chunks of the keys are merged, so that the numbers agree up to rounding."""
    code = (
        PREPARED
        + """
for dtype in (np.float32, np.float64):
    for queries in (1, 3, 20):
        query, key, value = (
            rng.standard_normal((1, 2, n, 64)).astype(dtype) for n in (queries, 9000, 9000)
        )
        exact = (x.astype(np.float64) for x in (query, key, value))
        q, k, v = exact
        scores = q @ k.swapaxes(-1, -2) / 8
        visible = np.arange(9000) <= np.arange(queries)[:, None] + 9000 - queries
        for mask, shown in ((None, scores), (Causal(), np.where(visible, scores, -np.inf))):
            weights = np.exp(shown - shown.max(axis=-1, keepdims=True))
            expected = weights / weights.sum(axis=-1, keepdims=True) @ v
            for n in (1, 2, 3, 3):
                found = build(dim=128, heads=2, threads=n).attend(query, key, value, mask=mask)
                assert np.allclose(found, expected, rtol=0, atol=10 * np.finfo(dtype).eps)
"""
    )
    run_python(code, **SEVERAL)


@needs_fork
def test_a_forked_child_computes_with_threads_of_its_own(run_python: Any) -> None:
    code = (
        PREPARED
        + """
import os, signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, the very point
mechanism = build(dim=64, heads=4)
tokens = rng.standard_normal((2, 4, 500, 16))
expected = mechanism.attend(tokens, tokens, tokens)
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # rather die than hang
        same = np.array_equal(mechanism.attend(tokens, tokens, tokens), expected)
        os._exit(0 if same else 3)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
assert np.array_equal(mechanism.attend(tokens, tokens, tokens), expected)
"""
    )
    run_python(code, **SEVERAL)


# ---- sharing work ---------------------------------------------------------------------------


def test_every_task_is_done_once() -> None:
    lock = threading.Lock()
    done: list[int] = []

    def kernel(tasks: int, counter: Any) -> None:
        while True:
            with lock:
                task = int(counter[0])
                counter[0] += 1
            if task >= tasks:
                return
            done.append(task)

    for tasks, workers in ((0, 3), (1, 3), (100, 1), (100, 3)):
        done.clear()
        threads.run(kernel, (tasks,), tasks, workers)
        assert sorted(done) == list(range(tasks))


def test_an_error_in_a_helper_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "limit", lambda: 2)
    started = threading.Event()
    main = threading.current_thread()

    def kernel(counter: Any) -> None:
        if threading.current_thread() is main:
            assert started.wait(60)
            return
        started.set()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.run(kernel, (), 2, 2)


def test_causal_blocks_are_shared_out_too(build: Any, tokens: Any) -> None:
    whole = build(dim=64, heads=4).attend(tokens, tokens, tokens, mask=Causal())
    one = build(dim=64, heads=4, threads=1).attend(tokens, tokens, tokens, mask=Causal())
    np.testing.assert_array_equal(whole, one)


def test_an_error_in_a_helper_is_the_callers() -> None:
    caller, started = threading.get_ident(), threading.Event()

    def kernel(counter: Any) -> None:
        if threading.get_ident() != caller:
            started.set()
            raise ArithmeticError("in a helper")
        assert started.wait(60)

    if threads.limit() < 2:
        pytest.skip("needs two threads")
    with pytest.raises(ArithmeticError, match="in a helper"):
        threads.run(kernel, (), 2, 2)
    threads.run(lambda counter: None, (), 2, 2)  # the helper lives on


def test_the_caller_waits_for_helpers_that_take_long() -> None:
    caller, started, finished = threading.get_ident(), threading.Event(), []

    def kernel(counter: Any) -> None:
        if threading.get_ident() != caller:
            started.set()
            time.sleep(0.2)
            finished.append(True)
        assert started.wait(60)

    if threads.limit() < 2:
        pytest.skip("needs two threads")
    threads.run(kernel, (), 2, 2)
    assert finished == [True]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs processor affinity")
def test_helpers_are_kept_off_the_callers_processor(run_python: Any) -> None:
    code = """
import os, threading
from polyattn_core.simd import threads
caller, allowed = threading.get_ident(), os.sched_getaffinity(0)
if len(allowed) > 1:
    found = []
    def kernel(counter):
        if threading.get_ident() != caller:
            found.append(os.sched_getaffinity(0))
            several.set()
        assert several.wait(60)
    for _ in range(5):
        several = threading.Event()
        threads.run(kernel, (), 2, 2)
    assert os.sched_getaffinity(0) == allowed
    assert all(len(own) == len(allowed) - 1 and own < allowed for own in found[1:]), found
    # Within the processors that the caller may use, where these are changed later.
    few = set(sorted(allowed)[:2])
    os.sched_setaffinity(0, few)
    threads.run(kernel, (), 2, 2)
    assert len(few) == 2
    os.sched_setaffinity(0, {min(allowed)})
    several = threading.Event()
    threads.run(kernel, (), 2, 2)  # one processor alone: helpers stay where they may be
"""
    run_python(code, NUMBA_NUM_THREADS="2")
