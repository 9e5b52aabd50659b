"""The most that the processor could do: multiply-adds between registers, on all threads."""

from __future__ import annotations

import functools
import time

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

TITLE = "Register peak, float32"
_ACCUMULATORS = 12


def _loop(lanes: int):  # type: ignore[no-untyped-def]
    @intrinsic
    def multiply_add(typing, array, turns):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            kind = ir.VectorType(ir.FloatType(), lanes)
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            place = builder.bitcast(data, kind.as_pointer())
            first = builder.load(place, align=4)
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.v{lanes}f32"
            )
            sums = [cgutils.alloca_once_value(builder, first) for _ in range(_ACCUMULATORS)]
            with cgutils.for_range(builder, args[1]):
                for total in sums:
                    builder.store(builder.call(fma, [first, first, builder.load(total)]), total)
            result = builder.load(sums[0])
            for total in sums[1:]:
                result = builder.fadd(result, builder.load(total))
            builder.store(result, place, align=4)
            return context.get_dummy_value()

        return types.void(array, types.intp), emit

    @numba.njit(nogil=True)
    def run(array, turns):  # type: ignore[no-untyped-def]
        multiply_add(array, turns)

    return run


@functools.cache
def gigaflops() -> float:
    """The rate of all threads together, the best within a second."""
    import threading

    from polyattn_core.simd import target, threads

    lanes = target.vector_bytes() // 4
    run, count, turns = _loop(lanes), threads.limit(), 3_000_000
    arrays = [np.zeros(64, np.float32) for _ in range(count)]
    run(arrays[0], 10)
    best = 0.0
    # For a second: the threads may share a core at first.
    end = time.perf_counter() + 1.0
    while time.perf_counter() < end:
        workers = [threading.Thread(target=run, args=(a, turns)) for a in arrays]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - start
        best = max(best, 2e-9 * lanes * _ACCUMULATORS * turns * count / seconds)
    return best


def measure() -> list[dict[str, object]]:
    """The peak alone."""
    from polyattn_core.simd import threads

    return [{"threads": threads.limit(), "GFLOP/s": gigaflops()}]
