"""How sparse a gradient is: weights, and rows of embedding tables, that one batch does not touch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schuss.curvature.objective import Loss, Model, objective


@dataclass(frozen=True)
class TensorSparsity:
    """One weight tensor: the fraction of exact zeros in its gradient, and of rows that are all zero."""

    name: str
    size: int
    zeros: float
    empty_rows: float


@dataclass(frozen=True)
class GradientSparsity:
    """How much of the weights one batch does not touch.

    `zeros`: the fraction of weights whose gradient is exactly 0; `empty_rows`: of rows all 0, over all tensors.
    `spread` = ‖g‖₁² / (n ‖g‖₂²) is 1 where all weights have gradients of one size and 1/n where a single
    weight has all.
    """

    zeros: float
    empty_rows: float
    spread: float
    tensors: tuple[TensorSparsity, ...]

    def __repr__(self) -> str:
        """The totals, and the sparsest tensor."""
        most = max(self.tensors, key=lambda tensor: tensor.empty_rows)
        return (
            f"gradient: {self.zeros:.1%} exact zeros, {self.empty_rows:.1%} empty rows (most in "
            f"{most.name}: {most.empty_rows:.1%}), spread {self.spread:.3g}"
        )


def gradient_sparsity(model: Model, loss: Loss, batch: Any) -> GradientSparsity:
    """The fraction of weights and rows that the gradient on one batch leaves out.

    Args and errors are those of `hvp`. Rows are slices along the first dimension; a vector or scalar has rows
    of one.

    >>> import torch
    >>> table = torch.ones(4, 2)
    >>> gradient_sparsity(table, lambda table, rows: table[rows].sum(), torch.tensor([0, 2]))
    gradient: 50.0% exact zeros, 50.0% empty rows (most in x: 50.0%), spread 0.5
    """
    with objective(model, loss, batch) as f:
        f.claim("the gradient", 2)
        value, row = f.gradient()
        f.agree(value, f.value())
        tensors: list[TensorSparsity] = []
        empty = rows = 0
        for name, part in zip(f.names, f.split(row), strict=True):
            count = len(part) if part.dim() else 1
            touched = (part != 0).reshape(count, part.numel() // max(count, 1)).any(dim=1)
            empty, rows = empty + int((~touched).sum()), rows + count
            zeros = float((part == 0).double().mean()) if part.numel() else 0.0
            empty_rows = float((~touched).double().mean()) if count else 0.0
            tensors.append(TensorSparsity(name, part.numel(), zeros, empty_rows))
        norms = float(row.double().abs().sum()), float(row.double().square().sum())
        return GradientSparsity(
            zeros=float((row == 0).double().mean()),
            empty_rows=empty / rows,
            spread=norms[0] ** 2 / (f.n * norms[1]) if norms[1] else 0.0,
            tensors=tuple(tensors),
        )
