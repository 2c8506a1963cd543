"""Which weights a rule of matrices can move."""

from __future__ import annotations

from collections.abc import Sequence

from schuss.compile.formula import Formula


def check_matrix(
    formula: Formula, where: str, shape: Sequence[int], is_complex: bool, advice: str, sparse: bool = False
) -> None:
    """Refuse a weight that a formula of matrices cannot move; `advice` says what to do with it.

    `where` names the weight, and `sparse` says that its gradient is of some rows only. Other formulas refuse nothing.
    """
    if not formula.of_matrices:
        return
    rule = formula.rule.__name__
    if len(shape) < 2:
        kind = "a number" if not shape else "a vector"
        raise ValueError(f"{where}, of shape {tuple(shape)}, is {kind}, and {rule} moves matrices. {advice}")
    if is_complex:
        raise ValueError(
            f"{where}, of shape {tuple(shape)}, is complex, and {rule} moves real matrices. {advice}"
        )
    if sparse:
        raise RuntimeError(
            f"{rule} measures whole tensors, of which a sparse gradient has only some rows. {where}, of shape "
            f"{tuple(shape)}, has one: make it dense. {advice}"
        )
