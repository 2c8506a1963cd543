"""How a compiled kernel touches memory: loads and stores at an address, converted to the number it computes with.

Each array of a launch is a slot of its own. Every access says so to LLVM (alias scopes), which may then vectorize a
loop over any number of slots; without that it gives up at five. What the conversions mean stands in `storage`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from schuss.compile.storage import (
    BLOCK,
    BYTES,
    FIRST,
    GOLDEN,
    LEVEL_BITS,
    LEVEL_MOST,
    LEVEL_OFFSET,
    LEVEL_TOP,
    SECOND,
)

Builder = ir.IRBuilder
_FLOAT, _DOUBLE, _HALF = ir.FloatType(), ir.DoubleType(), ir.HalfType()
_INT8, _INT16, _INT32, _INT64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_INFINITY, _SIGN = 0x7F800000, 0x80000000


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_INT32, value)


def _magnitude(b: Builder, bits: Any) -> Any:
    return b.and_(bits, _constant(_SIGN - 1))


def _finite(b: Builder, bits: Any) -> Any:
    return b.icmp_unsigned("<", _magnitude(b, bits), _constant(_INFINITY))


def _with_sign_of(b: Builder, bits: Any, magnitude: Any) -> Any:
    return b.bitcast(b.or_(b.and_(bits, _constant(_SIGN)), magnitude), _FLOAT)


# To nearest


def _bfloat16_to_float(b: Builder, bits: Any) -> Any:
    """A bfloat16 is the upper half of a float32."""
    return b.bitcast(b.shl(b.zext(bits, _INT32), _constant(16)), _FLOAT)


def _float_to_bfloat16(b: Builder, value: Any) -> Any:
    """Round to nearest, ties to even; a NaN stays one."""
    bits = b.bitcast(value, _INT32)
    upper = b.lshr(bits, _constant(16))
    odd = b.and_(upper, _constant(1))
    rounded = b.lshr(b.add(bits, b.add(odd, _constant(0x7FFF))), _constant(16))
    quiet = b.or_(upper, _constant(0x40))
    return b.trunc(b.select(b.fcmp_unordered("uno", value, value), quiet, rounded), _INT16)


# By chance


def _draw_bfloat16(b: Builder, value: Any, chance: Any) -> Any:
    """Add 16 random bits below those that are kept, and cut them off."""
    bits = b.bitcast(value, _INT32)
    moved = b.lshr(b.add(bits, b.lshr(chance, _constant(16))), _constant(16))
    return b.select(_finite(b, bits), b.trunc(moved, _INT16), _float_to_bfloat16(b, value))


def _draw_float16(b: Builder, value: Any, chance: Any) -> Any:
    """Add 13 random bits and cut them off; below the normal numbers, all 2⁻²⁴ apart, take the floor after adding."""
    bits = b.bitcast(value, _INT32)
    magnitude = _magnitude(b, bits)
    cut = b.and_(b.add(magnitude, b.lshr(chance, _constant(19))), _constant(0xFFFFE000))
    fraction = b.fmul(b.uitofp(b.lshr(chance, _constant(8)), _FLOAT), _FLOAT(2.0**-24))
    units = b.fadd(b.fmul(b.bitcast(magnitude, _FLOAT), _FLOAT(2.0**24)), fraction)
    floor = b.bitcast(b.fmul(b.sitofp(b.fptosi(units, _INT32), _FLOAT), _FLOAT(2.0**-24)), _INT32)
    normal = b.icmp_unsigned(">=", magnitude, _constant(0x38800000))
    kept = _with_sign_of(b, bits, b.select(normal, cut, floor))
    return b.fptrunc(b.select(_finite(b, bits), kept, value), _HALF)


# Compensated


def _join_bfloat16(b: Builder, upper: Any, rest: Any) -> Any:
    """The float32 whose upper half is `upper` and whose lower half, signed, is `rest`.

    Where someone has written a 0 or an infinity since, the rest is no part of it.
    """
    bits = b.shl(b.zext(upper, _INT32), _constant(16))
    whole = b.add(_magnitude(b, bits), b.sext(rest, _INT32))
    kept = b.and_(_finite(b, bits), b.icmp_signed(">=", whole, _constant(0)))
    return _with_sign_of(b, bits, b.select(kept, whole, _magnitude(b, bits)))


def _split_bfloat16(b: Builder, value: Any) -> tuple[Any, Any]:
    """The nearest bfloat16, of two the larger, and what is missing to the number: exactly 16 bits with their sign."""
    bits = b.bitcast(value, _INT32)
    rounded = b.and_(b.add(_magnitude(b, bits), _constant(0x8000)), _constant(0x7FFF0000))
    upper = b.trunc(b.lshr(b.or_(rounded, b.and_(bits, _constant(_SIGN))), _constant(16)), _INT16)
    rest = b.trunc(b.sub(_magnitude(b, bits), rounded), _INT16)
    finite = _finite(b, bits)
    return b.select(finite, upper, _float_to_bfloat16(b, value)), b.select(finite, rest, _INT16(0))


def _join_float16(b: Builder, upper: Any, rest: Any) -> Any:
    return b.fadd(b.fpext(upper, _FLOAT), b.fmul(b.fpext(rest, _FLOAT), _FLOAT(2.0**-11)))


def _split_float16(b: Builder, value: Any) -> tuple[Any, Any]:
    """The nearest float16, and what is missing to the number, times 2¹¹ so that it is seldom a denormal."""
    upper = b.fptrunc(value, _HALF)
    missing = b.fmul(b.fsub(value, b.fpext(upper, _FLOAT)), _FLOAT(2.0**11))
    finite = _finite(b, b.bitcast(b.fpext(upper, _FLOAT), _INT32))
    return upper, b.fptrunc(b.select(finite, missing, _FLOAT(0.0)), _HALF)


# Levels of a block


def _level_to_float(b: Builder, code: Any, scale: Any) -> Any:
    signed = b.sext(code, _INT32)
    negative = b.icmp_signed("<", signed, _constant(0))
    level = b.select(negative, b.neg(signed), signed)
    bits = b.shl(b.add(level, _constant(LEVEL_OFFSET)), _constant(LEVEL_BITS))
    size = b.select(b.icmp_signed("==", level, _constant(0)), _FLOAT(0.0), b.bitcast(bits, _FLOAT))
    return b.fmul(b.select(negative, b.fneg(size), size), scale)


def _float_to_level(b: Builder, value: Any, inverse: Any, chance: Any) -> Any:
    """One of the two nearest codes, by chance; the least level for all that is smaller, 0 for 0."""
    bits = b.bitcast(b.fmul(value, inverse), _INT32)
    raised = b.add(_magnitude(b, bits), b.lshr(chance, _constant(32 - LEVEL_BITS)))
    level = b.sub(b.lshr(raised, _constant(LEVEL_BITS)), _constant(LEVEL_OFFSET))
    level = b.select(b.icmp_signed("<", level, _constant(1)), _constant(1), level)
    level = b.select(b.icmp_signed(">", level, _constant(LEVEL_MOST)), _constant(LEVEL_MOST), level)
    level = b.select(b.fcmp_ordered("==", value, _FLOAT(0.0)), _constant(0), level)
    return b.trunc(b.select(b.icmp_signed("<", bits, _constant(0)), b.neg(level), level), _INT8)


# dtype name -> (to the number computed with, and back), for float32 computation
_NARROW: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "float32": (lambda b, x: x, lambda b, x: x),
    "bfloat16": (_bfloat16_to_float, _float_to_bfloat16),
    "float16": (lambda b, x: b.fpext(x, _FLOAT), lambda b, x: b.fptrunc(x, _HALF)),
}
_DRAWN = {"bfloat16": _draw_bfloat16, "float16": _draw_float16}
_COMPENSATED = {"bfloat16": (_join_bfloat16, _split_bfloat16), "float16": (_join_float16, _split_float16)}
_STORED: dict[str, ir.Type] = {
    "float64": _DOUBLE,
    "float32": _FLOAT,
    "bfloat16": _INT16,
    "float16": _HALF,
    "int16": _INT16,
    "int8": _INT8,
}


def _in_ir(result: Any, arguments: list[Any], emit: Callable[..., Any]) -> Any:
    """A function that compiled code can call: what `emit(builder, *values)` writes for it."""

    def code(context: Any, b: Builder, signature: Any, values: Any) -> Any:
        made = emit(b, *values)
        return context.get_dummy_value() if result is types.void else made

    # Numba counts a function's parameters.
    by_count: dict[int, Callable[..., Any]] = {
        1: lambda typing, p: (result(*arguments), code),
        2: lambda typing, p, q: (result(*arguments), code),
        3: lambda typing, p, q, r: (result(*arguments), code),
        4: lambda typing, p, q, r, s: (result(*arguments), code),
        5: lambda typing, p, q, r, s, t: (result(*arguments), code),
    }
    return intrinsic(by_count[len(arguments)])


_PLACE, _BITS = types.int64, types.int32


class Slots:
    """How a kernel that computes in `real` touches the memory of its `count` arrays, each by its number."""

    def __init__(self, count: int, real: str) -> None:
        self.count = count
        self.wide = real == "float64"
        self.number = types.float64 if self.wide else types.float32

    def _float(self, b: Builder, value: Any) -> Any:
        """A number as float32, from which all narrow ones are rounded."""
        return b.fptrunc(value, _FLOAT) if self.wide else value

    def _number(self, b: Builder, value: Any) -> Any:
        return b.fpext(value, _DOUBLE) if self.wide else value

    def _load(self, b: Builder, index: int, dtype: str, address: Any, i: Any) -> Any:
        pointer = b.gep(b.inttoptr(address, _STORED[dtype].as_pointer()), [i])
        return self._alone(b, index, b.load(pointer, align=BYTES[dtype]))

    def _store(self, b: Builder, index: int, dtype: str, address: Any, i: Any, value: Any) -> None:
        pointer = b.gep(b.inttoptr(address, _STORED[dtype].as_pointer()), [i])
        self._alone(b, index, b.store(value, pointer, align=BYTES[dtype]))

    def _alone(self, b: Builder, index: int, access: Any) -> Any:
        module = b.module
        domain = module.add_metadata([ir.MetaDataString(module, "launch")])
        scopes = [
            module.add_metadata([ir.MetaDataString(module, f"slot {k}"), domain]) for k in range(self.count)
        ]
        access.set_metadata("alias.scope", module.add_metadata([scopes[index]]))
        access.set_metadata("noalias", module.add_metadata([s for k, s in enumerate(scopes) if k != index]))
        return access

    def nearest(self, index: int, dtype: str) -> tuple[Any, Any]:
        """`load(address, i)` and `store(address, i, number)`."""
        if dtype == "float64":  # which is computed with in itself
            widen, narrow = (lambda b, x: x), (lambda b, x: x)
        else:
            to_float, from_float = _NARROW[dtype]
            widen, narrow = (
                lambda b, x: self._number(b, to_float(b, x)),
                lambda b, x: from_float(b, self._float(b, x)),
            )

        def load(b: Builder, address: Any, i: Any) -> Any:
            return widen(b, self._load(b, index, dtype, address, i))

        def store(b: Builder, address: Any, i: Any, value: Any) -> None:
            self._store(b, index, dtype, address, i, narrow(b, value))

        return (
            _in_ir(self.number, [_PLACE, _PLACE], load),
            _in_ir(types.void, [_PLACE, _PLACE, self.number], store),
        )

    def by_chance(self, index: int, dtype: str) -> tuple[Any, Any]:
        """`load(address, i)` and `store(address, i, number, chance)`."""

        def store(b: Builder, address: Any, i: Any, value: Any, chance: Any) -> None:
            self._store(b, index, dtype, address, i, _DRAWN[dtype](b, self._float(b, value), chance))

        load, _ = self.nearest(index, dtype)
        return load, _in_ir(types.void, [_PLACE, _PLACE, self.number, _BITS], store)

    def compensated(self, index: int, dtype: str, beside: int, rest: str) -> tuple[Any, Any]:
        """`load(address, address beside, i)` and `store(address, address beside, i, number)`."""
        join, split = _COMPENSATED[dtype]

        def load(b: Builder, address: Any, rests: Any, i: Any) -> Any:
            upper = self._load(b, index, dtype, address, i)
            return self._number(b, join(b, upper, self._load(b, beside, rest, rests, i)))

        def store(b: Builder, address: Any, rests: Any, i: Any, value: Any) -> None:
            upper, missing = split(b, self._float(b, value))
            self._store(b, index, dtype, address, i, upper)
            self._store(b, beside, rest, rests, i, missing)

        return (
            _in_ir(self.number, [_PLACE, _PLACE, _PLACE], load),
            _in_ir(types.void, [_PLACE, _PLACE, _PLACE, self.number], store),
        )

    def levels(self, index: int) -> tuple[Any, Any]:
        """`load(address, i, scale)` and `store(address, i, number, inverse scale, chance)`; scales are float32."""

        def load(b: Builder, address: Any, i: Any, scale: Any) -> Any:
            return self._number(b, _level_to_float(b, self._load(b, index, "int8", address, i), scale))

        def store(b: Builder, address: Any, i: Any, value: Any, inverse: Any, chance: Any) -> None:
            self._store(b, index, "int8", address, i, _float_to_level(b, value, inverse, chance))

        return (
            _in_ir(self.number, [_PLACE, _PLACE, types.float32], load),
            _in_ir(types.void, [_PLACE, _PLACE, types.float32, types.float32, _BITS], store),
        )

    def raw(self, index: int) -> tuple[Any, Any]:
        """`load(address, i)` and `store(address, i, float32)` of float32 numbers, whatever the kernel computes in."""

        def load(b: Builder, address: Any, i: Any) -> Any:
            return self._load(b, index, "float32", address, i)

        def store(b: Builder, address: Any, i: Any, value: Any) -> None:
            self._store(b, index, "float32", address, i, value)

        return (
            _in_ir(types.float32, [_PLACE, _PLACE], load),
            _in_ir(types.void, [_PLACE, _PLACE, types.float32], store),
        )


def _reader(number: Any, stored: ir.Type) -> Any:
    def read(b: Builder, address: Any, i: Any) -> Any:
        return b.load(b.gep(b.inttoptr(address, stored.as_pointer()), [i]), align=8)

    return _in_ir(number, [_PLACE, _PLACE], read)


read_int64 = _reader(types.int64, _INT64)
read_float64 = _reader(types.float64, _DOUBLE)


def _writer(number: Any, stored: ir.Type) -> Any:
    def write(b: Builder, address: Any, i: Any, value: Any) -> None:
        b.store(value, b.gep(b.inttoptr(address, stored.as_pointer()), [i]), align=8)

    return _in_ir(types.void, [_PLACE, _PLACE, number], write)


write_int64 = _writer(types.int64, _INT64)
write_float64 = _writer(types.float64, _DOUBLE)


# Calls of functions of C, by their address


def _called(result: ir.Type, *arguments: ir.Type) -> Callable[..., Any]:
    kind = ir.FunctionType(result, arguments).as_pointer()

    def call(b: Builder, function: Any, *values: Any) -> Any:
        return b.sext(b.call(b.inttoptr(function, kind), values), _INT64)

    return call


# `PyObject *function(PyObject *, Py_ssize_t)`, as an address, and `int function(void *, void *)`.
call_for_object = _in_ir(_PLACE, [_PLACE, _PLACE, _PLACE], _called(_INT64, _INT64, _INT64))
call_for_status = _in_ir(_PLACE, [_PLACE, _PLACE, _PLACE], _called(_INT32, _INT64, _INT64))


def _prefetch(b: Builder, address: Any) -> None:
    pointer = _INT8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _INT32, _INT32, _INT32])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(function, [b.inttoptr(address, pointer), _constant(1), _constant(3), _constant(1)])


# Ask for the memory at an address ahead of its use; any address will do.
prefetch = _in_ir(types.void, [_PLACE], _prefetch)


# A block's numbers, between the update and the rounding that needs the largest of them


def _spare(b: Builder, index: Any) -> Any:
    del index
    return b.ptrtoint(cgutils.alloca_once(b, ir.ArrayType(_FLOAT, BLOCK)), _INT64)


# Where a block's numbers can stay for a while.
spare = _in_ir(_PLACE, [_PLACE], _spare)


def _larger(b: Builder, most: Any, value: Any) -> Any:
    size = _magnitude(b, b.bitcast(value, _INT32))
    return b.select(b.icmp_signed(">", size, most), size, most)


# The larger of a magnitude (as bits: a NaN is larger than any number) and that of a float32.
larger = _in_ir(_BITS, [_BITS, types.float32], _larger)
# The scale of a block with this largest magnitude, and its inverse.
scale_of = _in_ir(
    types.float32, [_BITS], lambda b, most: b.fmul(b.bitcast(most, _FLOAT), _FLOAT(1 / LEVEL_TOP))
)


inverse_of = _in_ir(
    types.float32, [_BITS], lambda b, most: b.fdiv(_FLOAT(LEVEL_TOP), b.bitcast(most, _FLOAT))
)


# Chance


def _shifted(b: Builder, x: Any, by: int) -> Any:
    return b.xor(x, b.lshr(x, _constant(by)))


def _hashed(b: Builder, x: Any, between: Any) -> Any:
    x = b.mul(_shifted(b, x, 16), _constant(FIRST))
    x = b.mul(_shifted(b, b.xor(x, between), 15), _constant(SECOND))
    return _shifted(b, x, 16)


def _stream(b: Builder, key: Any, place: Any, number: Any) -> Any:
    """What the draws of one row, for array `number`, share: half of it."""
    upper = b.trunc(b.lshr(place, ir.Constant(_INT64, 32)), _INT32)
    x = b.add(b.fptoui(key, _INT32), b.mul(b.trunc(number, _INT32), _constant(GOLDEN)))
    return b.zext(_hashed(b, x, upper), _INT64)


stream = _in_ir(_PLACE, [types.float64, _PLACE, _PLACE], _stream)


def _draw(b: Builder, place: Any, first: Any, second: Any) -> Any:
    x = b.add(b.trunc(place, _INT32), b.trunc(first, _INT32))
    return _hashed(b, x, b.trunc(second, _INT32))


# 32 random bits for the number at a place, from the two halves of a stream.
draw = _in_ir(_BITS, [_PLACE, _PLACE, _PLACE], _draw)
