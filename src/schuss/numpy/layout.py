"""How an array lies in memory, and arrays that lie as another does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# What a kernel takes each dtype for. A complex number is two real ones, which the rules move one by one.
KERNEL_NAMES = {
    "float64": "float64",
    "float32": "float32",
    "float16": "float16",
    "complex64": "float32",
    "complex128": "float64",
}


def address(array: Array) -> int:
    """Where the array's first element is."""
    return array.__array_interface__["data"][0]


def native(array: Array) -> np.dtype[Any]:
    """The array's dtype in this machine's byte order."""
    return array.dtype.newbyteorder("=")


def has_kernel(array: Array) -> bool:
    """Whether a kernel can read and write this dtype, in this byte order at least."""
    return array.dtype.name in KERNEL_NAMES


def length(array: Array) -> int:
    """How many real numbers the array has."""
    return array.size * (2 if array.dtype.kind == "c" else 1)


def bounds(array: Array) -> tuple[int, int]:
    """The addresses between which the array lies; nowhere if it is empty."""
    return np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)


def axes_of(array: Array) -> tuple[int, ...]:
    """The order of axes in which the array is one stretch of memory; their own order if it is none in any."""
    order = tuple(sorted(range(array.ndim), key=lambda k: -array.strides[k]))
    return order if array.transpose(order).flags.c_contiguous else tuple(range(array.ndim))


def lies(array: Array, axes: Sequence[int]) -> bool:
    """Whether a kernel can walk over the array's memory as it is, in this order of axes."""
    return array.flags.aligned and array.dtype.isnative and array.transpose(axes).flags.c_contiguous


def empty(shape: Sequence[int], dtype: np.dtype[Any], axes: Sequence[int]) -> Array:
    """New memory that lies in this order of axes."""
    return np.empty([shape[k] for k in axes], dtype).transpose(np.argsort(axes))


def laid(array: Array, axes: Sequence[int]) -> Array:
    """The array, or a copy of it that lies in this order of axes."""
    if lies(array, axes):
        return array
    copy = empty(array.shape, native(array), axes)
    copy[...] = array
    return copy
