"""Products of one query row with many keys: for decoding, where lanes run along the head."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import target
from .vector import Loop, Vectors, index, pointer

_INT = types.intp
_KEYS = 4  # keys at a time, so that the latencies of multiply-add overlap


def _sum(builder: Any, vectors: Vectors, value: Any) -> Any:
    """The sum of a vector's lanes, in any order."""
    suffix = f"v{vectors.lanes}f{8 * vectors.itemsize}"
    function_type = ir.FunctionType(vectors.scalar, [vectors.scalar, vectors.type])
    reduce = cgutils.get_or_insert_function(
        builder.module, function_type, f"llvm.vector.reduce.fadd.{suffix}"
    )
    zero = ir.Constant(vectors.scalar, 0.0)
    return builder.call(reduce, [zero, value], fastmath=("reassoc",))


def _key_scores(vectors: Vectors) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def key_scores(typing, key, at, step, keys, scratch, query, scores, size):  # type: ignore[no-untyped-def]
        """scratch[scores + i] = key row i · scratch[query : query + size]."""

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            key_, at_, step_, keys_, scratch_, query_, scores_, size_ = args
            k = builder.gep(pointer(context, builder, signature.args[0], key_), [at_])
            s = pointer(context, builder, signature.args[4], scratch_)
            q, to = builder.gep(s, [query_]), builder.gep(s, [scores_])
            lanes = index(vectors.lanes)
            whole = builder.sub(size_, builder.srem(size_, lanes))

            def some(first: Any, count: int) -> None:
                rows = [
                    builder.gep(k, [builder.mul(builder.add(first, index(m)), step_)])
                    for m in range(count)
                ]
                with Loop(builder, whole, [vectors.constant(0.0)] * count, vectors.lanes) as loop:
                    left = vectors.load(builder, q, loop.i)
                    loop.close(
                        [
                            vectors.multiply_add(
                                builder, left, vectors.load(builder, row, loop.i), total
                            )
                            for row, total in zip(rows, loop.carried, strict=True)
                        ]
                    )
                sums = [_sum(builder, vectors, total) for total in loop.carried]
                with Loop(builder, size_, sums, 1, whole) as rest:
                    left = builder.load(builder.gep(q, [rest.i]))
                    rest.close(
                        [
                            builder.fadd(
                                total,
                                builder.fmul(left, builder.load(builder.gep(row, [rest.i]))),
                            )
                            for row, total in zip(rows, rest.carried, strict=True)
                        ]
                    )
                for m, total in enumerate(rest.carried):
                    builder.store(total, builder.gep(to, [builder.add(first, index(m))]))

            blocks = builder.sub(keys_, builder.srem(keys_, index(_KEYS)))
            with Loop(builder, blocks, [], _KEYS) as loop:
                some(loop.i, _KEYS)
                loop.close([])
            with Loop(builder, keys_, [], 1, blocks) as loop:
                some(loop.i, 1)
                loop.close([])
            return context.get_dummy_value()

        arguments = (key, _INT, _INT, _INT, scratch, _INT, _INT, _INT)
        return types.void(*arguments), emit

    return key_scores


def _value_sum(vectors: Vectors, columns: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def value_sum(typing, value, at, step, keys, scratch, weights, output, rescale, size):  # type: ignore[no-untyped-def]
        """Output row = output row · rescale + Σ scratch[weights + i] · value row i."""

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            value_, at_, step_, keys_, scratch_, weights_, output_, rescale_, size_ = args
            v = builder.gep(pointer(context, builder, signature.args[0], value_), [at_])
            s = pointer(context, builder, signature.args[4], scratch_)
            w, o = builder.gep(s, [weights_]), builder.gep(s, [output_])
            factor = vectors.splat(builder, rescale_)

            def strip(start: Any, count: int) -> None:
                places = [builder.add(start, index(n * vectors.lanes)) for n in range(count)]
                before = [builder.fmul(vectors.load(builder, o, place), factor) for place in places]
                with Loop(builder, keys_, before) as loop:
                    weight = vectors.splat(builder, builder.load(builder.gep(w, [loop.i])))
                    row = builder.gep(v, [builder.mul(loop.i, step_)])
                    loop.close(
                        [
                            vectors.multiply_add(
                                builder, weight, vectors.load(builder, row, place), total
                            )
                            for place, total in zip(places, loop.carried, strict=True)
                        ]
                    )
                for place, total in zip(places, loop.carried, strict=True):
                    vectors.store(builder, total, o, place)

            wide = columns * vectors.lanes
            strips = builder.sub(size_, builder.srem(size_, index(wide)))
            with Loop(builder, strips, [], wide) as loop:
                strip(loop.i, columns)
                loop.close([])
            whole = builder.sub(size_, builder.srem(size_, index(vectors.lanes)))
            with Loop(builder, whole, [], vectors.lanes, strips) as loop:
                strip(loop.i, 1)
                loop.close([])
            with Loop(builder, size_, [], 1, whole) as loop:
                place = builder.gep(o, [loop.i])
                start = builder.fmul(builder.load(place), rescale_)
                with Loop(builder, keys_, [start]) as inner:
                    weight = builder.load(builder.gep(w, [inner.i]))
                    number = builder.load(
                        builder.gep(v, [builder.add(builder.mul(inner.i, step_), loop.i)])
                    )
                    inner.close([builder.fadd(inner.carried[0], builder.fmul(weight, number))])
                builder.store(inner.carried[0], place)
                loop.close([])
            return context.get_dummy_value()

        number = types.float32 if vectors.dtype == "float32" else types.float64
        arguments = (value, _INT, _INT, _INT, scratch, _INT, _INT, number, _INT)
        return types.void(*arguments), emit

    return value_sum


@functools.cache
def row_operations(dtype: str) -> SimpleNamespace:
    """The operations on one query row, for use inside kernels."""
    tile = target.tile(dtype)
    vectors = Vectors(dtype, tile.lanes)
    return SimpleNamespace(
        key_scores=_key_scores(vectors), value_sum=_value_sum(vectors, tile.columns)
    )
