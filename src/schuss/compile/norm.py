"""The norm of many tensors, read once: a sum of squares for each row of a launch's table, in float64.

The rows are cut without regard to threads, so the sum is the same for any number of them. One infinite or NaN number
makes it infinite or NaN: whoever asks for the norm has asked whether all is finite too.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from schuss.compile import cpu, threads
from schuss.compile.launch import Table

Array = np.ndarray[Any, Any]

# A sum may be taken in any order, so that several numbers are squared at once. Nothing else is loosened.
_FLAGS = 'error_model="numpy", fastmath={"contract", "reassoc"}'


def source(dtype: str) -> str:
    """The kernel's source, for gradients of this dtype.

    It takes a launch's table and `found`: the number of the table's columns, then a place for each row's sum.
    """
    return f'''"""The sums of squares of {dtype} gradients, row by row."""

from numba import cfunc
from schuss.compile.memory import Slots, read_float64, read_int64

slots = Slots(2, "float64")
load_g, _ = slots.nearest(0, "{dtype}")
_, store = slots.nearest(1, "float64")


@cfunc("void(int64, int64, int64, int64)", {_FLAGS})
def launch(table, found, first_row, last_row):
    stride = int(read_float64(found, 0))
    for row in range(first_row, last_row):
        at_g = read_int64(table, stride * row + 1)
        length = read_int64(table, stride * row + stride - 2)
        total = 0.0
        for i in range(length):
            g = load_g(at_g, i)
            total += g * g
        store(found, 1 + row, total)
'''


@functools.cache
def _kernel(dtype: str) -> cpu.Kernel:
    return cpu.load(f"norm_{dtype}", source(dtype))


def square(table: Table, workers: int) -> float:
    """The sum of the squares of a table's gradients (column 1), on at most `workers` threads."""
    found = np.zeros(1 + len(table.cells))
    found[0] = table.cells.shape[1]
    kernel = _kernel(table.columns[1].storage.dtype)
    threads.run(kernel, table.address, found.ctypes.data, len(table.cells), table.elements, workers)
    return float(found[1:].sum())


def clipping(norm: float, max_norm: float | None) -> float:
    """What gradients of this norm are multiplied by so that it is at most `max_norm`: as torch.nn.utils has it."""
    if max_norm is None or math.isnan(norm):
        return 1.0 if max_norm is None else math.nan
    return min(1.0, max_norm / (norm + 1e-6))
