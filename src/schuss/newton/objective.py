"""The loss over all moving weights as a function of one float64 vector, with every evaluation counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from schuss.errors import refusal
from schuss.newton.products import flatten, hvp, rows, unflatten

Closure = Callable[[], Any]


class NotFinite(ValueError):  # noqa: N818 (it names what was found)
    """There is nothing to step from: the loss, or a derivative of it, is not finite where the weights are."""


class Weights:
    """The parameters of an optimizer that move, read and written as one float64 vector.

    Parameters of a group with `lr=0` or without `requires_grad` hold still and are left out.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        moving = [
            (p, g) for g in groups if g["lr"] != 0 for p in g["params"] if p.requires_grad and p.numel()
        ]
        self.params: list[Tensor] = [p for p, _ in moving]
        for p in self.params:
            if p.is_complex():
                raise TypeError("Complex weights have no real Hessian here. Try torch.view_as_real(weights).")
        self.decay: Tensor | None = None
        if any(g["weight_decay"] for _, g in moving):
            self.decay = flatten(
                [torch.full_like(p, float(g["weight_decay"]), dtype=torch.float64) for p, g in moving]
            )

    @property
    def count(self) -> int:
        """How many weights move."""
        return sum(p.numel() for p in self.params)

    def read(self) -> Tensor:
        """A float64 copy of the weights, exact for every floating dtype."""
        return flatten([p.detach().to(torch.float64) for p in self.params]).clone()

    @torch.no_grad()
    def write(self, x: Tensor) -> None:
        """Round x to each weight's dtype and store it."""
        for p, piece in zip(self.params, unflatten(x, self.params), strict=True):
            p.copy_(piece)

    def versions(self) -> tuple[int, ...]:
        """Changes with every in-place write to a weight, whoever makes it."""
        return tuple(p._version for p in self.params)  # pyright: ignore[reportPrivateUsage]


class Point:
    """The loss at one vector of weights; its derivatives exist as long as nobody writes to the weights.

    `x` is the float64 vector of weights, `loss` includes the weight decay, `outputs` is what the closure
    returned before it became a number (Gauss-Newton's residuals).
    """

    def __init__(self, objective: Objective, x: Tensor, loss: Tensor, outputs: Any) -> None:
        self.x, self.graph, self.outputs = x, loss, outputs
        self.written = objective.weights.versions()
        self.loss = float(loss.detach().to(torch.float64))
        if objective.weights.decay is not None:
            self.loss += 0.5 * float(torch.dot(objective.weights.decay * x, x))
        self.parts: list[Tensor] | None = None
        self.gradient: Tensor | None = None


class Objective:
    """Evaluates a closure at any vector of weights and differentiates it there.

    `curved` keeps the graph of the gradient, which products need. `reduce` turns what the closure returned
    into the loss. `backward` takes the gradient of a closure that calls backward() itself.
    """

    def __init__(
        self,
        weights: Weights,
        closure: Closure,
        *,
        curved: bool,
        reduce: Callable[[Any], Tensor],
        backward: bool = False,
    ) -> None:
        self.weights, self.closure = weights, closure
        self.curved, self.reduce, self.backward = curved, reduce, backward
        self.eps = max(torch.finfo(p.dtype).eps for p in weights.params)
        self.closures = self.gradients = self.products = 0
        self.asymmetry = 0.0  # of the last dense Hessian, relative to its largest number

    def here(self) -> Point:
        """Evaluate the closure at the weights as they stand."""
        return self._evaluate(self.weights.read())

    def at(self, x: Tensor) -> Point:
        """Write x to the weights and evaluate the closure there."""
        self.weights.write(x)
        return self._evaluate(self.weights.read())

    def _evaluate(self, x: Tensor) -> Point:
        params = self.weights.params
        before = [p.grad for p in params]
        for p in params:
            p.grad = None
        self.closures += 1
        try:
            outputs = self.closure()
            point = Point(self, x, self.reduce(outputs), outputs)
            if all(p.grad is None for p in params):
                return point
            # The closure called backward() itself, as torch.optim.LBFGS wants it.
            if not self.backward:
                raise ValueError(
                    "The closure called backward(), which frees the graph that curvature is taken from. "
                    "Leave the derivatives to step()."
                )
            self.gradients += 1
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            point.gradient = self._decayed(flatten([g.detach().to(torch.float64) for g in found]), x)
            return point
        finally:
            for p, grad in zip(params, before, strict=True):
                p.grad = grad

    def gradient(self, point: Point) -> Tensor:
        """∇(loss + ½ Σ decay w²) at a point, float64, computed once."""
        if point.gradient is None:
            self._check_alive(point)
            if not point.graph.requires_grad:
                raise ValueError(
                    "The closure returned a loss that does not depend on the weights. It must compute the loss "
                    "with them, without .item(), .detach(), torch.no_grad() or a conversion to NumPy."
                )
            self.gradients += 1
            parts = torch.autograd.grad(
                point.graph,
                self.weights.params,
                create_graph=self.curved,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            point.parts = list(parts) if self.curved else None
            point.gradient = self._decayed(flatten([g.detach().to(torch.float64) for g in parts]), point.x)
        return point.gradient

    def _gradient_graph(self, point: Point) -> list[Tensor]:
        self._check_alive(point)
        self.gradient(point)
        assert point.parts is not None
        return point.parts

    def hvp(self, point: Point, vector: Tensor) -> Tensor:
        """(H + decay) v at a point, float64."""
        product = hvp(self._gradient_graph(point), self.weights.params, vector).detach()
        self.products += 1
        return self._decayed(product, vector)

    def hessian(self, point: Point) -> Tensor:
        """H + decay at a point, dense, symmetric, float64: d products."""
        parts, count = self._gradient_graph(point), self.weights.count
        self.products += count
        found = rows(lambda v: hvp(parts, self.weights.params, v).detach(), count, point.x)
        size = float(found.abs().max())
        self.asymmetry = float((found - found.T).abs().max()) / size if size else 0.0
        found = 0.5 * (found + found.T)
        if self.weights.decay is not None:
            found.diagonal().add_(self.weights.decay)
        return found

    def _decayed(self, product: Tensor, vector: Tensor) -> Tensor:
        decay = self.weights.decay
        return product if decay is None else product + decay * vector

    def _check_alive(self, point: Point) -> None:
        if point.written != self.weights.versions():
            raise RuntimeError(
                "The weights changed between the closure and its derivatives. "
                "Nothing but step() may write to them during a step; does the closure?"
            )

    def return_to(self, point: Point) -> None:
        """Write a point's weights again, after others were tried. Its gradient stays, its graph is gone."""
        self.weights.write(point.x)
        if point.gradient is not None and not self.curved:
            point.written = self.weights.versions()

    def _rounding(self, point: Point) -> float:
        return max(self.eps, torch.finfo(point.graph.dtype).eps)

    def noise(self, point: Point) -> float:
        """How far a loss of this size may be off by rounding alone, generously."""
        return 10 * self._rounding(point) * abs(point.loss)

    def faint(self, point: Point) -> float:
        """A change of the loss that rounding inside the closure may distort: half of the digits are not trusted."""
        return math.sqrt(self._rounding(point)) * abs(point.loss)

    def is_fresh(self, point: Point) -> bool:
        """Whether the weights are still those of this point, untouched since."""
        return point.written == self.weights.versions()


def as_loss(returned: Any) -> Tensor:
    """Check that a closure returned one real number with a graph behind it."""
    if returned is None:
        raise ValueError("The closure returned None. It must return the loss: end it with `return loss`.")
    if not isinstance(returned, Tensor):
        raise ValueError(
            f"The closure returned {type(returned).__name__}, not a tensor. It must return the loss as torch "
            "computed it: no .item() and no float()."
        )
    if returned.numel() != 1:
        advice = "Reduce it to one number with .mean() or .sum()."
        raise refusal("closure()", tuple(returned.shape), "the shape of a loss", advice)
    if returned.is_complex():
        raise ValueError("The closure returned a complex number. A loss must be real: try .abs() or .real.")
    return returned.reshape(())
