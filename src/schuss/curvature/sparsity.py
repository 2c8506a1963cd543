"""How sparse a gradient is: weights, and rows of embedding tables, that one batch does not touch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schuss.curvature.memory import claim
from schuss.curvature.place import Loss, Model, visit


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
    with visit(model, loss, batch) as place:
        claim("the gradient", 2, place.n, place.dtype, place.device, "Freeze some weights.")
        value, row = place.gradient()
        place.agree(value, place.value())
        tensors: list[TensorSparsity] = []
        empty = rows = 0
        for name, part in zip(place.names, place.split(row), strict=True):
            touched = (part != 0).reshape(len(part), -1).any(dim=1) if part.dim() else (part != 0).reshape(1)
            empty, rows = empty + int((~touched).sum()), rows + touched.numel()
            zeros = float((part == 0).double().mean()) if part.numel() else 0.0
            share = float((~touched).double().mean()) if touched.numel() else 0.0
            tensors.append(TensorSparsity(name, part.numel(), zeros, share))
        norms = float(row.double().abs().sum()), float(row.double().square().sum())
        return GradientSparsity(
            zeros=float((row == 0).double().mean()),
            empty_rows=empty / rows,
            spread=norms[0] ** 2 / (place.n * norms[1]) if norms[1] else 0.0,
            tensors=tuple(tensors),
        )
