"""Building blocks that emit LLVM vector code.

Everything works on vectors of `lanes` floats of one type. Multiply-add is `llvm.fmuladd`, which is
right on processors without the instruction (where `llvm.fma` becomes a library call a lane), and
rounding is `llvm.rint`: the trick with a large constant would be folded away by the fast-math flags
that Numba puts on every addition of a function.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

I32 = ir.IntType(32)
I64 = ir.IntType(64)

# Minimax polynomials of 2^f on [-1/2, 1/2], constant term first: relative error 1.5e-7 evaluated in
# float32, 1.1e-16 in float64. 2^0 is exactly 1, so that where a maximum stays, rescaling changes
# nothing.
_EXP2 = {
    "float32": (
        1.0,
        0.6931470036506653,
        0.24022246897220612,
        0.0555071085691452,
        0.009671291336417198,
        0.0013269532937556505,
    ),
    "float64": (
        1.0,
        0.6931471805599453,
        0.24022650695910158,
        0.055504108664821625,
        0.009618129107587256,
        0.001333355814640647,
        0.00015403530463724353,
        1.5252733841556773e-05,
        1.3215432535912375e-06,
        1.0178057087733941e-07,
        7.074194297288521e-09,
        4.4558179083360645e-10,
    ),
}
_LEAST_EXPONENT = {"float32": -126.0, "float64": -1022.0}
_MANTISSA_BITS = {"float32": 23, "float64": 52}


def index(value: int) -> ir.Constant:
    """A constant index."""
    return ir.Constant(I64, value)


def pointer(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Address of the first element of an array argument, which may be a pointer already."""
    if isinstance(kind, types.CPointer):
        return array
    return context.make_array(kind)(context, builder, array).data


@intrinsic  # type: ignore[untyped-decorator]
def raw(typing, array):  # type: ignore[no-untyped-def]
    """A pointer to the first element, for indices that are known to be inside.

    An index of an array may be negative and then counts from the end, which makes addresses
    that LLVM does not see through: loops over them become scatters and gathers. Whoever takes
    a pointer keeps the array alive, with :func:`hold` after its last use.
    """

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return pointer(context, builder, signature.args[0], args[0])

    return types.CPointer(array.dtype)(array), emit


@intrinsic  # type: ignore[untyped-decorator]
def hold(typing, *arrays):  # type: ignore[no-untyped-def]
    """Does nothing; arrays live until here."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return context.get_dummy_value()

    return types.void(types.StarArgTuple.from_types(arrays)), emit


@dataclass(frozen=True)
class Vectors:
    """Vectors of `lanes` numbers of `dtype`."""

    dtype: str
    lanes: int

    @property
    def scalar(self) -> Any:
        """LLVM type of one number."""
        return ir.FloatType() if self.dtype == "float32" else ir.DoubleType()

    @property
    def type(self) -> Any:
        """LLVM type of one vector."""
        return ir.VectorType(self.scalar, self.lanes)

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return 4 if self.dtype == "float32" else 8

    def constant(self, value: float) -> Any:
        """A vector of one constant."""
        return ir.Constant(self.type, [value] * self.lanes)

    def splat(self, builder: Any, scalar: Any) -> Any:
        """A vector of one number."""
        empty = ir.Constant(self.type, ir.Undefined)
        first = builder.insert_element(empty, scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return builder.shuffle_vector(first, empty, zeros)

    def load(self, builder: Any, base: Any, offset: Any, align: int = 0) -> Any:
        """Load from `base[offset]`; aligned to one number unless told otherwise."""
        place = builder.bitcast(builder.gep(base, [offset]), ir.PointerType(self.type))
        vector = builder.load(place, typ=self.type)
        vector.align = align or self.itemsize
        return vector

    def store(self, builder: Any, vector: Any, base: Any, offset: Any, align: int = 0) -> None:
        """Store to `base[offset]`."""
        place = builder.bitcast(builder.gep(base, [offset]), ir.PointerType(self.type))
        builder.store(vector, place).align = align or self.itemsize

    def _call(self, builder: Any, name: str, *args: Any) -> Any:
        suffix = f"v{self.lanes}f{8 * self.itemsize}"
        function_type = ir.FunctionType(self.type, [self.type] * len(args))
        function = cgutils.get_or_insert_function(
            builder.module, function_type, f"llvm.{name}.{suffix}"
        )
        return builder.call(function, args)

    def multiply_add(self, builder: Any, x: Any, y: Any, z: Any) -> Any:
        """x·y + z, in one instruction where there is one."""
        return self._call(builder, "fmuladd", x, y, z)

    def maximum(self, builder: Any, x: Any, y: Any) -> Any:
        """The larger; `y` where either is NaN, which is what one instruction does."""
        return builder.select(builder.fcmp_ordered(">", x, y), x, y)

    def exp2(self, builder: Any, x: Any) -> Any:
        """2^x for x ≤ 0; exactly 0 below the smallest normal number and at −inf, NaN at NaN."""
        least = self.constant(_LEAST_EXPONENT[self.dtype])
        inside = self.maximum(builder, least, x)
        whole = self._call(builder, "rint", inside)
        part = builder.fsub(inside, whole)
        coefficients = _EXP2[self.dtype]
        power = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            power = self.multiply_add(builder, power, part, self.constant(coefficient))
        # The exponent moves by an integer shift. 64-bit lanes go through 32-bit integers, since
        # few processors convert vectors of doubles to 64-bit integers.
        narrow = builder.fptosi(whole, ir.VectorType(I32, self.lanes))
        bits: Any = ir.VectorType(I32, self.lanes)
        if self.dtype == "float64":
            bits = ir.VectorType(I64, self.lanes)
            narrow = builder.sext(narrow, bits)
        shift = ir.Constant(bits, [_MANTISSA_BITS[self.dtype]] * self.lanes)
        moved = builder.add(builder.bitcast(power, bits), builder.shl(narrow, shift))
        result = builder.bitcast(moved, self.type)
        tiny = builder.fcmp_ordered("<", x, least)
        return builder.select(tiny, self.constant(0.0), result)


class Loop:
    """``for i in range(start, stop, step)`` with values carried from turn to turn in registers.

    Inside the block, `i` is the index and `carried` the values; call :meth:`close` last, with the
    values for the next turn. After the block, `carried` holds the final values.
    """

    def __init__(
        self, builder: Any, stop: Any, carried: list[Any], step: Any = 1, start: Any = None
    ) -> None:
        self.builder, self.stop, self.initial = builder, stop, carried
        self.step = index(step) if isinstance(step, int) else step
        self.start = index(0) if start is None else start

    def __enter__(self) -> Loop:
        builder = self.builder
        before = builder.block
        self._head = builder.function.append_basic_block("loop.head")
        body = builder.function.append_basic_block("loop.body")
        self._exit = builder.function.append_basic_block("loop.exit")
        builder.branch(self._head)
        builder.position_at_end(self._head)
        self.i = builder.phi(I64)
        self.i.add_incoming(self.start, before)
        self.carried = []
        for value in self.initial:
            phi = builder.phi(value.type)
            phi.add_incoming(value, before)
            self.carried.append(phi)
        builder.cbranch(builder.icmp_signed("<", self.i, self.stop), body, self._exit)
        builder.position_at_end(body)
        return self

    def close(self, values: list[Any]) -> None:
        """End the body."""
        builder = self.builder
        following = builder.add(self.i, self.step, flags=["nsw"])
        self.i.add_incoming(following, builder.block)
        for phi, value in zip(self.carried, values, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(self._head)
        builder.position_at_end(self._exit)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None
