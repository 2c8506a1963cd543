"""Gradients of some rows only: `(indices, values)`."""

from __future__ import annotations

from typing import Any

import numpy as np

from schuss.errors import refusal

Array = np.ndarray[Any, Any]


def touched(where: str, weight: Array, gradient: tuple[Any, ...]) -> tuple[Array, Array]:
    """The touched rows, each once, and their gradients, contiguous; a row given several times has the sum.

    Raises `TypeError` or `ValueError`, naming `where`, if `gradient` is not a pair of indices (n,), whole numbers in
    [0, rows), and values (n, *shape of a row).
    """
    if len(gradient) != 2 or not all(isinstance(part, np.ndarray) for part in gradient):
        kinds = ", ".join(type(part).__name__ for part in gradient)
        raise TypeError(
            f"{where} is a tuple of ({kinds}). A sparse gradient is (indices, values), two arrays: which rows, and "
            "the gradient of each."
        )
    indices, values = (np.asarray(part) for part in gradient)
    if weight.ndim == 0:
        raise ValueError(
            f"{where} is (indices, values), but a weight of shape () has no rows. Give an array."
        )
    if indices.dtype.kind not in "iu" or indices.ndim != 1:
        raise refusal(
            f"{where} indices", f"{indices.dtype} of shape {indices.shape}", "whole numbers of shape (n,)"
        )
    expected = (len(indices), *weight.shape[1:])
    if values.shape != expected:
        raise ValueError(
            f"{where} values have shape {values.shape}, but {len(indices)} rows of a weight of shape {weight.shape} "
            f"have {expected}."
        )
    if len(indices) and (indices.min() < 0 or indices.max() >= len(weight)):
        wrong = indices[(indices < 0) | (indices >= len(weight))][0]
        advice = "Rows are counted from the front." if wrong < 0 else ""
        raise refusal(f"{where} indices", int(wrong), f"in [0, {len(weight)})", advice)
    rows = indices.astype(np.int64)
    order = np.argsort(rows, kind="stable")
    new = np.append(True, np.diff(rows[order]) > 0)[: len(rows)]
    if new.all():
        return rows, np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    first, again = order[new], order[~new]
    total = values[first].astype(np.result_type(values.dtype, np.float32), order="C")
    np.add.at(total, (np.cumsum(new) - 1)[~new], values[again])
    return rows[first], total
