"""Products with a Hessian, a Jacobian or a Gauss-Newton matrix, from the graph of a loss alone.

A product costs about two gradients and no d² memory (Pearlmutter 1994; Schraudolph 2002). Only
`torch.autograd.grad` is used, which, unlike `backward(create_graph=True)`, leaves no cycle behind.
Vectors are flat; a leading axis of several vectors goes through in one batched pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def pull(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    create_graph: bool = False,
    batched: bool = False,
) -> list[Tensor]:
    """Return Σ weightsᵀ ∂output/∂input for every input; zeros where nothing depends on it."""
    pairs = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    if not pairs:
        lead = weights[0].shape[:1] if batched else ()
        return [i.new_zeros((*lead, *i.shape)) for i in inputs]
    return list(
        torch.autograd.grad(
            [o for o, _ in pairs],
            inputs,
            [w for _, w in pairs],
            create_graph=create_graph,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
            is_grads_batched=batched,
        )
    )


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
        cut.reshape(*vector.shape[:-1], *part.shape).to(part.device, part.dtype)
        for cut, part in zip(cuts, like, strict=True)
    ]


def hvp(gradient: Sequence[Tensor], params: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Return H v for a flat v (or rows of them), with `gradient` taken with `create_graph=True`.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gradient = torch.autograd.grad((w**3).sum(), [w], create_graph=True)
    >>> hvp(gradient, [w], torch.tensor([1.0, 0.0]))
    tensor([6., 0.])
    """
    batched = vector.ndim == 2
    found = pull(gradient, params, unflatten(vector, gradient), batched=batched)
    return flatten(found, int(batched)).to(vector)


def vjp(outputs: Tensor, params: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Return Jᵀ u for a flat u (or rows of them), with J = ∂outputs/∂params."""
    batched = vector.ndim == 2
    found = pull([outputs], params, unflatten(vector, [outputs]), batched=batched)
    return flatten(found, int(batched)).to(vector)


def jvp(outputs: Tensor, params: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Return J v for a flat v (or rows of them), by differentiating Jᵀu, linear in u, with respect to u."""
    batched = vector.ndim == 2
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = pull([outputs], params, [u], create_graph=True)
    found = pull(pulled, [u], unflatten(vector, pulled), batched=batched)
    return flatten(found, int(batched)).to(vector)


def ggnvp(
    outputs: Tensor, params: Sequence[Tensor], curvature: Callable[[Tensor], Tensor], vector: Tensor
) -> Tensor:
    """Return Jᵀ C J v for a flat v, with `curvature` the product C u on a flat u of outputs."""
    return vjp(outputs, params, curvature(jvp(outputs, params, vector)))


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
