"""Derivatives of what has been computed already, along directions: what every product is made of.

Only `torch.autograd.grad` is used, which, unlike `backward(create_graph=True)`, leaves no cycle behind; a graph
lives as long as who holds its ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

Parts = Sequence[Tensor | None]
"""One tensor for each weight or output; None for zeros."""


def pull(
    values: Parts, ends: Sequence[Tensor], along: Parts, *, create_graph: bool = False, batched: bool = False
) -> Parts:
    """Return ∂(Σ values · along)/∂end for every end, None where there is no path; the graph stays.

    Where `batched`, the members of `along` and of the result have one more axis in front: many directions a pass.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> pull([w**2], [w], [torch.tensor([1.0, 10.0])])
    [tensor([ 2., 40.])]
    """
    pairs = [
        (v, a)
        for v, a in zip(values, along, strict=True)
        if v is not None and a is not None and v.requires_grad
    ]
    if not pairs:
        return [None] * len(ends)
    pulled = torch.autograd.grad(
        [v for v, _ in pairs],
        list(ends),
        [a for _, a in pairs],
        create_graph=create_graph,
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=batched,
    )
    return [p.to_dense() if p is not None and p.is_sparse else p for p in cast("Parts", pulled)]


class Jacobian:
    """J = ∂outputs/∂weights at one place, as products with it from either side.

    The graph knows Jᵀ u only. As that is linear in u, J v is its derivative by u along v: one backward pass is
    recorded at the first such product, and each costs one backward pass through that record.
    """

    def __init__(self, outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        self.outputs, self.weights = outputs, weights
        self._recorded: tuple[Sequence[Tensor], Parts] | None = None

    def recorded(self) -> tuple[Sequence[Tensor], Parts]:
        """Return some u, and Jᵀ u with the graph that leads there."""
        if self._recorded is None:
            probes = [torch.zeros_like(output, requires_grad=True) for output in self.outputs]
            self._recorded = probes, pull(self.outputs, self.weights, probes, create_graph=True)
        return self._recorded

    def transposed(self, along: Parts, *, batched: bool = False) -> Parts:
        """Return Jᵀ u, in the shapes of the weights."""
        return pull(self.outputs, self.weights, along, batched=batched)

    def __call__(self, direction: Parts, *, batched: bool = False) -> Parts:
        """Return J v, in the shapes of the outputs."""
        probes, back = self.recorded()
        return pull(back, probes, direction, batched=batched)
