"""A diagonal stand-in for the Hessian, learned from pairs (s, y = H s) that a method sees anyway.

Source: Gilbert & Lemaréchal, "Some numerical experiments with variable-storage quasi-Newton algorithms",
Math. Prog. 45 (1989), §4: the diagonal of the BFGS update of a diagonal matrix, rescaled first.
"""

from __future__ import annotations

from torch import Tensor

from schuss.newton.region import EPS


def refined(diagonal: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """Return the diagonal of the BFGS update of τ B by a pair, B = `diagonal` > 0 and τ = yᵀB⁻¹y / yᵀs.

    A pair of no or negative curvature leaves it as it is. The result stays positive.

    >>> import torch
    >>> refined(torch.ones(2), torch.tensor([1.0, 0.0]), torch.tensor([4.0, 0.0]))
    tensor([4., 4.])
    """
    curvature = float(y @ s)
    if not curvature > EPS * float(y.norm() * s.norm()):
        return diagonal
    scaled = diagonal * (float(y @ (y / diagonal)) / curvature)
    pushed = scaled * s
    updated = scaled - pushed**2 / float(s @ pushed) + y**2 / curvature
    return updated.clamp(min=1e-12 * float(updated.max()))
