"""Products with a Hessian, a Jacobian or a Gauss-Newton matrix on flat vectors, from the graph of a loss alone.

A product costs about two gradients and no d² memory (Pearlmutter 1994; Schraudolph 2002). The derivatives are
those of `schuss.curvature`; its `hvp` and `ggnvp` themselves evaluate a model on a batch, while a step here has only
the graph that its closure left. A leading axis of several vectors goes through in one batched pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from schuss.newton.graph import Jacobian, Parts, pull


def flatten(parts: Sequence[Tensor], lead: int = 0) -> Tensor:
    """One vector out of many tensors, on the first one's device; the first `lead` axes are kept."""
    device = parts[0].device
    return torch.cat(
        [part.flatten(lead).to(device) if part.ndim > lead else part[..., None].to(device) for part in parts],
        dim=-1,
    )


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector (or a stack of them) into the shapes, dtypes and devices of `like`."""
    cuts = torch.split(vector, [part.numel() for part in like], dim=-1)
    return [
        cut.reshape((*vector.shape[:-1], *part.shape)).to(part.device, part.dtype)
        for cut, part in zip(cuts, like, strict=True)
    ]


def hvp(gradient: Sequence[Tensor], params: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Return H v for a flat v (or rows of them), with `gradient` taken with `create_graph=True`.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gradient = torch.autograd.grad((w**3).sum(), [w], create_graph=True)
    >>> hvp(gradient, [w], torch.tensor([1.0, 0.0]))
    tensor([6., 0.])
    """
    return _through(partial(pull, gradient, params), vector, gradient, params)


class FlatJacobian:
    """J = ∂outputs/∂params, times flat vectors (or rows of them); products follow one recorded backward pass."""

    def __init__(self, outputs: Tensor, params: Sequence[Tensor]) -> None:
        self.outputs, self.params = [outputs], params
        self.parts = Jacobian(self.outputs, params)

    def jvp(self, vector: Tensor) -> Tensor:
        """Return J v."""
        return _through(self.parts, vector, self.params, self.outputs)

    def vjp(self, vector: Tensor) -> Tensor:
        """Return Jᵀ u."""
        return _through(self.parts.transposed, vector, self.outputs, self.params)

    def ggnvp(self, curvature: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
        """Return Jᵀ C J v, with `curvature` the product C u on a flat u of outputs."""
        return self.vjp(curvature(self.jvp(vector)))


def _through(
    product: Callable[..., Parts], vector: Tensor, source: Sequence[Tensor], target: Sequence[Tensor]
) -> Tensor:
    """A product on parts, from and to flat vectors: `source` and `target` are the parts' shapes."""
    batched = vector.ndim == 2
    found = product(unflatten(vector, source), batched=batched)
    lead = vector.shape[:1] if batched else ()
    filled = [
        part if part is not None else like.new_zeros((*lead, *like.shape))
        for part, like in zip(found, target, strict=True)
    ]
    return flatten(filled, int(batched)).to(vector)


def rows(product: Callable[[Tensor], Tensor], count: int, like: Tensor, width: int = 1) -> Tensor:
    """Return the matrix whose row i is product(eᵢ), i < count, as many rows a pass as 32 MB hold.

    `width` is the largest vector met on the way. Where an operator cannot be batched, one row a pass.
    """
    chunk = max(1, min(count, 2**22 // max(count, width)))
    return torch.cat([_together(product, basis) for basis in _unit_vectors(count, chunk, like)])


def _unit_vectors(count: int, chunk: int, like: Tensor) -> Iterator[Tensor]:
    for start in range(0, count, chunk):
        basis = like.new_zeros((min(chunk, count - start), count))
        basis[:, start:].fill_diagonal_(1)
        yield basis


def _together(product: Callable[[Tensor], Tensor], basis: Tensor) -> Tensor:
    try:
        return product(basis)
    except RuntimeError:
        return torch.stack([product(row) for row in basis])
