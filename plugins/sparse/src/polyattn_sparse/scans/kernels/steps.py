"""The kernel of a scan token by token: the state stays in the cache, read and written once a token.

The coordinates of the values are in the lanes of vectors. They never meet: what a delta rule reads
before it writes is a sum down the column itself. So columns are shared out between tasks.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from polyattn_core.simd import target
from polyattn_core.simd.jit import Kernel, inline
from polyattn_core.simd.mathematics import exp
from polyattn_core.simd.scores import counter_type, take_task
from polyattn_core.simd.vector import Loop, Vectors, index, pointer

_COLUMNS = 4  # vectors that share the factors of a row


def lanes(dtype: str) -> int:
    """Coordinates of the values in a vector."""
    return target.tile(dtype).lanes


def _read(dtype: str, columns: int) -> Any:
    """out[to …] = Σ_d line[d] · memory[at + d · step …], `columns` vectors of it."""
    vectors = Vectors(dtype, lanes(dtype))

    @intrinsic
    def read(typing, memory, at, step, line, out, to):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            kinds = signature.args
            rows, factors, result = (
                pointer(context, builder, kinds[i], args[i]) for i in (0, 3, 4)
            )
            size = context.make_array(kinds[3])(context, builder, args[3]).shape
            total = [vectors.constant(0.0)] * columns
            with Loop(builder, builder.extract_value(size, 0), total) as loop:
                row = builder.gep(rows, [builder.add(args[1], builder.mul(loop.i, args[2]))])
                factor = vectors.splat(builder, builder.load(builder.gep(factors, [loop.i])))
                sums = []
                for n in range(columns):
                    part = vectors.load(builder, row, index(n * vectors.lanes))
                    sums.append(vectors.multiply_add(builder, part, factor, loop.carried[n]))
                loop.close(sums)
            place = builder.gep(result, [args[5]])
            for n in range(columns):
                vectors.store(builder, loop.carried[n], place, index(n * vectors.lanes))
            return context.get_dummy_value()

        whole = types.int64
        return types.void(memory, whole, whole, line, out, whole), emit

    return read


def _write(dtype: str, columns: int) -> Any:
    """memory[at + d · step …] ← decay[d] · itself + key[d] · update[to …], and read with query."""
    vectors = Vectors(dtype, lanes(dtype))

    @intrinsic
    def write(typing, memory, at, step, decay, key, query, update, out, to):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            kinds = signature.args
            rows, decays, keys, queries, updates, result = (
                pointer(context, builder, kinds[i], args[i]) for i in (0, 3, 4, 5, 6, 7)
            )
            size = context.make_array(kinds[4])(context, builder, args[4]).shape
            place = builder.gep(updates, [args[8]])
            new = [vectors.load(builder, place, index(n * vectors.lanes)) for n in range(columns)]
            total = [vectors.constant(0.0)] * columns
            with Loop(builder, builder.extract_value(size, 0), total) as loop:
                row = builder.gep(rows, [builder.add(args[1], builder.mul(loop.i, args[2]))])
                a, k, q = (
                    vectors.splat(builder, builder.load(builder.gep(line, [loop.i])))
                    for line in (decays, keys, queries)
                )
                sums = []
                for n in range(columns):
                    part = vectors.load(builder, row, index(n * vectors.lanes))
                    part = vectors.multiply_add(builder, k, new[n], builder.fmul(a, part))
                    vectors.store(builder, part, row, index(n * vectors.lanes))
                    sums.append(vectors.multiply_add(builder, part, q, loop.carried[n]))
                loop.close(sums)
            place = builder.gep(result, [args[8]])
            for n in range(columns):
                vectors.store(builder, loop.carried[n], place, index(n * vectors.lanes))
            return context.get_dummy_value()

        whole = types.int64
        lines = (decay, key, query, update, out)
        return types.void(memory, whole, whole, *lines, whole), emit

    return write


@functools.cache
def _operations(dtype: str) -> SimpleNamespace:
    """`read` and `write` over any number of vectors."""
    across = np.int64(lanes(dtype))
    read_many, read_one = (_read(dtype, n) for n in (_COLUMNS, 1))
    write_many, write_one = (_write(dtype, n) for n in (_COLUMNS, 1))

    @inline
    def read(memory, at, step, count, line, out):  # type: ignore[no-untyped-def]
        n = 0
        while n < count:
            if count - n >= _COLUMNS:
                read_many(memory, at + n * across, step, line, out, n * across)
                n += _COLUMNS
            else:
                read_one(memory, at + n * across, step, line, out, n * across)
                n += 1

    @inline
    def write(memory, at, step, count, decay, key, query, update, out):  # type: ignore[no-untyped-def]
        n = 0
        while n < count:
            place = at + n * across
            if count - n >= _COLUMNS:
                write_many(memory, place, step, decay, key, query, update, out, n * across)
                n += _COLUMNS
            else:
                write_one(memory, place, step, decay, key, query, update, out, n * across)
                n += 1

    return SimpleNamespace(read=read, write=write)


@functools.cache
def step_kernel(dtype: str) -> Kernel:
    """The kernel ``(query, key, value, logarithms, beta, state, out, share, counter)`` of a dtype.

    `state` (batch, heads, size, value size in whole vectors) is read and written; a task is `share`
    vectors of it. Logarithms and β of size 0 are none.
    """
    number, across = np.dtype(dtype).type, np.int64(lanes(dtype))
    ops = _operations(dtype)
    read, write = ops.read, ops.write

    @inline
    def load(source, line):  # type: ignore[no-untyped-def]
        for d in range(np.uint64(source.size)):
            line[d] = source[d]

    def steps(query, key, value, logarithms, beta, state, out, share, counter):  # type: ignore[no-untyped-def]
        heads, tokens, size = key.shape[1], key.shape[2], key.shape[3]
        group, width, padded = query.shape[2], value.shape[3], state.shape[3]
        vectors = padded // across
        tasks = (vectors + share - 1) // share
        decay, keys, line = np.ones(size, number), np.empty(size, number), np.empty(size, number)
        update, found = np.zeros(share * across, number), np.empty(share * across, number)
        memory = state.reshape(-1)
        while True:
            task = take_task(counter)
            if task >= key.shape[0] * heads * tasks:
                break
            b, h, part = task // tasks // heads, task // tasks % heads, task % tasks
            count = min(share, vectors - part * share)
            first = part * share * across
            stop = min(first + count * across, width)
            at = (b * heads + h) * size * padded + first
            for t in range(tokens):
                load(key[b, h, t], keys)
                load(value[b, h, t, first:stop], update)
                if logarithms.size > 0:
                    if logarithms.shape[3] == size:
                        load(logarithms[b, h, t], decay)
                        for d in range(np.uint64(size)):
                            decay[d] = exp(decay[d])
                    else:
                        same = exp(logarithms[b, h, t, 0])
                        for d in range(np.uint64(size)):
                            decay[d] = same
                if beta.size > 0:
                    for d in range(np.uint64(size)):
                        line[d] = decay[d] * keys[d]
                    read(memory, at, padded, count, line, found)
                    strength = beta[b, h, t, 0]
                    for e in range(np.uint64(stop - first)):
                        update[e] = strength * (update[e] - found[e])
                for g in range(group):
                    load(query[b, h, g, t], line)
                    if g == 0:
                        write(memory, at, padded, count, decay, keys, line, update, found)
                    else:
                        read(memory, at, padded, count, line, found)
                    for e in range(np.uint64(stop - first)):
                        out[b, h, g, t, first + e] = found[e]

    kind = types.float32 if dtype == "float32" else types.float64

    def array(ndim: int, layout: str = "A", readonly: bool = True) -> Any:
        return types.Array(kind, ndim, layout, readonly=readonly)

    signature = types.void(
        array(5), array(4), array(4), array(4), array(4), array(4, "C", readonly=False),
        array(5, readonly=False), types.int64, counter_type(),
    )  # fmt: skip
    return Kernel(steps, signature, f"{dtype} {target.tile(dtype)}")
