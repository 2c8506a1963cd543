"""How a compiled kernel touches memory: loads and stores at an address, converted to the number it computes with.

Each array of a launch is a slot of its own. Every access says so to LLVM (alias scopes), which may then vectorize a
loop over any number of slots; without that it gives up at five.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_FLOAT, _DOUBLE, _INT16, _INT32 = ir.FloatType(), ir.DoubleType(), ir.IntType(16), ir.IntType(32)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_INT32, value)


def _bfloat16_to_float(b: ir.IRBuilder, bits: Any) -> Any:
    """A bfloat16 is the upper half of a float32."""
    return b.bitcast(b.shl(b.zext(bits, _INT32), _constant(16)), _FLOAT)


def _float_to_bfloat16(b: ir.IRBuilder, value: Any) -> Any:
    """Round to nearest, ties to even; a NaN stays one."""
    bits = b.bitcast(value, _INT32)
    upper = b.lshr(bits, _constant(16))
    odd = b.and_(upper, _constant(1))
    rounded = b.lshr(b.add(bits, b.add(odd, _constant(0x7FFF))), _constant(16))
    quiet = b.or_(upper, _constant(0x40))
    return b.trunc(b.select(b.fcmp_unordered("uno", value, value), quiet, rounded), _INT16)


# dtype name -> (stored as, to the number computed with, and back), for float32 computation
_NARROW: dict[str, tuple[ir.Type, Callable[..., Any], Callable[..., Any]]] = {
    "float32": (_FLOAT, lambda b, x: x, lambda b, x: x),
    "bfloat16": (_INT16, _bfloat16_to_float, _float_to_bfloat16),
    "float16": (ir.HalfType(), lambda b, x: b.fpext(x, _FLOAT), lambda b, x: b.fptrunc(x, ir.HalfType())),
}
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def _conversions(dtype: str, real: str) -> tuple[ir.Type, Callable[..., Any], Callable[..., Any]]:
    if real == "float32":
        return _NARROW[dtype]
    if dtype == "float64":
        return _DOUBLE, lambda b, x: x, lambda b, x: x
    stored, widen, narrow = _NARROW[dtype]
    return (
        stored,
        lambda b, x: b.fpext(widen(b, x), _DOUBLE),
        lambda b, x: narrow(b, b.fptrunc(x, _FLOAT)),
    )


def slot(index: int, slots: int, dtype: str, real: str) -> tuple[Any, Any]:
    """`load(address, i)` and `store(address, i, number)` for slot `index` of `slots`, kept as `dtype`."""
    stored, widen, narrow = _conversions(dtype, real)
    number = types.float32 if real == "float32" else types.float64

    def alone(b: ir.IRBuilder, access: Any) -> Any:
        module = b.module
        domain = module.add_metadata([ir.MetaDataString(module, "launch")])
        scopes = [module.add_metadata([ir.MetaDataString(module, f"slot {k}"), domain]) for k in range(slots)]
        access.set_metadata("alias.scope", module.add_metadata([scopes[index]]))
        access.set_metadata("noalias", module.add_metadata([s for k, s in enumerate(scopes) if k != index]))
        return access

    def place(b: ir.IRBuilder, address: Any, i: Any) -> Any:
        return b.gep(b.inttoptr(address, stored.as_pointer()), [i])

    @intrinsic
    def load(typing: Any, address: Any, i: Any) -> Any:
        def emit(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return widen(b, alone(b, b.load(place(b, *args), align=_BYTES[dtype])))

        return number(types.int64, types.int64), emit

    @intrinsic
    def store(typing: Any, address: Any, i: Any, value: Any) -> Any:
        def emit(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
            alone(b, b.store(narrow(b, args[2]), place(b, args[0], args[1]), align=_BYTES[dtype]))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, number), emit

    return load, store


def _reader(number: Any, stored: ir.Type) -> Any:
    @intrinsic
    def read(typing: Any, address: Any, i: Any) -> Any:
        def emit(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return b.load(b.gep(b.inttoptr(args[0], stored.as_pointer()), [args[1]]), align=8)

        return number(types.int64, types.int64), emit

    return read


read_int64 = _reader(types.int64, ir.IntType(64))
read_float64 = _reader(types.float64, _DOUBLE)
