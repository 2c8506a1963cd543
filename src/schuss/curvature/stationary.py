"""Minimum, saddle, maximum or flat: what the curvature says about a point, and which direction leaves a saddle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from schuss.curvature.eigenvalues import ends
from schuss.curvature.objective import Loss, Model, Progress, objective
from schuss.curvature.products import Curvature


@dataclass(frozen=True, eq=False)
class StationaryPoint:
    """What the curvature at a point looks like.

    `verdict` is "minimum" (all curvature is positive), "maximum", "saddle" (both signs), "flat" (no negative
    curvature, but some direction has none: the second derivatives alone cannot tell a valley floor from a
    degenerate saddle), or "undecided" (the eigenvalues did not converge far enough). `stationary` says whether the
    gradient is small: ‖g‖ ≤ tolerance × max|λ| × max(1, ‖w‖), that is, a step of relative size `tolerance` would
    remove it. Elsewhere the verdict is about the curvature only.

    `escape` is the unit direction of the most negative curvature `smallest`, pointing downhill, in x's shape
    for a plain tensor and flat otherwise; None where nothing is negative.
    """

    verdict: str
    stationary: bool
    gradient_norm: float
    smallest: float
    largest: float
    residual: float
    escape: Tensor | None
    products: int

    def __repr__(self) -> str:
        """One sentence."""
        where = "" if self.stationary else " (not a stationary point)"
        return (
            f"{self.verdict}{where}: curvature from {self.smallest:.4g} to {self.largest:.4g} (± "
            f"{self.residual:.1e}), gradient {self.gradient_norm:.2e}"
        )


def stationary_point(
    model: Model,
    loss: Loss,
    batch: Any,
    *,
    tolerance: float = 1e-6,
    products: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StationaryPoint:
    """Is this point a minimum, a saddle, a maximum or flat? And if a saddle, which direction leads down?

    Eigenvalues within `tolerance` × max|λ| of zero count as zero (at least their residual does). The other arguments
    and the errors are those of `extreme_eigenvalues`.

    >>> import torch
    >>> saddle = lambda x, _: (x[0] ** 2 - x[1] ** 2) / 2
    >>> point = stationary_point(torch.zeros(2, dtype=torch.float64), saddle, None)
    >>> point.verdict, point.escape.abs().round(decimals=9).tolist()
    ('saddle', [0.0, 1.0])
    """
    with objective(model, loss, batch) as f:
        f.steady()
        _, gradient = f.gradient()
        ritz, _ = ends(f, Curvature(f), 1, 1, budget=products, seed=seed, progress=progress)
        smallest, largest = float(ritz.values[0]), float(ritz.values[-1])
        residual = float(max(ritz.residuals[0], ritz.residuals[-1]))
        size = max(abs(smallest), abs(largest))
        zero = max(tolerance * size, residual)
        # Ritz values lie inside the spectrum: a sign seen is there; one not seen needs convergence.
        verdict = "undecided"
        if smallest < -zero and largest > zero:
            verdict = "saddle"
        elif (ritz.converged or residual <= tolerance * size) and (smallest >= -zero or largest < -zero):
            verdict = "minimum" if smallest > zero else "maximum" if largest < -zero else "flat"
        norm = float(gradient.double().norm())
        escape = None
        if smallest < -zero:
            row = ritz.vectors([0])[0]
            if float(row.double() @ gradient.double()) > 0:
                row = -row
            escape = row.view(f.model.shape) if isinstance(f.model, Tensor) else row
        return StationaryPoint(
            verdict=verdict,
            stationary=norm <= tolerance * size * max(1.0, f.norm),
            gradient_norm=norm,
            smallest=smallest,
            largest=largest,
            residual=residual,
            escape=escape,
            products=ritz.products,
        )
