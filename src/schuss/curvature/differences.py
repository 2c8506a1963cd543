r"""Hessian-vector products by differences of gradients, for operations that have no second derivative.

    H v ≈ (∇L(w + h u) − ∇L(w − h u)) ‖v‖ / 2h,    u = v / ‖v‖,    h = ε^⅓ (1 + ‖w‖)

The error has two parts: truncation, which grows as h², and rounding, as ε / h; their sum is least near h = ε^⅓
times the length over which the loss changes, for which the size of the weights stands. About ε^⅔ of H v is
what can be hoped for: 2e-5 in float32, 4e-11 in float64.

Sources: Nocedal and Wright 2006, section 8.1; Dennis and Schnabel 1983, section 5.4 (step size).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from schuss.curvature.guard import Randomness, moved
from schuss.curvature.place import Place

REFUSALS = re.compile(
    r"differentiate twice|derivative for .* is not implemented|double backward", re.IGNORECASE
)


def refuses(error: RuntimeError) -> bool:
    """Whether torch says with this error that something cannot be differentiated a second time."""
    return REFUSALS.search(str(error)) is not None


def usual_step(place: Place) -> float:
    """h, the length of a step."""
    size = math.hypot(*(float(weight.detach().double().norm()) for weight in place.weights))
    return _eps(place) ** (1 / 3) * (1 + size)


def _eps(place: Place) -> float:
    return max(torch.finfo(weight.dtype).eps for weight in place.weights)


def gradient_at(place: Place, row: Tensor, step: float) -> Tensor:
    """The gradient at w + step × row, with the random draws of every other pass."""
    with moved(place.weights):
        for weight, direction in zip(place.weights, place.directions(row), strict=True):
            weight.data = torch.add(weight.data, direction, alpha=step)
        return place.gradient()[1]


def changes(place: Place, constant: Sequence[int]) -> bool:
    """Whether the gradients of some weight tensors, which autograd takes for constant, change after all.

    Some functions hand back a gradient cut off from the weights it was computed with; autograd then takes
    their curvature for 0 without a word. A step in a random direction tells.
    """
    now = Randomness({place.device})
    u = torch.randn(place.n, generator=torch.Generator().manual_seed(0)).to(place.device, place.dtype)
    here, there = (place.split(gradient_at(place, u / u.norm(), h)) for h in (0.0, usual_step(place)))
    now.rewind()
    slack = math.sqrt(_eps(place))
    return any(float((there[i] - here[i]).norm()) > slack * float(here[i].norm()) for i in constant)


class Differences:
    """The Hessian at a place by central differences: two gradients a product.

    The first product takes four, to see how far steps of h and 2h agree, and warns with that number.
    """

    def __init__(self, place: Place, reason: str) -> None:
        """`reason`, in words, is part of the warning."""
        self.place, self.reason, self.step = place, reason, usual_step(place)
        self.warned = False

    def __call__(self, rows: Tensor, out: Tensor) -> None:
        """Write the products of `rows` (b × n) to `out` (b × n)."""
        for row, product in zip(rows, out, strict=True):
            self.multiply(row, product)
            if not self.warned and bool(product.any()):
                self.warned = True
                wider = torch.empty_like(product)
                self.multiply(row, wider, 2.0)
                apart = float((wider - product).norm() / product.norm())
                warnings.warn(
                    f"{self.reason}, so products with the Hessian are central differences of gradients: "
                    f"approximate, by steps of {self.step:.2g}. Steps of that length and of twice it agree to "
                    f"{apart:.0e}, relative.",
                    stacklevel=2,
                )

    def multiply(self, row: Tensor, out: Tensor, factor: float = 1.0) -> None:
        """One product, with a step of `factor` times the usual one."""
        place, out[:] = self.place, 0
        norm = float(row.double().norm())
        if not norm:
            return
        step = factor * self.step / norm
        for sign in (1, -1):
            out.add_(gradient_at(place, row, sign * step), alpha=sign / (2 * step))
