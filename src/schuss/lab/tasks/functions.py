"""Functions with a known minimum and no data: what an optimizer does, with nothing in the way.

Each seed starts somewhere else. The metric is log₁₀ of how far the value is above the minimum, down to 10⁻¹⁶.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from schuss.errors import refusal
from schuss.lab.seeds import stable_seed
from schuss.lab.tasks.task import Task

FLOOR = 1e-16


def quadratic(kappa: float = 1000, dim: int = 50) -> Task:
    """½ wᵀHw with eigenvalues evenly spaced in their logarithm from 1/κ to 1, along directions drawn once."""
    if not 1 <= kappa < math.inf:
        raise refusal("kappa", kappa, "a finite number of at least 1", "It is the condition number L/μ.")
    if dim < 1:
        raise refusal("dim", dim, "at least 1")
    draw = torch.Generator().manual_seed(stable_seed("quadratic", dim))
    directions = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=draw)).Q
    eigenvalues = torch.logspace(-math.log10(kappa), 0, dim, dtype=torch.float64)
    H = directions * eigenvalues @ directions.T
    return _function(
        name=f"quadratic-{kappa:g}",
        description=f"a quadratic in {dim} dimensions with condition number {kappa:g}",
        start=_Start(torch.zeros(dim, dtype=torch.float64), 1.0),
        value=_Quadratic((H + H.T) / 2),
        minimum=0.0,
        steps=500,
    )


def rosenbrock() -> Task:
    """(1 − x)² + 100 (y − x²)², from near the classical start (−1.2, 1)."""
    return _function(
        name="rosenbrock",
        description="Rosenbrock's curved valley",
        start=_Start(torch.tensor([-1.2, 1.0], dtype=torch.float64), 0.05),
        value=valley,
        minimum=0.0,
        steps=2000,
    )


def saddle() -> Task:
    """½x² − ½y² + ¼y⁴, from close to its saddle at the origin; the minima are at (0, ±1)."""
    return _function(
        name="saddle",
        description="leaving a saddle for one of two minima",
        start=_Start(torch.tensor([1.0, 0.0], dtype=torch.float64), 1e-3),
        value=two_ways_down,
        minimum=-0.25,
        steps=500,
    )


def valley(w: Tensor) -> Tensor:
    """Rosenbrock's function of (x, y)."""
    x, y = w
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


def two_ways_down(w: Tensor) -> Tensor:
    """½x² − ½y² + ¼y⁴."""
    x, y = w
    return x * x / 2 - y * y / 2 + y**4 / 4


class Point(nn.Module):
    """A place `w`; its weights are its coordinates."""

    def __init__(self, w: Tensor) -> None:
        """Stand at w."""
        super().__init__()
        self.w = nn.Parameter(w)


class _Start:
    """Makes a point near a centre, from the run's own seed."""

    def __init__(self, centre: Tensor, spread: float) -> None:
        self.centre, self.spread = centre, spread

    def __call__(self) -> nn.Module:
        return Point(self.centre + self.spread * torch.randn_like(self.centre))


class _Quadratic:
    def __init__(self, H: Tensor) -> None:
        self.H = H

    def __call__(self, w: Tensor) -> Tensor:
        return w @ self.H.to(w.device) @ w / 2


class _Loss:
    def __init__(self, value: Callable[[Tensor], Tensor]) -> None:
        self.value = value

    def __call__(self, model: Point, batch: None) -> Tensor:
        return self.value(model.w)


class _Gap:
    def __init__(self, value: Callable[[Tensor], Tensor], minimum: float) -> None:
        self.value, self.minimum = value, minimum

    def __call__(self, model: Point, batch: None) -> float:
        gap = self.value(model.w).item() - self.minimum
        return math.log10(max(gap, FLOOR)) if math.isfinite(gap) else math.nan


def _function(
    name: str,
    description: str,
    start: _Start,
    value: Callable[[Tensor], Tensor],
    minimum: float,
    steps: int,
) -> Task:
    return Task(
        name=name,
        description=description,
        model=start,
        loss=_Loss(value),
        metric=_Gap(value, minimum),
        metric_name="log10 above the minimum",
        batch_size=1,
        steps=steps,
        optimum=minimum,
        decay=False,
    )
