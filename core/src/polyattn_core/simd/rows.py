"""Products of one query row with many keys: for decoding, where lanes run along the head.

Keys and values are read in any of the :mod:`formats`, a vector at a time, widened in registers.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import target
from .formats import Format
from .vector import I32, Loop, Vectors, index, pointer

_INT = types.intp
_KEYS = 4  # keys at a time, so that the latencies of multiply-add overlap
_ACCUMULATORS = 8  # of a sum of values, for the same reason


def lane_sums(builder: Any, vectors: Vectors, totals: list[Any]) -> Any:
    """One vector of the sums over the lanes of as many vectors as it has lanes.

    In turn for each bit of the lane's number, pairs of vectors are folded into one in which that
    bit tells whose sum it is.
    """
    lanes, bit = vectors.lanes, 1
    while len(totals) > 1:
        own = [lanes + lane if lane & bit else lane for lane in range(lanes)]
        other = [(lanes + lane if lane & bit else lane) ^ bit for lane in range(lanes)]
        masks = [ir.Constant(ir.VectorType(I32, lanes), m) for m in (own, other)]
        totals = [
            builder.fadd(*(builder.shuffle_vector(a, b, mask) for mask in masks))
            for a, b in zip(totals[::2], totals[1::2], strict=True)
        ]
        bit *= 2
    return totals[0]


def _key_scores(form: Format, vectors: Vectors) -> Any:
    lanes = vectors.lanes
    unit = form.unit(lanes)

    @intrinsic  # type: ignore[untyped-decorator]
    def key_scores(
        typing, key, at, step, keys, scales, scale, by_group, scratch, query, scores, size, group
    ):  # type: ignore[no-untyped-def]
        """scratch[scores + i] = key row i · scratch[query : query + size].

        Written in whole vectors: up to a vector beyond the last key holds anything. `scales` are
        read from `scale`, those of the next group `by_group` further.
        """

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            key_, at_, step_, keys_, scales_, scale_, by_, scratch_, query_, scores_, size_, _ = (
                args
            )
            group_ = args[11]
            k = builder.gep(pointer(context, builder, signature.args[0], key_), [at_])
            c = builder.gep(pointer(context, builder, signature.args[4], scales_), [scale_])
            s = pointer(context, builder, signature.args[7], scratch_)
            q, to = builder.gep(s, [query_]), builder.gep(s, [scores_])
            last = builder.sub(keys_, index(1))
            whole = builder.sub(size_, builder.srem(size_, index(lanes)))
            zero = vectors.constant(0.0)

            def row(number: Any) -> Any:
                inside = builder.select(builder.icmp_signed("<", number, last), number, last)
                return builder.gep(k, [builder.mul(inside, step_)])

            def products(first: Any, start: Any, stop: Any) -> Any:
                """The sums over numbers start … stop of a vector of keys."""
                totals: list[Any] = []
                for m in range(0, lanes, _KEYS):
                    rows = [row(builder.add(first, index(m + n))) for n in range(_KEYS)]
                    with Loop(builder, stop, [zero] * _KEYS, lanes * unit, start) as loop:
                        sums = list(loop.carried)
                        for offset in range(0, lanes * unit, lanes):
                            place = builder.add(loop.i, index(offset))
                            left = vectors.load(builder, q, place)
                            for n in range(_KEYS):
                                right = form.load(builder, vectors, rows[n], loop.i, offset)
                                sums[n] = vectors.multiply_add(builder, left, right, sums[n])
                        loop.close(sums)
                    totals += loop.carried
                return lane_sums(builder, vectors, totals)

            with Loop(builder, keys_, [], lanes) as loop:
                if form.scaled:
                    with Loop(builder, size_, [zero, c], group_) as groups:
                        stop = builder.add(groups.i, group_)
                        part = products(loop.i, groups.i, stop)
                        factors = vectors.load(builder, groups.carried[1], loop.i)
                        total = vectors.multiply_add(builder, part, factors, groups.carried[0])
                        groups.close([total, builder.gep(groups.carried[1], [by_])])
                    total = groups.carried[0]
                else:
                    total = products(loop.i, index(0), whole)
                if not form.packed:
                    with Loop(builder, size_, [total], 1, whole) as rest:
                        column = ir.Constant(vectors.type, ir.Undefined)
                        for m in range(lanes):
                            own = row(builder.add(loop.i, index(m)))
                            number = builder.load(builder.gep(own, [rest.i]))
                            column = builder.insert_element(column, number, ir.Constant(I32, m))
                        left = vectors.splat(builder, builder.load(builder.gep(q, [rest.i])))
                        rest.close([vectors.multiply_add(builder, left, column, rest.carried[0])])
                    total = rest.carried[0]
                vectors.store(builder, total, to, loop.i)
                loop.close([])
            return context.get_dummy_value()

        arguments = (key, _INT, _INT, _INT, scales, _INT, _INT, scratch, _INT, _INT, _INT, _INT)
        return types.void(*arguments), emit

    return key_scores


def _value_sum(form: Format, vectors: Vectors) -> Any:
    lanes = vectors.lanes
    unit = form.unit(lanes)
    widths = [width for width in (_ACCUMULATORS, 4, 2, 1) if width >= unit]

    @intrinsic  # type: ignore[untyped-decorator]
    def value_sum(
        typing,
        value,
        at,
        step,
        keys,
        scales,
        scale,
        by_group,
        scratch,
        weights,
        spare,
        output,
        rescale,
        size,
        group,
    ):  # type: ignore[no-untyped-def]
        """Output row = output row · rescale + Σ scratch[weights + i] · value row i.

        `spare` has room for the weights, where they are multiplied by the scales of a group.
        """

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            value_, at_, step_, keys_, scales_, scale_, by_, scratch_, weights_, spare_ = args[:10]
            output_, rescale_, size_, group_ = args[10:]
            v = builder.gep(pointer(context, builder, signature.args[0], value_), [at_])
            c = builder.gep(pointer(context, builder, signature.args[4], scales_), [scale_])
            s = pointer(context, builder, signature.args[7], scratch_)
            w, x, o = (builder.gep(s, [place]) for place in (weights_, spare_, output_))
            factor = vectors.splat(builder, rescale_)

            def strip(factors: Any, start: Any, width: int) -> None:
                """`width` vectors of columns, several keys at a time."""
                deep = max(_ACCUMULATORS // width, 1)
                places = [builder.add(start, index(n * lanes)) for n in range(width)]
                before = [builder.fmul(vectors.load(builder, o, place), factor) for place in places]
                zeros = [vectors.constant(0.0)] * (width * (deep - 1))

                def add(first: Any, number: int, totals: list[Any]) -> list[Any]:
                    place = builder.add(first, index(number))
                    weight = vectors.splat(builder, builder.load(builder.gep(factors, [place])))
                    row = builder.gep(v, [builder.mul(place, step_)])
                    return [
                        vectors.multiply_add(
                            builder, weight,
                            form.load(builder, vectors, row, start, n * lanes), total,
                        )
                        for n, total in enumerate(totals)
                    ]  # fmt: skip

                blocks = builder.sub(keys_, builder.srem(keys_, index(deep)))
                with Loop(builder, blocks, before + zeros, deep) as loop:
                    sums: list[Any] = []
                    for number in range(deep):
                        own = loop.carried[number * width : (number + 1) * width]
                        sums += add(loop.i, number, own)
                    loop.close(sums)
                totals = loop.carried[:width]
                for number in range(1, deep):
                    more = loop.carried[number * width : (number + 1) * width]
                    totals = [builder.fadd(a, b) for a, b in zip(totals, more, strict=True)]
                if deep > 1:
                    with Loop(builder, keys_, totals, 1, blocks) as rest:
                        rest.close(add(rest.i, 0, rest.carried))
                    totals = rest.carried
                for place, total in zip(places, totals, strict=True):
                    vectors.store(builder, total, o, place)

            def strips(factors: Any, start: Any, stop: Any) -> Any:
                for width in widths:
                    wide = index(width * lanes)
                    left = builder.sub(stop, start)
                    end = builder.add(start, builder.sub(left, builder.srem(left, wide)))
                    with Loop(builder, end, [], width * lanes, start) as loop:
                        strip(factors, loop.i, width)
                        loop.close([])
                    start = end
                return start

            if form.scaled:
                with Loop(builder, size_, [c], group_) as groups:
                    with Loop(builder, keys_, [], lanes) as loop:
                        scale_vector = vectors.load(builder, groups.carried[0], loop.i)
                        weight = vectors.load(builder, w, loop.i)
                        scaled = builder.fmul(weight, scale_vector)
                        vectors.store(builder, scaled, x, loop.i)
                        loop.close([])
                    strips(x, groups.i, builder.add(groups.i, group_))
                    groups.close([builder.gep(groups.carried[0], [by_])])
                return context.get_dummy_value()
            whole = strips(w, index(0), size_)
            if form.packed:
                return context.get_dummy_value()
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

        arguments = (
            value, _INT, _INT, _INT, scales, _INT, _INT, scratch, _INT, _INT, _INT,
            form.number_type, _INT, _INT,
        )  # fmt: skip
        return types.void(*arguments), emit

    return value_sum


def row_operations(form: Format) -> SimpleNamespace:
    """The operations on one query row, for use inside kernels."""
    vectors = Vectors(form.dtype, target.tile(form.dtype).lanes)
    return SimpleNamespace(
        key_scores=_key_scores(form, vectors), value_sum=_value_sum(form, vectors)
    )
