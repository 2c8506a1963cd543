"""Products of a vector with the Hessian or the Gauss-Newton matrix, exact, without ever forming the matrix.

Sources: Pearlmutter 1994 (Hessian-vector products at the cost of two gradients); Schraudolph 2002
(Gauss-Newton).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from schuss.curvature.graph import Jacobian, Parts, pull
from schuss.curvature.place import Loss, Model, Place, Vector, checked, derivatives, finite, visit
from schuss.errors import refusal

MATRICES = ("hessian", "ggn")


def hvp(model: Model, loss: Loss, batch: Any, vector: Vector) -> Any:
    r"""The Hessian of the loss times a vector, H v = ∇(∇L · v), exact to rounding.

    Args:
        model: an `nn.Module`, or the point x of a plain function: a tensor, or a list or dict of tensors.
        loss: `loss(model, batch)`, a scalar tensor.
        batch: handed to `loss`; `Pieces([...])` for one that does not fit at once.
        vector: n numbers, one for each trainable weight (tied weights once): a flat tensor in the order of
            `model.parameters()`, a list of tensors shaped as the weights, or a dict of them by name.
            For a plain tensor x also a tensor of x's shape.

    Returns:
        H v in the form of `vector`, in units of loss per weight². Detached: no graph is kept.

    Cost: one forward, one backward and one backward of the backward pass, about two to three gradients;
    memory for two vectors besides the graph. Model, random state and BatchNorm statistics stay bit for bit as
    they were; dropout draws the mask that the next training step would draw; attention runs on the kernel
    that has a second derivative.

    Raises:
        ValueError: the loss is not a finite scalar or has no gradient, the vector does not fit, H v is not
            finite.

    >>> x = torch.tensor([1.0, 1.0], dtype=torch.float64)
    >>> rosenbrock = lambda x, _: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    >>> hvp(x, rosenbrock, None, torch.tensor([1.0, 0.0], dtype=torch.float64))
    tensor([ 802., -400.], dtype=torch.float64)
    """
    return _product(model, loss, batch, vector, "hessian")


def ggnvp(model: Model, loss: Loss, batch: Any, vector: Vector) -> Any:
    r"""The generalised Gauss-Newton matrix times a vector, G v = Jᵀ (∂²ℓ/∂z²) J v, exact to rounding.

    z are the model's outputs, J their derivative by the weights and ℓ the loss as a function of z. G leaves
    out the curvature of the model itself; it has no negative eigenvalue where ℓ is convex in z. Terms of the
    loss that use the weights directly (a penalty ½λ‖w‖²) count in full.

    The outputs are what `model(...)` returns wherever the loss calls it. For a plain function, or where the
    loss does not call the model itself, give the pair `(forward, criterion)` as `loss`:
    `criterion(forward(model, batch), batch)`.

    Arguments, return value, guarantees and errors are those of `hvp`; besides, a loss that is computed inside
    the model's forward is refused, since then there are no outputs to split it at.

    >>> x = torch.tensor([1.0, 1.0], dtype=torch.float64)
    >>> residuals = lambda x, _: torch.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])
    >>> squares = lambda r, _: r.square().sum()
    >>> ggnvp(x, (residuals, squares), None, torch.tensor([1.0, 0.0], dtype=torch.float64))
    tensor([ 802., -400.], dtype=torch.float64)
    """
    return _product(model, loss, batch, vector, "ggn")


def _product(model: Model, loss: Loss, batch: Any, vector: Vector, matrix: str) -> Any:
    with visit(model, loss, batch) as place:
        row, form = place.row(vector)
        product = torch.empty_like(row)
        Curvature(place, matrix)(row[None], product[None])
        return form(product)


class Curvature:
    """The Hessian ("hessian") or Gauss-Newton matrix ("ggn") at a place, applied to blocks of rows.

    Keeps the graph of one evaluation for a batch in one piece, so that a further product costs one backward
    pass of the backward pass; for `Pieces` each block passes over the pieces once.
    """

    def __init__(self, place: Place, matrix: str = "hessian") -> None:
        """Nothing is evaluated before the first product."""
        if matrix not in MATRICES:
            raise refusal("matrix", matrix, f"one of {MATRICES}")
        self.place = place
        self.record = _hessian if matrix == "hessian" else _gauss_newton
        self.kept: Callable[[Sequence[Tensor]], Parts] | None = None

    def __call__(self, rows: Tensor, out: Tensor) -> None:
        """Write the products of `rows` (b × n) to `out` (b × n)."""
        place, pieces = self.place, self.place.pieces
        out.zero_()
        if len(pieces) > 1 or self.kept is None:
            place.rewind()
        for piece, share in pieces:
            multiply = self.kept or self.record(place, piece)
            if len(pieces) == 1:
                self.kept = multiply
            for row, product in zip(rows, out, strict=True):
                parts = multiply(place.directions(row))
                for part, target in zip(parts, place.split(product), strict=True):
                    if part is not None:
                        target.add_(part.to(target), alpha=share)
        finite(out, "product of curvature and vector")


def _hessian(place: Place, piece: Any) -> Callable[[Sequence[Tensor]], Parts]:
    """Record the gradient on one piece; what it returns differentiates that gradient along a direction."""
    weights = place.weights
    gradient = derivatives(place.evaluate(piece), weights, create_graph=True)
    return lambda direction: pull(gradient, weights, direction)


def _gauss_newton(place: Place, piece: Any) -> Callable[[Sequence[Tensor]], Parts]:
    r"""Record J and ∂²ℓ on one piece, with the loss a function ℓ(z, w) of outputs and weights.

    For u = (J v, v) and (a, b) = ∇²ℓ u the product is G v = Jᵀ a + b.
    """
    weights = place.weights
    outputs, cut, loss = _cut_at_outputs(place, piece)
    ends = [*cut, *weights]
    slope = derivatives(loss, ends, create_graph=True)
    jacobian = Jacobian(outputs, weights)

    def multiply(direction: Sequence[Tensor]) -> list[Tensor | None]:
        curved = pull(slope, ends, [*jacobian(direction), *direction])
        through, direct = curved[: len(cut)], curved[len(cut) :]
        pulled = jacobian.transposed(through)
        return [_sum(a, b) for a, b in zip(pulled, direct, strict=True)]

    return multiply


def _cut_at_outputs(place: Place, piece: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The model's outputs z with their graph, detached copies, and the loss as a function of the copies."""
    outputs: list[Tensor] = []
    cut: list[Tensor] = []

    def swap(thing: Any) -> Any:
        if isinstance(thing, Tensor):
            if not thing.requires_grad:
                return thing
            outputs.append(thing)
            cut.append(thing.detach().requires_grad_())
            return cut[-1]
        if isinstance(thing, Mapping):
            changed: Any = copy.copy(thing)
            for key, value in thing.items():
                changed[key] = swap(value)
            return changed
        if isinstance(thing, tuple) and hasattr(thing, "_fields"):
            return type(thing)(*[swap(value) for value in thing])
        if isinstance(thing, list | tuple):
            return type(thing)(swap(value) for value in thing)
        return thing

    if isinstance(place.loss, tuple):
        forward, criterion = place.loss
        loss = checked(criterion(swap(forward(place.model, piece)), piece))
    elif isinstance(place.model, nn.Module):
        handle = place.model.register_forward_hook(lambda module, inputs, output: swap(output))
        try:
            loss = place.evaluate(piece)
        finally:
            handle.remove()
    else:
        raise refusal(
            "loss",
            place.loss,
            "a pair (forward, criterion)",
            "Gauss-Newton needs to know what a plain function outputs.",
        )
    if not outputs:
        raise ValueError(
            "loss(model, batch) never called the model, or its outputs have no gradient, so there is "
            "nothing to split the loss at. Give the pair (forward, criterion) as loss."
        )
    if any(output.numel() == 1 and bool(output.detach() == loss.detach()) for output in outputs):
        raise ValueError(
            "the model returns the loss itself, so there are no outputs to split it at. Let the loss be "
            "computed outside the model, or give the pair (forward, criterion) as loss."
        )
    return outputs, cut, loss


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b
