"""How an array's state is stored: new, read from a checkpoint, and as a launch takes it.

Each slot is an array under its name. The scales of an int8 slot `m` stand under `m_scale`, the compensation term of the
weight under `rest`. NumPy has no bfloat16: a slot of that dtype is an array of its bits, in uint16.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np

from schuss.compile.matrices import slot_shape
from schuss.compile.narrow import from_levels, to_levels, upper_half
from schuss.compile.storage import BLOCK, STORAGES
from schuss.core.checkpoint import REST, scale_of
from schuss.core.storage import slot_dtype, slot_storage
from schuss.numpy.layout import KERNEL_NAMES, axes_of, empty, laid

Array = np.ndarray[Any, Any]
Slots = MutableMapping[str, Array]

# Dtypes of which NumPy has the bits alone.
BITS = {"uint16": "bfloat16"}
# What a kernel takes the arrays of slots for.
_NAMES = {**KERNEL_NAMES, **BITS, "int8": "int8"}


def name_of(array: Array) -> str:
    """The dtype of a slot's numbers: "bfloat16" for its bits, the dtype of the two numbers that a complex one is."""
    return _NAMES[array.dtype.name]


def new_dtype(weight: Array, state_dtype: str | None, whole: bool = True, precise: bool = False) -> str:
    """The dtype of a new slot; int8 needs the `whole` of a gradient, and a slot that need not stay `precise`."""
    return slot_dtype(weight.dtype.name, state_dtype, weight.size, whole, precise)


def new(name: str, weight: Array, dtype: str, value: complex, shape: str = "") -> dict[str, Array]:
    """A slot before the first step, every number of it `value`, laid out as its weight (blocks: row by row).

    With a `shape`, one number for each "row" or "column".
    """
    if shape:
        return {name: np.full(slot_shape(weight.shape, shape), value, dtype)}
    one: dict[str, Array] = {}  # a block, which all others are like
    _store(one, name, np.full(BLOCK, value), dtype)
    axes = range(weight.ndim) if dtype == "int8" else axes_of(weight)
    found = {name: empty(weight.shape, one[name].dtype, axes)}
    found[name][...] = one[name][0]
    if dtype == "int8":
        found[scale_of(name)] = np.full(-(-weight.size // BLOCK), one[scale_of(name)][0])
    return found


def convert(slots: Slots, name: str, dtype: str, block: int = BLOCK) -> None:
    """Store a slot in another dtype, rounded to nearest; `block` is how many of its numbers have shared a scale."""
    value = slots[name]
    if value.dtype.kind == "c" or (name_of(value) == dtype and block == BLOCK):
        return
    if value.dtype == np.int8:
        value = from_levels(value, slots.pop(scale_of(name)), block)
    elif value.dtype == np.uint16:
        value = widened(value)
    _store(slots, name, value, dtype)


def widened(bits: Array) -> Array:
    """The numbers of bfloat16's bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _store(slots: Slots, name: str, value: Array, dtype: str) -> None:
    if dtype == "int8":
        slots[name], slots[scale_of(name)] = to_levels(value.astype(np.float32))
    elif dtype == "bfloat16":
        slots[name] = upper_half(value.astype(np.float32))
    else:
        slots[name] = value.astype(dtype)


def arrays(
    weight: Array, stored: str, slots: Slots, names: Sequence[str], by_rows: bool = False
) -> tuple[tuple[int, ...], tuple[str, ...], list[Array]]:
    """The order of axes in which a weight and all its arrays lie, the storage of it and its slots, and these arrays.

    That is, the slots by `names`, then the compensation term and the scales. All in `slots` is made to lie so: row by
    row if asked for, or else as the weight does.
    """
    rest = STORAGES[stored].beside
    if rest is None:
        slots.pop(REST, None)  # of no meaning once the weight has moved without it
    elif REST not in slots:
        slots[REST] = np.zeros(weight.shape, rest.dtype)
    storage = (stored, *(slot_storage(name_of(slots[name])) for name in names))
    # Blocks are counted row by row, however the weight lies.
    axes = tuple(range(weight.ndim)) if by_rows or "int8" in storage else axes_of(weight)
    stretched = [*names, *([REST] if rest else [])]
    for name in stretched:
        slots[name] = laid(slots[name], axes)
    scales = [scale_of(name) for name in names if slots[name].dtype == np.int8]
    return axes, storage, [slots[name] for name in (*stretched, *scales)]
