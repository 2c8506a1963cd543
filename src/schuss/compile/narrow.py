"""NumPy arrays in few bits, to nearest: state that is new, or comes from a checkpoint.

What the bits mean stands in `storage`. A step rounds in its kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from schuss.compile.storage import BLOCK, LEVEL_BITS, LEVEL_LEAST, LEVEL_MOST, LEVEL_OFFSET, LEVEL_TOP

Array = np.ndarray[Any, Any]

_MAGNITUDE = 0x7FFFFFFF


def upper_half(value: Array) -> Array:
    """Float32 numbers as the bits of the nearest bfloat16 ones, ties to even; a NaN stays one."""
    bits = value.view(np.uint32)
    upper = bits >> 16
    rounded = (bits + (0x7FFF + (upper & 1))) >> 16
    return np.where(np.isnan(value), upper | 0x40, rounded).astype(np.uint16)


def _in_blocks(flat: Array, block: int = BLOCK) -> Array:
    """One row a block, the last one filled up with zeros."""
    return np.pad(flat, (0, -len(flat) % block)).reshape(-1, block)


def from_levels(codes: Array, scales: Array, block: int = BLOCK) -> Array:
    """The float32 numbers of int8 `codes` (any shape, counted row by row) with a scale for each block of them."""
    levels = _in_blocks(codes.reshape(-1), block).astype(np.int32)
    size = ((np.abs(levels) + LEVEL_OFFSET) << LEVEL_BITS).view(np.float32)
    with np.errstate(invalid="ignore"):  # a block with an infinity has no other numbers left
        value = np.sign(levels).astype(np.float32) * size * scales[:, None]
    return value.reshape(-1)[: codes.size].reshape(codes.shape)


def to_levels(value: Array) -> tuple[Array, Array]:
    """Float32 numbers (any shape, counted row by row) as the nearest int8 codes, and a scale for each block."""
    blocks = _in_blocks(value.reshape(-1))
    most = (blocks.view(np.int32) & _MAGNITUDE).max(axis=1).clip(min=LEVEL_LEAST).view(np.float32)
    with np.errstate(invalid="ignore"):
        bits = (blocks * (np.float32(LEVEL_TOP) / most)[:, None]).view(np.int32)
    raised = (bits & _MAGNITUDE).astype(np.int64) + (1 << (LEVEL_BITS - 1))
    levels = ((raised >> LEVEL_BITS) - LEVEL_OFFSET).clip(1, LEVEL_MOST) * (blocks != 0)
    codes = np.where(bits < 0, -levels, levels).astype(np.int8)
    return codes.reshape(-1)[: value.size].reshape(value.shape), most * np.float32(1 / LEVEL_TOP)
