"""Gradients of some rows only: `(indices, values)`, and what a rule means when the other rows stay where they are."""

from __future__ import annotations

import functools
from dataclasses import fields, replace
from typing import Any

import numpy as np

from schuss.compile.formula import formula
from schuss.errors import refusal
from schuss.rules import Rule

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


@functools.lru_cache(maxsize=1024)
def for_sparse(rule: Rule, conventions: tuple[tuple[str, Any], ...]) -> Rule:
    """The rule with the conventions of sparse gradients, wherever it stands at its default.

    Raises `RuntimeError` if the rule would need the untouched rows.
    """
    defaults = {f.name: f.default for f in fields(rule)}
    rule = replace(rule, **{k: v for k, v in conventions if getattr(rule, k) == defaults[k]})
    first = {name: rule.initial().get(name, 0.0) for name in rule.scalars}
    if "l2" in formula(rule).coefficients and rule.coefficients(1, **first)["l2"]:
        raise RuntimeError(
            f"weight_decay={getattr(rule, 'weight_decay', None)!r} (L2) is not possible with sparse gradients: it "
            "would need every row, and only touched rows move. Set weight_decay=0, or use a decoupled one, which "
            "touched rows alone then feel."
        )
    return rule
