r"""Hessian-vector products by differences of gradients, for operations that have no second derivative or a wrong one.

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

from schuss.curvature.lanczos import inner
from schuss.curvature.objective import Objective
from schuss.curvature.restore import restoring
from schuss.randomness import Randomness

REFUSALS = re.compile(
    r"differentiate twice|derivative for .* is not implemented|double backward"
    r"|expected a proper tensor but got none",  # of a LayerNorm with a bias alone
    re.IGNORECASE,
)
"""What torch says of an operation that cannot be differentiated a second time."""


def product(f: Objective, row: Tensor, factor: float = 1.0) -> Tensor:
    """H times one vector, by two gradients `factor` times the usual step away."""
    found, norm = f.zeros(), float(row.double().norm())
    if norm:
        step = factor * _usual_step(f) / norm
        for sign in (1, -1):
            found.add_(_gradient_at(f, row, sign * step), alpha=sign / (2 * step))
    return found


def warn(f: Objective, reason: str, row: Tensor, near: Tensor) -> None:
    """Say why products are differences, and how far `near`, the first of them, agrees with one of twice the step."""
    apart = float((product(f, row, 2.0) - near).norm() / near.norm())
    warnings.warn(
        f"{reason}, so Hessian-vector products are central differences of gradients: approximate, by steps of "
        f"{_usual_step(f):.2g}. Steps of that length and of twice it agree to {apart:.0e}, relative.",
        stacklevel=2,
    )


def _usual_step(f: Objective) -> float:
    """h, the length of a step."""
    return f.eps ** (1 / 3) * (1 + f.norm)


def _gradient_at(f: Objective, row: Tensor, step: float) -> Tensor:
    """The gradient at w + step × row, with the random draws of every other pass."""
    with restoring(f.weights):
        for weight, direction in zip(f.weights, f.directions(row), strict=True):
            weight.data = torch.add(weight.data, direction, alpha=step)
        return f.gradient()[1]


def changes(f: Objective, constant: Sequence[int]) -> bool:
    """Whether the gradients of some weight tensors, which autograd takes for constant, change after all.

    Some functions hand back a gradient cut off from the weights it was computed with; autograd then takes
    their curvature for 0 without a word. A step in a random direction tells.
    """
    now = Randomness({f.device})
    u = torch.randn(f.n, generator=torch.Generator().manual_seed(0)).to(f.device, f.dtype)
    here, there = (f.split(_gradient_at(f, u / u.norm(), h)) for h in (0.0, _usual_step(f)))
    now.rewind()
    return any(
        float((there[i] - here[i]).norm()) > math.sqrt(f.eps) * float(here[i].norm()) for i in constant
    )


def wrong_second_derivatives(
    f: Objective, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> str:
    """Why products (v, Hv) and (u, Hu) are not those of this loss, in words; nothing where they may be.

    Wrong is an Hu that differs from a difference of gradients by far more than differences with steps of h and 2h do
    from each other, so that it is neither rounding nor kinks, if besides one of these is so:

    - they are not symmetric, uᵀHv ≠ vᵀHu: a second derivative is wrong;
    - the loss reads buffers that it moves itself, and autograd takes them for constants;
    - the differences are symmetric: part of the gradient hides from autograd how it depends on the weights. In float32
      that is not asked, since a step long enough for its rounding crosses enough kinks of ReLU to look smooth.

    What is left are losses that mean to hold something constant (`detach`): products do that as well.
    """
    (v, hv), (u, hu) = first, second
    now = Randomness({f.device})
    try:
        near = product(f, u)
        off = float((near - hu).norm())
        size = max(float(near.norm()), float(hu.norm()))
        if off <= max(1e-3, f.eps**0.25) * size:
            return ""
        if float((product(f, u, 2.0) - near).norm()) > off / 10:
            return ""
        said = f"a Hessian-vector product by autograd is {off / size:.0%} off a difference of gradients"
        if _asymmetry(v, hv, u, hu) > max(1e-5, 3 * math.sqrt(f.eps)):  # more than rounding
            return f"An operation in the loss has a wrong second derivative ({said}, and not symmetric)"
        if f.reads_moved_buffers():
            return (
                f"The loss moves buffers that it reads, which autograd takes for constants ({said}; "
                "model.eval() holds them still)"
            )
        if f.eps < 1e-10 and _asymmetry(v, product(f, v), u, near) < 1e-3:
            return f"An operation in the loss hides how its gradient depends on the weights ({said})"
    except ValueError:  # a step away the loss or its gradient is not finite, so nothing is known
        pass
    finally:
        now.rewind()
    return ""


def _asymmetry(v: Tensor, hv: Tensor, u: Tensor, hu: Tensor) -> float:
    """|uᵀHv − vᵀHu| over what two random vectors of n numbers would make of a matrix of that size."""
    one, other = float(inner(u[None], hv[None])[0, 0]), float(inner(v[None], hu[None])[0, 0])
    size = float(hv.norm() * u.norm() + hu.norm() * v.norm()) / math.sqrt(len(u))
    return abs(one - other) / size if size else 0.0
