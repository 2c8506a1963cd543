"""Products with a Hessian, a Jacobian or a Gauss-Newton matrix, from a graph that exists already.

A product costs about two gradients and no d² memory (Pearlmutter 1994; Schraudolph 2002). Only `torch.autograd.grad`
is used, which, unlike `backward(create_graph=True)`, leaves no cycle behind. A vector is flat; a leading axis of
several goes through in one batched pass. `schuss.curvature` takes its derivatives from here, in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

Parts = Sequence[Tensor | None]
"""One tensor for each weight or output; None for zeros."""


def pull(
    values: Parts, ends: Sequence[Tensor], along: Parts, *, create_graph: bool = False, batched: bool = False
) -> Parts:
    """Return ∂(Σ values · along)/∂end for every end, None where there is no path; the graph stays.

    Where `batched`, the members of `along` and of the result have one more axis in front: many directions per pass.

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
    """J = ∂outputs/∂weights at one point, as products with it from either side.

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


class FlatJacobian(Jacobian):
    """J of one tensor of outputs, times flat vectors (or rows of them)."""

    def __init__(self, outputs: Tensor, weights: Sequence[Tensor]) -> None:
        super().__init__([outputs], weights)

    def jvp(self, vector: Tensor) -> Tensor:
        """Return J v."""
        return _through(self, vector, self.weights, self.outputs)

    def vjp(self, vector: Tensor) -> Tensor:
        """Return Jᵀ u."""
        return _through(self.transposed, vector, self.outputs, self.weights)

    def ggnvp(self, curvature: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
        """Return Jᵀ C J v, with `curvature` the product C u on a flat u of outputs."""
        return self.vjp(curvature(self.jvp(vector)))


def hvp(gradient: Sequence[Tensor], params: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Return H v for a flat v (or rows of them), with `gradient` taken with `create_graph=True`.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gradient = torch.autograd.grad((w**3).sum(), [w], create_graph=True)
    >>> hvp(gradient, [w], torch.tensor([1.0, 0.0]))
    tensor([6., 0.])
    """
    return _through(partial(pull, gradient, params), vector, gradient, params)


def _through(
    product: Callable[..., Parts], vector: Tensor, source: Sequence[Tensor], target: Sequence[Tensor]
) -> Tensor:
    """A product on parts, from and to flat vectors: `source` and `target` are the parts' shapes."""
    batched = vector.ndim == 2
    lead = vector.shape[:1] if batched else ()
    filled = [
        part if part is not None else like.new_zeros((*lead, *like.shape))
        for part, like in zip(product(unflatten(vector, source), batched=batched), target, strict=True)
    ]
    return flatten(filled, int(batched)).to(vector)


def flatten(parts: Sequence[Tensor], lead: int = 0) -> Tensor:
    """One vector out of many tensors, on the first one's device; the first `lead` axes are kept."""
    device = parts[0].device
    return torch.cat([part.reshape(*part.shape[:lead], -1).to(device) for part in parts], dim=-1)


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector (or a stack of them) into the shapes, dtypes and devices of `like`."""
    cuts = torch.split(vector, [part.numel() for part in like], dim=-1)
    return [
        cut.reshape((*vector.shape[:-1], *part.shape)).to(part.device, part.dtype)
        for cut, part in zip(cuts, like, strict=True)
    ]


def rows(product: Callable[[Tensor], Tensor], count: int, like: Tensor, width: int = 1) -> Tensor:
    """Return the matrix whose row i is product(eᵢ), i < count, as many rows per pass as 32 MB hold.

    `width` is the largest vector met on the way. Where an operator cannot be batched, one row per pass.
    """
    chunk = max(1, min(count, 2**22 // max(count, width)))
    found: list[Tensor] = []
    for start in range(0, count, chunk):
        basis = like.new_zeros((min(chunk, count - start), count))
        basis[:, start:].fill_diagonal_(1)
        try:
            found.append(product(basis))
        except RuntimeError:
            found.append(torch.stack([product(row) for row in basis]))
    return torch.cat(found)
