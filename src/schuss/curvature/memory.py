"""Name the memory that a measurement needs before it is taken."""

from __future__ import annotations

import torch

from schuss.machine import free_memory

DEFAULT_VECTORS = 24
"""Vectors of the model's size that a measurement needs unless it is asked for more."""

SPARE = 5
"""How many of them a gradient, its graph and a product take."""

ALWAYS_FREE = 16 * 2**20
"""Bytes that are always free to use: small models get more vectors, and so fewer products."""


def default_rows(n: int, itemsize: int) -> int:
    """How many rows of `n` numbers a basis gets: 24 less what a product takes, more if small.

    >>> default_rows(10_000_000, 4), default_rows(1000, 8)
    (19, 2097)
    """
    return max(DEFAULT_VECTORS - SPARE, ALWAYS_FREE // (itemsize * max(n, 1)))


def claim(what: str, rows: int, n: int, dtype: torch.dtype, device: torch.device, advice: str) -> None:
    """Refuse, before it is taken, memory that is not there. A small claim is granted unchecked.

    Raises:
        MemoryError: names what needs how much, how much is free, and what to try.
    """
    needed = rows * n * dtype.itemsize
    free = free_memory(device) if needed > ALWAYS_FREE else None
    if free is not None and needed > free:
        raise MemoryError(
            f"{what} needs {rows} vectors of {n:,} numbers, {needed / 1e9:.3g} GB; {free / 1e9:.3g} GB are "
            f"free on {device}. {advice}"
        )
