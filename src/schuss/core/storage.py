"""In which format weights and their state are stored: what both APIs decide alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A tensor with fewer weights has its state in float32 where int8 is asked for: it would save next to nothing.
SMALL = 4096
STATE_DTYPES = ("float64", "float32", "bfloat16", "int8")
WIDE, NARROW = ("float64", "float32"), ("bfloat16", "float16")
IMPRECISE = (*NARROW, "int8")


def dtype_name(dtype: Any) -> str:
    """A dtype's name: of torch's, NumPy's, or a word."""
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).removeprefix("torch.")


def weight_storage(dtype: str, rounding: str, compensated: bool) -> str:
    """The storage of weights of this dtype. In 32 bits or more nothing is rounded stochastically or compensated."""
    if dtype not in NARROW or not (compensated or rounding == "stochastic"):
        return dtype
    return f"{dtype} {'compensated' if compensated else 'stochastic'}"


def slot_storage(dtype: str) -> str:
    """The storage of a slot: rounded stochastically in 16 bits, or a slow average would never move."""
    return f"{dtype} stochastic" if dtype in NARROW else dtype


def slot_dtype(weight: str, state_dtype: Any, length: int, whole: bool = True, precise: bool = False) -> str:
    """The dtype of a new slot for a weight of dtype `weight`; at least float32, unless something else is asked for.

    Complex weights have complex state. int8 is for large weights, whose gradients come `whole`. A slot that must stay
    `precise` has at least float32 whatever is asked for.
    """
    if weight.startswith("complex"):
        return weight
    if state_dtype is None or (precise and dtype_name(state_dtype) in IMPRECISE):
        return "float32" if weight in NARROW else weight
    asked = dtype_name(state_dtype)
    return "float32" if asked == "int8" and (length < SMALL or not whole) else asked


def widened(dtype: str) -> str:
    """The dtype of a slot that must stay precise, where it was stored as `dtype`."""
    return "float32" if dtype in IMPRECISE else dtype


def apart(shape: Sequence[int], strides: Sequence[int], unit: int) -> bool:
    """Whether each number of an array has memory of its own: each axis strides over all that the smaller ones span.

    `strides` are in units of which a number takes `unit`.
    """
    span = unit
    for stride, size in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride < span and 0 not in shape:
            return False
        span += stride * (size - 1)
    return True
